"""Tables on standard output, one module for each kind. Nothing is computed here but texts."""
