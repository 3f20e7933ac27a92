"""A checkpoint: headers, config, tokenizer, names, and the class that loads it. Nothing is quantized here."""
