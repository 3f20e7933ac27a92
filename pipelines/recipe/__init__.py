"""What YAML may say, where it lies, and settings that are tried before they are advised. No model is known here."""
