"""Where artifacts are published: one module for each kind of place."""
