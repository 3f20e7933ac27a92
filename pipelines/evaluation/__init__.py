"""A suite's questions, asked of a model document by document, and kept block by block. Nothing is judged here."""
