"""Programs that run a model: transformers, vLLM, llama.cpp. They are asked for scores and text, and judge nothing."""
