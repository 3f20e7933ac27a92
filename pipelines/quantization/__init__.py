"""Weight files from a plan: the stage, its engines, and the methods they share. Nothing is decided here."""
