"""The amounts that runtimes are given at once, and the amounts of held-out text that distances are measured on."""

EVALUATION_LOGITS_BYTES = 512 << 20
"""Bytes of the logits of one forward pass of evaluation on a CPU, in float32."""
DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT = 16, 512
"""Chunks of held-out text, and tokens of each, for the divergence of a GGUF; llama.cpp scores the second halves."""
DISTANCE_CHUNKS, DISTANCE_CONTEXT = 8, 512
"""Chunks of held-out text, and tokens of each, for the distance of artifacts that transformers measures."""
