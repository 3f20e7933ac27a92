"""The command that serves an artifact, and the programs that load it."""

import shlex
from collections.abc import Collection
from pathlib import Path

from pipelines.checkpoint.gguf_file import IMATRIX
from pipelines.formats.packings import Packing
from pipelines.formats.schemes import SchemeName
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.record import Manifest
from pipelines.serving.loads import GGUF_ONLY, TITLES, Runtime
from pipelines.serving.where import anywhere, line


def serve_line(path: str | Path, manifest: Manifest) -> str:
    """Return the command that serves an artifact published in `path`."""
    if file := gguf_file(manifest):
        return f"llama-server --model {shlex.quote(str(Path(path) / file))}"
    return checkpoint_line(path, manifest.recipe)


def checkpoint_line(path: str | Path, recipe: Recipe) -> str:
    """Return the command that serves an artifact that is no GGUF."""
    place = shlex.quote(str(path))
    match runtime_for(recipe):
        case "tensorrt-llm":
            return f"trtllm-serve {place}"
        case "sglang":
            return f"python -m sglang.launch_server --model-path {place}"
        case _:
            return f"vllm serve {place}{' --kv-cache-dtype fp8' if recipe.kv_cache else ''}"


def runtime_for(recipe: Recipe) -> Runtime:
    """Return the first runtime that serves the artifacts of `recipe`, which makes no GGUF, as far as is known."""
    formats = [(scheme, None) for scheme in recipe.schemes]
    answers = {runtime: anywhere(runtime, recipe.packing, formats).answer for runtime in CHECKPOINT_RUNTIMES}
    order = ("native", "emulated", "unknown", "refused", "misread")
    return min(answers, key=lambda runtime: order.index(answers[runtime]))


CHECKPOINT_RUNTIMES: tuple[Runtime, ...] = tuple(runtime for runtime in TITLES if runtime not in GGUF_ONLY)
"""Runtimes that serve checkpoints, the one first that is named where several do."""


def runtime_lines(packing: Packing, formats: Collection[tuple[SchemeName, int | None]]) -> list[str]:
    """Return a line for each runtime on the hardware that it serves a checkpoint of such modules on, or why it does
    not."""
    return [line(runtime, packing, formats) for runtime in CHECKPOINT_RUNTIMES]


def answers_line(packing: Packing, formats: Collection[tuple[SchemeName, int | None]]) -> str:
    """Return what each runtime does with such modules at best: `vLLM native, SGLang native, TensorRT-LLM misread`."""
    answers = ((runtime, anywhere(runtime, packing, formats).answer) for runtime in CHECKPOINT_RUNTIMES)
    return ", ".join(f"{TITLES[runtime]} {answer}" for runtime, answer in answers)


def manifest_formats(manifest: Manifest) -> list[tuple[SchemeName, int | None]]:
    """Return the schemes of an artifact's modules, with their group sizes."""
    return [(module.scheme, module.group_size) for module in manifest.modules if module.scheme]


def gguf_file(manifest: Manifest) -> str | None:
    """Return the name of the file that llama.cpp loads; None where the artifact is no GGUF."""
    return next((name for name in manifest.files if name.endswith(".gguf") and name != IMATRIX), None)


LOADERS: dict[Packing, str] = {
    "compressed-tensors": "In transformers it runs on any device, slower.",
    "gptq": "transformers loads it where the package gptqmodel is installed.",
    "awq": "transformers loads it where the package gptqmodel is installed.",
    "modelopt": "transformers does not load it.",
    "bitsandbytes": "transformers and PEFT load it where the package bitsandbytes is installed, on NVIDIA GPUs of "
    "compute capability 6.0 or later, AMD and Intel GPUs, and CPUs.",
}
"""Sentences on what loads each packing beside the runtimes that serve it."""


def loader(recipe: Recipe) -> str:
    """Return a sentence on what loads an artifact beside the runtimes that serve it."""
    return LOADERS[recipe.packing]
