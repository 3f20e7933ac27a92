"""Checkpoints of headers: names, shapes and types that are as large as asked, and no weights."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from pipelines.checkpoint.headers import BYTES, INDEX, Checkpoint, read_checkpoint

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name → (dtype, shape)."""
EMBEDDING, LINEAR = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
SMALL: Tensors = {EMBEDDING: ("BF16", (16, 8)), LINEAR: ("BF16", (32, 8))}
LLAMA: Tensors = {
    EMBEDDING: ("BF16", (16, 8)),
    "model.layers.0.mlp.gate_proj.weight": ("BF16", (32, 8)),
    "model.layers.0.mlp.down_proj.weight": ("BF16", (8, 32)),
    **{f"model.layers.0.self_attn.{which}_proj.weight": ("BF16", (8, 8)) for which in "qkvo"},
    **{f"model.layers.0.{which}_layernorm.weight": ("BF16", (8,)) for which in ("input", "post_attention")},
    "model.norm.weight": ("BF16", (8,)),
    LINEAR: ("BF16", (32, 8)),
}
"""All of a Llama, as transformers wants them."""
SIZES = {
    "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16,
}  # fmt: skip
WEIGHTS = "model.safetensors"


def write_safetensors(path: Path, tensors: Tensors, **entries: object) -> Path:
    """A safetensors file whose data are zeros that take no disk space; `entries` are put into its header as given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header | entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + position)
    return path


def write_checkpoint(folder: Path, tensors: Tensors = SMALL, **config: object) -> Path:
    """A checkpoint folder with a config and one file of zeros."""
    folder.mkdir(parents=True)
    sizes = SIZES if tensors is LLAMA else {}
    told = {"model_type": "llama", "tie_word_embeddings": True} | sizes | config
    (folder / "config.json").write_text(json.dumps(told))
    write_safetensors(folder / WEIGHTS, tensors)
    return folder


def write_index(folder: Path, files: Mapping[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(files)}))


def split(folder: Path) -> None:
    """Make two shards and an index of a folder's single weight file, as `save_pretrained` does."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})
    write_index(folder, {name: file for file, inside in shards.items() for name in inside})
    (folder / WEIGHTS).unlink()


def cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size + size if size < 0 else size)


def replace_header(path: Path, text: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def fake(folder: Path, tensors: Tensors, **config: object) -> Checkpoint:
    return read_checkpoint(write_checkpoint(folder / "model", tensors, **config))


def bf16(shape: tuple[int, ...], *names: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return dict.fromkeys(names, ("BF16", shape))


ODD = "model.layers.0.mlp.up_proj"
EVEN: Tensors = {"model.layers.0.mlp.wide.weight": ("BF16", (6144, 6144))}  # which every group size here divides


def sparse_checkpoint(folder: Path, size: int = 40 * 10**12) -> Path:
    """A Llama of `size` bytes, of which the disk holds only the headers."""
    layers = -(-size // (4 * 10**12))  # a file of ext4 has 16 TB at most
    folder.mkdir()
    rows = size // layers // 2 // 3 // 8192
    sizes = {"hidden_size": 8192, "intermediate_size": rows, "num_hidden_layers": layers, "vocab_size": 16}
    config = {"model_type": "llama", "tie_word_embeddings": True, "num_attention_heads": 64, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    outside = bf16((16, 8192), "model.embed_tokens.weight") | bf16((8192,), "model.norm.weight")
    for number in range(layers):
        layer = f"model.layers.{number}"
        tensors = outside if number == 0 else {}
        tensors |= bf16((rows, 8192), *(f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up")))
        tensors |= bf16((8192, rows), f"{layer}.mlp.down_proj.weight")
        tensors |= bf16((8192, 8192), *(f"{layer}.self_attn.{name}_proj.weight" for name in "qkvo"))
        tensors |= bf16((8192,), *(f"{layer}.{name}_layernorm.weight" for name in ("input", "post_attention")))
        write_safetensors(folder / f"model-{number}.safetensors", tensors)
    held = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert held < 1 << 20, "the file system has no sparse files"
    return folder


def experts_of(name: str, block: str) -> list[str]:
    return [f"model.layers.0.{block}.experts.{expert}.{name}" for expert in range(2)]


def llama_3_8b(folder: Path, layers: int = 32) -> Checkpoint:
    """Llama-3.1-8B, or its first `layers`, of which the disk holds only the headers."""
    hidden, inner, keys, tokens = 4096, 14336, 1024, 128256
    tensors = bf16((tokens, hidden), EMBEDDING, "lm_head.weight") | bf16((hidden,), "model.norm.weight")
    for number in range(layers):
        layer = f"model.layers.{number}"
        tensors |= bf16((hidden, hidden), *(f"{layer}.self_attn.{name}_proj.weight" for name in "qo"))
        tensors |= bf16((keys, hidden), *(f"{layer}.self_attn.{name}_proj.weight" for name in "kv"))
        tensors |= bf16((inner, hidden), *(f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up")))
        tensors |= bf16((hidden, inner), f"{layer}.mlp.down_proj.weight")
        tensors |= bf16((hidden,), *(f"{layer}.{name}_layernorm.weight" for name in ("input", "post_attention")))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": tokens,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }
    return fake(folder, tensors, **config)
