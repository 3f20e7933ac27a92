"""Number formats and how they are stored: layouts, scales, codes, packings. No model is known here."""
