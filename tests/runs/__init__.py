"""Whole runs, from a checkpoint to what is published or refused."""
