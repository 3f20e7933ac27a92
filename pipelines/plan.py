"""What will become of every module, and what it will cost: from headers alone, before any weight is read.

Nothing here imports torch: `quantgate plan` answers in a second or two.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Literal

import psutil

from pipelines.checkpoint import BYTES, FLOAT, Checkpoint, TensorInfo, refuse_quantized
from pipelines.errors import Problem, refuse
from pipelines.models import load_model
from pipelines.recipe import Gptq, Recipe, load_recipe
from pipelines.schema import Frozen
from pipelines.schemes import layout
from pipelines.store import cache_dir

NOT_LINEAR = re.compile(r"(^|[._])(embed\w*|\w*embeddings?|wte|wpe|\w*norm\d*|ln_\w+|rotary\w*)$")
"""Last name components of two-dimensional weights that are not linear modules."""
ROUTER = re.compile(r"(^|\.)(router(\.\w+)?|mlp\.gate|block_sparse_moe\.gate|shared_expert_gate)$")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
HEAD = "lm_head"
FUSED: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

LIBRARIES_BYTES = 700 << 20  # torch, transformers and lm-eval resident, as measured
STREAM_BYTES = 600 << 20  # the above and a block of rows in float32, as measured
EVALUATION_BATCH_TOKENS = 16 * 512
CALIBRATION_BATCH_TOKENS = 2048


class Module(Frozen):
    """One linear module and what becomes of it."""

    name: str
    shape: tuple[int, int]
    """(output features, input features)"""
    dtype: str
    quantized: bool
    group_size: int | None = None
    reason: str = ""
    """Why it is kept, or what was changed to quantize it."""
    bytes_before: int
    bytes_after: int


class Need(Frozen):
    """What a stage is estimated to need of something, against what the machine has."""

    stage: str
    resource: Literal["memory", "disk"]
    where: str = ""
    needed: int
    available: int
    """Bytes."""


class Plan(Frozen):
    """A recipe applied to a checkpoint: immutable, printable, complete."""

    recipe: Recipe
    checkpoint: Checkpoint
    modules: tuple[Module, ...]
    needs: tuple[Need, ...]

    @property
    def quantized(self) -> dict[str, Module]:
        return {module.name: module for module in self.modules if module.quantized}

    @property
    def bytes_before(self) -> int:
        """Of all weights."""
        return self.checkpoint.weight_bytes

    @property
    def bytes_after(self) -> int:
        return self.bytes_before + sum(module.bytes_after - module.bytes_before for module in self.modules)

    @property
    def bits_per_weight(self) -> float:
        """Of the whole artifact: every byte of every tensor, over the source's parameters."""
        return self.bytes_after * 8 / self.checkpoint.parameters


def make_plan(recipe: Recipe | str, model: Checkpoint | str | Path | None = None, to: Path | None = None) -> Plan:
    """Decide, from headers alone, what `recipe` does to `model` (the default model unless given).

    Raises:
        BadInput: everything that makes the recipe impossible for this model or machine, at once.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model)
    refuse_quantized(checkpoint)
    problems: list[Problem] = []
    modules = tuple(_decide(recipe, checkpoint, problems))
    if not problems and not any(module.quantized for module in modules):
        problems.append(Problem(str(checkpoint.folder), "has no linear module left to quantize"))
    plan = Plan(recipe=recipe, checkpoint=checkpoint, modules=modules, needs=())
    plan = plan.model_copy(update={"needs": _needs(plan, to)})
    for need in plan.needs:
        if need.needed > need.available:
            what = f"stage {need.stage} needs about {_size(need.needed)} of {need.resource}"
            what += f", {_size(need.available)} is free"
            remedy = "free some, or set QUANTGATE_CACHE" if need.resource == "disk" else "use a larger machine"
            problems.append(Problem(need.where or checkpoint.label, what, remedy))
    refuse(problems)
    return plan


def _decide(recipe: Recipe, checkpoint: Checkpoint, problems: list[Problem]) -> list[Module]:
    linear = {t.name.removesuffix(".weight"): t for t in checkpoint.tensors if _is_linear(t)}
    names = set(linear)
    if checkpoint.config.get("tie_word_embeddings") or HEAD not in linear:
        names.add(HEAD)  # the head exists in the model, though the checkpoint holds no tensor for it
    matched: set[str] = set()
    last = max((_layer(name) for name in names), default=-1)
    for pattern in recipe.quantize.ignore:
        hits = {name for name in names if matches(pattern, name, last)}
        if not hits:
            what = f"ignore pattern '{pattern}' matches no linear module of {checkpoint.label}"
            problems.append(
                Problem(f"recipe {recipe.name}", what, f"modules are named like {min(linear, default='?')}")
            )
        matched |= hits
    indivisible: dict[int, list[str]] = {}
    modules = [_module(name, tensor, name in matched, recipe, indivisible) for name, tensor in sorted(linear.items())]
    for columns, affected in sorted(indivisible.items()):
        size = recipe.quantize.group_size or 0
        who = affected[0] if len(affected) == 1 else f"{len(affected)} modules, like {affected[0]}"
        what = f"group size {size} does not divide the {columns} input columns of {who}"
        remedy = f"use quantize.group_size={_divisor(columns, size)}, or quantize.on_indivisible=shrink or skip"
        problems.append(Problem(f"recipe {recipe.name}", what, remedy))
    problems += _torn(recipe, modules)
    return modules


def _torn(recipe: Recipe, modules: list[Module]) -> list[Problem]:
    """Layers that vLLM loads as one matrix, of which the recipe quantizes some and keeps others: it refuses those."""
    parts: dict[tuple[str, tuple[str, ...]], set[bool]] = {}
    for module in modules:
        parent, _, last = module.name.rpartition(".")
        for fused in FUSED:
            if last in fused:
                parts.setdefault((parent, fused), set()).add(module.quantized)
    torn = [(parent, fused) for (parent, fused), decisions in parts.items() if len(decisions) > 1]
    if not torn:
        return []
    parent, fused = torn[0]
    what = f"{', '.join(fused)} of {parent} are partly quantized and partly kept ({len(torn)} such groups)"
    return [Problem(f"recipe {recipe.name}", what, "runtimes load them as one matrix: ignore all of them, or none")]


def _divisor(columns: int, group_size: int) -> int:
    """The largest power of two, not above `group_size`, that divides `columns`."""
    return math.gcd(columns, 1 << (group_size.bit_length() - 1))


def matches(pattern: str, name: str, last_layer: int) -> bool:
    """Whether `pattern` of a recipe means module `name` of a model whose last decoder layer is `last_layer`."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    if pattern.startswith("layer:"):
        number = int(pattern.removeprefix("layer:"))
        return _layer(name) == (number if number >= 0 else last_layer + 1 + number)
    return name == pattern or name.endswith(f".{pattern}")


