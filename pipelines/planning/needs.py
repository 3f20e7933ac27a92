"""The memory and disk space that a plan needs, against what the machine has."""

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from pipelines.checkpoint.dtypes import SIZES, fits, model_bytes, own_dtype
from pipelines.checkpoint.names import EXPERTS, fused_set, layer_number
from pipelines.core.cache import cache_dir
from pipelines.core.errors import Problem
from pipelines.environments import isolated
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Need, Part, Plan
from pipelines.runtimes.amounts import (
    DISTANCE_CHUNKS,
    DISTANCE_CONTEXT,
    DIVERGENCE_CHUNKS,
    DIVERGENCE_CONTEXT,
    EVALUATION_LOGITS_BYTES,
)

LIBRARIES_BYTES = 700 << 20  # torch, transformers and lm-eval resident, as measured
STREAM_BYTES = 600 << 20  # the above and a block of rows in float32, as measured
EVALUATION_BATCH_TOKENS = 16 * 512


def disk_lacks(plans: Sequence[Plan]) -> list[Problem]:
    """Return what the artifacts of all `plans` together lack of disk space, where each alone has enough."""
    needs: dict[str, Need] = {}
    for need in (need for plan in plans for need in plan.needs if need.resource == "disk"):
        before = needs.get(need.where)
        parts = {part: size + (before.parts.get(part, 0) if before else 0) for part, size in need.parts.items()}
        needed = need.needed + (before.needed if before else 0)
        needs[need.where] = need.model_copy(
            update={"needed": needed, "parts": (before.parts if before else {}) | parts}
        )
    return lacks(needs.values(), None)


def lacks(needs: Iterable[Need], plan: Plan | None) -> list[Problem]:
    """Return what the machine lacks; of memory, with what the `plan` could do with less."""
    problems = []
    label, more = plan.checkpoint.label if plan else "", "use a larger machine"
    if plan and SIZES[own_dtype(plan.checkpoint)] < SIZES[plan.dtype]:
        more += f", or --dtype {own_dtype(plan.checkpoint)}"
    for need in needs:
        if need.needed > need.available:
            what = f"stage {need.stage} needs about {_size(need.needed)} of {need.resource}"
            what += f", {_size(need.available)} is free"
            remedy = _room(need) if need.resource == "disk" else more
            problems.append(Problem(need.where or label, what, remedy))
    return problems


ELSEWHERE: dict[Part, str] = {
    "cache": "set QUANTGATE_CACHE to a folder on another disk",
    "artifact": "publish to another disk (`quantgate run --to`, or start in a folder there)",
}


def _room(need: Need) -> str:
    """Return how to get the disk space that lacks: what to put elsewhere, so that the rest has enough."""
    alone = [part for part, size in need.parts.items() if need.needed - size <= need.available]
    ways = [ELSEWHERE[part] for part in alone] or [" and ".join(ELSEWHERE[part] for part in need.parts)]
    return ", or ".join(["free some", *ways])


def machine_needs(plan: Plan, to: Path | None) -> tuple[Need, ...]:
    """Return the memory and the disk space that `plan` needs, published into `to`, against what the machine has."""
    memory = psutil.virtual_memory().available
    cache, target = _existing(cache_dir()), _existing((to or Path("artifacts")).absolute())
    in_cache, published = plan.bytes_after + _temporary(plan), plan.bytes_after
    disk: dict[str, dict[Part, int]]
    disk = {str(cache): {"cache": in_cache}, str(target): {"artifact": published}}
    if disk_number(cache) == disk_number(target):
        disk = {str(cache): {"cache": in_cache, "artifact": published}}
    needs = [
        Need(stage=stage, resource="memory", needed=needed, available=memory)
        for stage, needed in expected_memory(plan).items()
    ]
    for where, parts in disk.items():
        needs.append(
            Need(
                stage="quantize and publish",
                resource="disk",
                where=where,
                needed=sum(parts.values()),
                available=shutil.disk_usage(where).free,
                parts=parts,
            )
        )
    return tuple(needs)


