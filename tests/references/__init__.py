"""Numbers held against other projects' and published ones."""
