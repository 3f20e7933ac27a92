"""The places where artifacts are published: one module for each kind."""
