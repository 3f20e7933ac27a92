"""Text to token ids: the sets, and the held-out text that distances are measured on. No model is quantized here."""
