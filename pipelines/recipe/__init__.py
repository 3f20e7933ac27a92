"""The schemas and the library of YAML files, and advice that is tried before it is given. No model is known here."""
