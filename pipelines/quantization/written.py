"""The description of weight files that an engine wrote, and what several engines say and ask about modules."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.checkpoint.names import NOT_TEXT, fused_set
from pipelines.core.strict_yaml import Frozen
from pipelines.formats import packings
from pipelines.formats.schemes import SCHEMES
from pipelines.planning.plan import CheckpointPlan, Module

if TYPE_CHECKING:
    import torch


SMOOTHING = "smoothing.safetensors"
"""Name of the file with smoothing factors, in a quantize stage's folder."""
ROWS_TOGETHER = 128
"""Number of rows that weights are handled in multiples of, so that no word of packed zero points is split."""


def rows_at_a_time(module: Module, elements: int) -> int:
    """Return how many rows of a weight hold about `elements`, so that no block and no word of zero points is split."""
    block = module.group_size if module.scheme and SCHEMES[module.scheme].is_block and module.group_size else 1
    together = math.lcm(ROWS_TOGETHER, block)
    return max(1, elements // module.shape[1] // together) * together


class Written(Frozen):
    """The facts about an engine's files that the files alone do not tell."""

    quantization_config: dict[str, Any]
    """Entry of that name in `config.json`."""
    configs: dict[str, dict[str, Any]] = Field(default={})
    """Other JSON files that runtimes look into: name → content."""
    rescaled: tuple[str, ...] = Field(default=())
    """Kept tensors that smoothing changed: the norms before the layers whose columns were scaled, and biases."""
    engine: str = ""
    """Name and version of the engine, if it is another project's."""
    peak_memory: int = 0
    """Peak memory of that engine's process in bytes; 0 where it shares ours."""


def packed_config(plan: CheckpointPlan) -> dict[str, Any]:
    """Return the fields of `Written` for an artifact in gptq's or awq's packing."""
    config = packings.quantization_config(plan.form, named_kept(plan))
    return {"quantization_config": config, "configs": {OLD_CONFIGS[plan.form.packing]: config}}


OLD_CONFIGS = {"gptq": "quantize_config.json", "awq": "quant_config.json"}
"""Names of the files in which AutoGPTQ and AutoAWQ look for what `config.json` says today, by packing."""


def named_kept(plan: CheckpointPlan) -> list[str]:
    """Return the kept modules that engines and runtimes must be told of: they do not look at heads and towers."""
    kept = (module.address for module in plan.modules if not module.quantized)
    return [name for name in kept if name != plan.head and not NOT_TEXT.search(name)]


def fused_names(plan: CheckpointPlan) -> dict[str, tuple[str, ...]]:
    """Return each quantized module → the modules, itself among them, that runtimes load as one matrix with it."""
    sets: dict[str, tuple[str, ...]] = {}
    for name in plan.quantized:
        parent, _, last = name.rpartition(".")
        fused = fused_set(name) or (last,)
        siblings = (f"{parent}.{sibling}" if parent else sibling for sibling in fused)
        sets[name] = tuple(sibling for sibling in siblings if sibling in plan.quantized)
    return sets


def write_smoothing(factors: "dict[str, torch.Tensor]", folder: Path) -> None:
    """Write what smoothing did, beside the artifact's folder, for `verify`: float32 vectors by name,
    `MODULE.columns` (multiplied into the input columns) and `MODULE.rows` (divided out of the output rows)."""
    from safetensors.torch import save_file

    save_file(factors, folder.parent / SMOOTHING)


def read_smoothing(stage: Path) -> "dict[str, torch.Tensor]":
    """Return what `write_smoothing` wrote, by the folder of a quantize stage; nothing where it wrote no file."""
    from safetensors.torch import load_file

    file = stage / SMOOTHING
    return dict(load_file(file)) if file.is_file() else {}
