"""The command that serves an artifact, and the programs that load it."""

import shlex
from pathlib import Path

from pipelines.checkpoint.gguf_file import IMATRIX
from pipelines.formats.packings import Packing
from pipelines.planning.readers import home
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.record import Manifest


def serve_line(path: str | Path, manifest: Manifest) -> str:
    """Return the command that serves an artifact published in `path`."""
    if file := gguf_file(manifest):
        return f"llama-server --model {shlex.quote(str(Path(path) / file))}"
    return vllm_line(path, manifest.recipe)


def vllm_line(path: str | Path, recipe: Recipe) -> str:
    """Return the command that serves an artifact that is no GGUF."""
    cache = " --kv-cache-dtype fp8" if recipe.kv_cache else ""
    return f"vllm serve {shlex.quote(str(path))}{cache}"


def gguf_file(manifest: Manifest) -> str | None:
    """Return the name of the file that llama.cpp loads; None where the artifact is no GGUF."""
    return next((name for name in manifest.files if name.endswith(".gguf") and name != IMATRIX), None)


LOADERS: dict[Packing, str] = {
    "compressed-tensors": "In transformers it runs on any device, slower.",
    "gptq": "vLLM and SGLang load it as it is, and so does transformers where the package gptqmodel is installed.",
    "awq": "vLLM and SGLang load it as it is, and so does transformers where the package gptqmodel is installed.",
    "modelopt": "TensorRT-LLM, vLLM and SGLang load it as it is; transformers does not.",
    "bitsandbytes": "Where the package bitsandbytes is installed, transformers, PEFT and vLLM load it as it is.",
}
"""Sentences on the programs that load each packing."""


def loader(recipe: Recipe) -> str:
    """Return a sentence on which programs load an artifact beside vLLM."""
    if home(recipe).program == "TensorRT-LLM":
        return "TensorRT-LLM loads it; vLLM, SGLang and transformers do not."
    return LOADERS[recipe.packing]
