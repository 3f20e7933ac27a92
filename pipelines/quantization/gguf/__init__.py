"""What llama.cpp quantizes from: the unquantized GGUF, and the importance matrix."""
