"""The speed of models in the servers that they are for, one at a time and under load. No quality is judged here."""
