"""The algorithms that choose scales and codes. They see tensors, and neither files nor plans."""
