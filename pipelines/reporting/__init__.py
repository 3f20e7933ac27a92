"""The record of a run, and what people read of it: card, report, charts. Nothing is measured here."""
