"""Artifacts as servers see them, made of configs and no weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from pipelines.formats.schemes import SchemeName, quantization_config

Formats = Sequence[tuple[SchemeName, int | None]]


def write_config(folder: Path, described: Any, **others: object) -> Path:
    """A folder whose `config.json` has the `quantization_config` `described`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"max_position_embeddings": 8192, **others, "quantization_config": described}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(folder: Path, *formats: tuple[SchemeName, int | None], kv_cache: bool = False) -> Path:
    """A compressed-tensors checkpoint of one module in each of `formats`."""
    modules = {f"model.layers.{number}.mlp.up_proj": one for number, one in enumerate(formats)}
    return write_config(folder, quantization_config(modules, ["lm_head"], kv_cache))


def write_gguf(file: Path, tokens: Sequence[str] = ("a", "b"), positions: int = 8192) -> Path:
    """A GGUF with a vocabulary, and no tensors."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(positions)
    writer.add_token_list(tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file
