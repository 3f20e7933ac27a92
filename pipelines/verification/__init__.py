"""A finished artifact, held against its plan, its source and its reader. Nothing is written here."""
