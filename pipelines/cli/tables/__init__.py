"""What a person sees on standard output: one module for each kind of table. Nothing is computed here but texts."""