def _layer(name: str) -> int:
    """The number of the decoder layer that module `name` is in, -1 if in none."""
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def _is_linear(tensor: TensorInfo) -> bool:
    name = tensor.name.removesuffix(".weight")
    is_matrix = tensor.name.endswith(".weight") and len(tensor.shape) == 2
    return is_matrix and not NOT_LINEAR.search(name)


def _module(name: str, tensor: TensorInfo, ignored: bool, recipe: Recipe, indivisible: dict[int, list[str]]) -> Module:
    rows, columns = tensor.shape
    quantize = recipe.quantize
    group_size, reason, quantized = quantize.group_size, "", True
    if ignored:
        quantized, reason = False, "ignored by the recipe"
    elif ROUTER.search(name):
        quantized, reason = False, "routes tokens to experts"
    elif tensor.dtype not in FLOAT:
        quantized, reason = False, f"is {tensor.dtype}"
    elif isinstance(quantize, Gptq) and group_size and columns % group_size:
        divisor = _divisor(columns, group_size)
        match quantize.on_indivisible:
            case "shrink" if divisor >= 16:
                group_size, reason = divisor, f"group size {divisor}: {quantize.group_size} does not divide {columns}"
            case "skip" | "shrink":
                quantized, reason = False, f"group size {group_size} does not divide {columns}"
            case "error":
                indivisible.setdefault(columns, []).append(name)
    after = tensor.bytes
    if quantized and not (group_size and columns % group_size):
        parts = layout(quantize, (rows, columns), tensor.dtype, group_size).values()
        after = sum(BYTES[dtype] * math.prod(shape) for dtype, shape in parts)
    return Module(
        name=name,
        shape=(rows, columns),
        dtype=tensor.dtype,
        quantized=quantized,
        group_size=group_size if quantized else None,
        reason=reason,
        bytes_before=tensor.bytes,
        bytes_after=after,
    )


def _needs(plan: Plan, to: Path | None) -> tuple[Need, ...]:
    memory = psutil.virtual_memory().available
    cache, target = _existing(cache_dir()), _existing((to or Path("artifacts")).absolute())
    disk = {str(cache): plan.bytes_after, str(target): 0}
    disk[str(target)] += plan.bytes_after
    if cache.stat().st_dev == target.stat().st_dev:
        disk = {str(cache): 2 * plan.bytes_after}
    needs = [
        Need(stage="quantize", resource="memory", needed=_quantize_memory(plan), available=memory),
        Need(stage="evaluate", resource="memory", needed=_evaluate_memory(plan), available=memory),
    ]
    for where, needed in disk.items():
        needs.append(
            Need(
                stage="quantize and publish",
                resource="disk",
                where=where,
                needed=needed,
                available=shutil.disk_usage(where).free,
            )
        )
    return tuple(needs)


def _quantize_memory(plan: Plan) -> int:
    recipe, config = plan.recipe, plan.checkpoint.config
    if not isinstance(recipe.quantize, Gptq) or not recipe.calibrate:
        return STREAM_BYTES
    hidden = int(config.get("hidden_size") or 4096)
    widest = max((module.shape[1] for module in plan.modules), default=hidden)
    activations = 2 * recipe.calibrate.samples * recipe.calibrate.seq_len * hidden * 2  # a layer's inputs and outputs
    hessians = 7 * widest * widest * 4
    largest = max((math.prod(module.shape) for module in plan.modules), default=0) * 4 * 4
    return LIBRARIES_BYTES + 2 * plan.bytes_before + activations + hessians + largest


def _evaluate_memory(plan: Plan) -> int:
    vocabulary = int(plan.checkpoint.config.get("vocab_size") or 32000)
    logits = 2 * EVALUATION_BATCH_TOKENS * vocabulary * 4
    return LIBRARIES_BYTES + int(1.2 * plan.bytes_before) + logits


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists: where its disk space comes from."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
