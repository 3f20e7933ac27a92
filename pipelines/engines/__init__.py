"""Engines turn a plan into weight files. Each is one module with one function:

    quantize(plan, tokens, folder) -> Written

`plan` says what becomes of each module, `tokens` is the calibration set (None for a data-free method), `folder` is
empty. The engine writes safetensors files (and an index when there is more than one) and nothing else; config,
tokenizer and the rest are the same for every engine and `pipelines.quantize` writes them.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines import packings
from pipelines.plan import FUSED, LAYER, NOT_TEXT, Module, Plan
from pipelines.readers import ONE_BY_ONE
from pipelines.recipe import Engine
from pipelines.schema import Frozen
from pipelines.schemes import SCHEMES, quantization_config

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


def written_config(plan: Plan) -> dict[str, Any]:
    """The `quantization_config` of the artifact that `plan` describes."""
    addresses = _addresses(plan)
    modules = {
        address: (module.scheme, module.group_size)
        for module in plan.modules
        if module.scheme
        for address in addresses[module.name]
    }
    kept = {address for module in plan.modules if not module.scheme for address in addresses[module.name]}
    head = set() if plan.head in {module.address for module in plan.modules} else {plan.head}
    return quantization_config(modules, sorted(kept | head), bool(plan.attentions))


def _addresses(plan: Plan) -> dict[str, set[str]]:
    """Each module → what means it in a `quantization_config`: its name, and the one that transformers has for it."""
    inside = any(NOT_TEXT.search(module.name) for module in plan.modules)
    return {
        module.name: {_address_inside(module.name)}
        if inside or ONE_BY_ONE.match(module.name)
        else {module.name, module.address}
        for module in plan.modules
    }


def packed_config(plan: Plan) -> dict[str, Any]:
    """The fields of `Written` for an artifact in gptq's or awq's packing."""
    config = packings.quantization_config(plan.form, named_kept(plan))
    return {"quantization_config": config, "configs": {OLD_CONFIGS[plan.form.packing]: config}}


OLD_CONFIGS = {"gptq": "quantize_config.json", "awq": "quant_config.json"}
"""Where AutoGPTQ and AutoAWQ look for what `config.json` says today."""


def worker_module(engine: Engine) -> str:
    """The module of `pipelines.workers` that drives another project's engine."""
    return f"{engine.replace('-', '_')}_engine"


def named_kept(plan: Plan) -> list[str]:
    """The kept modules that engines and runtimes must be told of: at heads and towers they do not look."""
    kept = (module.address for module in plan.modules if not module.quantized)
    return [name for name in kept if name != plan.head and not NOT_TEXT.search(name)]


def _address_inside(name: str) -> str:
    """What means a module of a model that has towers beside its language model: the names of those begin otherwise on
    the hub (`language_model.model.layers`), in transformers (`model.language_model.layers`) and in vLLM. Experts are
    meant together, all of a layer: Mixtral's are called `block_sparse_moe.experts.0.w1` on the hub, and in vLLM
    `block_sparse_moe.experts.0.gate_proj`; transformers looks for their format by the word `experts`."""
    if tower := NOT_TEXT.search(name):
        return rf"re:(.*\.)?{tower[2]}\..*"
    inside = LAYER.search(name)
    if ONE_BY_ONE.match(name):
        return rf"re:(.*\.)?{re.escape(inside[0].lstrip('.')) if inside else ''}(.*\.)?experts\..*"
    tail = name[inside.start() :].lstrip(".") if inside else name.rpartition(".")[2]
    return rf"re:(.*\.)?{re.escape(tail)}$"


def fused_names(plan: Plan) -> dict[str, tuple[str, ...]]:
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
