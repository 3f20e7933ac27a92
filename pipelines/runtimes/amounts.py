"""How much runtimes are given at once, and how much held-out text distances are measured on."""

EVALUATION_LOGITS_BYTES = 512 << 20
"""Of a forward pass of evaluation on a CPU, in float32."""
DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT = 16, 512
"""Held-out text that the divergence of a GGUF is measured on; llama.cpp scores the second half of each chunk."""
DISTANCE_CHUNKS, DISTANCE_CONTEXT = 8, 512
"""The same of other artifacts, which transformers measures."""
