"""The verdict: statistics of paired documents, and nothing that runs a model."""
