"""Simulations of the gate where the truth is known, all runs of a setting at once."""
