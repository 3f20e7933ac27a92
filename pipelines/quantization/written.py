"""What engines have in common: what they say of the files that they wrote."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.checkpoint.names import FUSED, NOT_TEXT
from pipelines.core.strict_yaml import Frozen
from pipelines.formats import packings
from pipelines.formats.schemes import SCHEMES
from pipelines.planning.plan import CheckpointPlan, Module

if TYPE_CHECKING:
    import torch


ROWS_TOGETHER = 128
"""Weights are handled in multiples of as many rows, so that no word of zeros is torn."""


def rows_at_a_time(module: Module, elements: int) -> int:
    """How many rows of a weight hold about `elements`; neither a block of scales nor a word of zeros is torn."""
    block = module.group_size if module.scheme and SCHEMES[module.scheme].is_block and module.group_size else 1
    together = math.lcm(ROWS_TOGETHER, block)
    return max(1, elements // module.shape[1] // together) * together


class Written(Frozen):
    """What an engine has to say about the files it wrote."""

    quantization_config: dict[str, Any]
    """For `config.json`."""
    configs: dict[str, dict[str, Any]] = Field(default={})
    """Other JSON files that runtimes look into, by name."""
    rescaled: tuple[str, ...] = Field(default=())
    """Kept tensors that smoothing changed: the norms before the layers whose columns were scaled, and biases."""
    engine: str = ""
    """Name and version of the engine, if it is another project's."""
    peak_memory: int = 0
    """Bytes: of its process."""


def packed_config(plan: CheckpointPlan) -> dict[str, Any]:
    """The fields of `Written` for an artifact in gptq's or awq's packing."""
    config = packings.quantization_config(plan.form, named_kept(plan))
    return {"quantization_config": config, "configs": {OLD_CONFIGS[plan.form.packing]: config}}


OLD_CONFIGS = {"gptq": "quantize_config.json", "awq": "quant_config.json"}
"""Where AutoGPTQ and AutoAWQ look for what `config.json` says today."""


def named_kept(plan: CheckpointPlan) -> list[str]:
    """The kept modules that engines and runtimes must be told of: at heads and towers they do not look."""
    kept = (module.address for module in plan.modules if not module.quantized)
    return [name for name in kept if name != plan.head and not NOT_TEXT.search(name)]


def fused_names(plan: CheckpointPlan) -> dict[str, tuple[str, ...]]:
    """Each quantized module → the modules, itself among them, that runtimes load as one matrix with it."""
    sets: dict[str, tuple[str, ...]] = {}
    for name in plan.quantized:
        parent, _, last = name.rpartition(".")
        fused = next((fused for fused in FUSED if last in fused), (last,))
        siblings = (f"{parent}.{sibling}" if parent else sibling for sibling in fused)
        sets[name] = tuple(sibling for sibling in siblings if sibling in plan.quantized)
    return sets


def write_smoothing(factors: "dict[str, torch.Tensor]", folder: Path) -> None:
    """Keep what smoothing did, beside the artifact's folder, for `verify`: float32 vectors by name,
    `MODULE.columns` (multiplied into the input columns) and `MODULE.rows` (divided out of the output rows)."""
    from safetensors.torch import save_file

    save_file(factors, folder.parent / SMOOTHING)


def read_smoothing(stage: Path) -> "dict[str, torch.Tensor]":
    """What `write_smoothing` kept in a quantize stage's folder; nothing when it did not smooth."""
    from safetensors.torch import load_file

    file = stage / SMOOTHING
    return dict(load_file(file)) if file.is_file() else {}


SMOOTHING = "smoothing.safetensors"