def disk_number(folder: Path) -> int:
    """Return the number of the disk that a folder is on."""
    return folder.stat().st_dev


def expected_memory(plan: Plan) -> dict[str, int]:
    """Return stage → bytes of memory that it is expected to take, for the expensive stages."""
    return {"quantize": _quantize_memory(plan), "evaluate": _evaluate_memory(plan)}


def _temporary(plan: Plan) -> int:
    """Return the bytes in the cache while a run lasts: the unquantized GGUF; log-probabilities on held-out text; what
    another project's engine wrote, and what is not repacked yet."""
    vocabulary = int(plan.checkpoint.config.get("vocab_size") or 32000)
    match plan:
        case GgufPlan():
            return 2 * plan.checkpoint.parameters + DIVERGENCE_CHUNKS * DIVERGENCE_CONTEXT // 2 * vocabulary * 2
        case CheckpointPlan():
            recipe = plan.recipe
            copies = (recipe.engine in isolated.names()) + (recipe.packing != recipe.engine_packing)
            return copies * plan.bytes_after + DISTANCE_CHUNKS * DISTANCE_CONTEXT // 2 * vocabulary * 2


def _quantize_memory(plan: Plan) -> int:
    """Return the bytes of memory that quantizing takes."""
    match plan:
        case GgufPlan():  # llama.cpp goes tensor by tensor; an importance matrix needs the model
            model = int(1.2 * model_bytes(plan.checkpoint, plan.dtype)) if plan.recipe.calibrate else 0
            return STREAM_BYTES + model + 8 * max(tensor.elements for tensor in plan.tensors)
        case CheckpointPlan():
            return _engine_memory(plan)


def _engine_memory(plan: CheckpointPlan) -> int:
    """Return the bytes of memory that the engine of a checkpoint's modules takes."""
    recipe, config = plan.recipe, plan.checkpoint.config
    if not recipe.calibrate:
        return STREAM_BYTES
    if recipe.engine != "quantgate":  # the engine holds the model, what it becomes, and its statistics
        return 2 * LIBRARIES_BYTES + 3 * plan.bytes_before
    hidden = int((config.get("text_config") or config).get("hidden_size") or 4096)
    tokens = recipe.calibrate.samples * recipe.calibrate.seq_len
    activations = 2 * tokens * hidden * SIZES[plan.dtype]  # what goes into a layer, and what comes out
    largest = max((math.prod(module.shape) for module in plan.modules), default=0) * 4
    return LIBRARIES_BYTES + int(1.2 * plan.bytes_before) + activations + _moments(plan) + 8 * largest


def _moments(plan: CheckpointPlan) -> int:
    """Return the bytes of the second moments of all distinct inputs of the layer that has most, in float32."""
    layers: dict[int, dict[str, int]] = {}
    for module in plan.quantized.values():
        parent, experts = module.name.rpartition(".")[0], EXPERTS.match(module.name)
        reads = (experts[1] if experts else parent) if fused_set(module.name) else module.name
        layers.setdefault(layer_number(module.name), {})[reads] = module.shape[1] ** 2 * 4
    return max((sum(inputs.values()) for inputs in layers.values()), default=0)


def _evaluate_memory(plan: Plan) -> int:
    """Return the bytes of memory that evaluating takes."""
    vocabulary = int(plan.checkpoint.config.get("vocab_size") or 32000)
    logits = min(EVALUATION_BATCH_TOKENS * vocabulary * 4, EVALUATION_LOGITS_BYTES)
    models = 2 if fits(plan.checkpoint, plan.dtype, models=2) else 1  # baseline and artifact, in turn
    return LIBRARIES_BYTES + int(1.2 * models * model_bytes(plan.checkpoint, plan.dtype)) + logits


def _existing(path: Path) -> Path:
    """Return the nearest folder above `path` that exists: where its disk space comes from."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _size(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
