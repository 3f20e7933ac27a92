"""The bytes of keys and values that a model keeps of each token, by its config."""

from collections.abc import Mapping
from typing import Any

NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
}
"""What is asked of a config → the keys that families of models have for it."""


def number(config: Mapping[str, Any], what: str) -> int:
    """Return the number of layers, heads or positions, or the hidden size, that a model's `config` gives; 0 where it
    gives none."""
    inner = config.get("text_config") or config
    return next((int(inner[key]) for key in NAMES[what] if inner.get(key)), 0)


def token_bytes(config: Mapping[str, Any], bits: int = 16) -> int:
    """Return the bytes that all layers keep of one token, in numbers of so many `bits`; 0 where the config does not
    say.

    Layers that look at a window only, or keep a state of one size, are counted like the others: it is the most that
    there can be. Models with latent attention (DeepSeek's) keep one vector for all heads.
    """
    inner, layers, heads = config.get("text_config") or config, number(config, "layers"), number(config, "heads")
    if latent := inner.get("kv_lora_rank"):
        return layers * (int(latent) + int(inner.get("qk_rope_head_dim") or 0)) * bits // 8
    if not heads:
        return 0
    width = int(inner.get("head_dim") or number(config, "hidden") // heads)
    return layers * 2 * int(inner.get("num_key_value_heads") or heads) * width * bits // 8
