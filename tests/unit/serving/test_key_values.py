"""The bytes of keys and values, by the configs of real models."""

from typing import Any

import pytest

from pipelines.serving.key_values import token_bytes

LLAMA_8B = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
DEEPSEEK_V3 = {"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
QWEN3_06B = {**LLAMA_8B, "num_hidden_layers": 28, "num_attention_heads": 16, "hidden_size": 1024, "head_dim": 128}
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768}


@pytest.mark.parametrize(
    ("config", "bytes_of_a_token"),
    [
        (LLAMA_8B, 131072),  # 128 KiB, as vLLM's paper of paged attention reckons: layers x 2 x heads x width x 2
        ({"text_config": LLAMA_8B}, 131072),
        (QWEN3_06B, 28 * 2 * 8 * 128 * 2),
        (GPT2, 12 * 2 * 768 * 2),
        (DEEPSEEK_V3, 61 * 576 * 2),  # one latent vector for all heads
        ({"model_type": "mamba"}, 0),
    ],
)
def test_bytes_of_a_token(config: dict[str, Any], bytes_of_a_token: int) -> None:
    assert token_bytes(config) == bytes_of_a_token
    assert token_bytes(config, 8) == bytes_of_a_token // 2
