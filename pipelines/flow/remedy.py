"""Recipes to try after a gate that failed: those with more bits for the layers that lost most.

Layers are ranked by what they lost for each byte that more bits would cost: their noise to signal ratio, as the verify
stage measured it, over those bytes. Each attempt raises as many more of them as its share of the size budget allows.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.names import EXPERTS, fused_set
from pipelines.formats.gguf_types import BLOCKS, TensorType
from pipelines.formats.schemes import SCHEMES, SchemeName
from pipelines.gating.decision import AT_CHANCE
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.planning.stage import make_plan
from pipelines.recipe.load import as_yaml
from pipelines.recipe.methods import Gguf
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.record import Manifest

ATTEMPTS = 4
"""Recipes to try: each may use one more of as many equal shares of the bytes between the artifact and the budget."""
RAISED_TENSOR: TensorType = "Q8_0"
NUMBER = re.compile(r"\.(\d+)\.")
"""Pattern of a decoder layer's number in the name of what is in the layer."""


def cannot_be_judged(run: Manifest) -> bool:
    """Tell whether the verdict says nothing of the artifact, as its baseline does not score above chance."""
    return run.gate.verdict == "INCONCLUSIVE" and AT_CHANCE in run.gate.reasons


def recipes(failed: Manifest, model: Checkpoint, budget: int | None = None) -> Iterator[Recipe]:
    """Yield the recipes to try, the smallest artifact first; none where nothing can be raised."""
    order = ranked(failed, make_plan(failed.recipe, model))
    if not failed.recipe.makes_gguf and not _raised_scheme(failed.recipe.method.scheme):
        order = order[:-1]  # something must stay quantized
    if not order:
        return
    highest = make_plan(_raised(failed.recipe, order, 0), model).bytes_after
    most = min(budget or highest, highest)
    tried: set[int] = set()
    for attempt in range(1, ATTEMPTS + 1):
        allowed = failed.size.bytes_after + (most - failed.size.bytes_after) * attempt // ATTEMPTS
        count = _fitting(failed.recipe, order, model, allowed)
        if count and count not in tried:
            tried.add(count)
            yield _raised(failed.recipe, order[:count], attempt)


def remedies(runs: Iterable[Manifest]) -> dict[str, str]:
    """Return the digest of each artifact that did not pass → a recipe to try, as YAML, where there is one."""
    failed = [run for run in runs if run.gate.verdict != "PASS"]
    return {run.artifact_digest: text for run in failed if (text := suggestion(run))}


def suggestion(failed: Manifest) -> str | None:
    """Return a recipe to try, as YAML, with the third of its layers raised that hurts most; None where there is none.

    It needs the record only, so a report can print it anywhere.
    """
    if cannot_be_judged(failed):
        return None
    noise = _noise(failed)
    units = _units(noise)
    order = sorted(units, key=lambda unit: -max(noise[name] for name in unit))
    if not order or not _can_raise(failed.recipe):
        return None
    return as_yaml(_raised(failed.recipe, order[: max(1, len(order) // 3)], 1))


Unit = tuple[str, ...]
"""Layers that get more bits together: runtimes load them as one matrix."""


def ranked(failed: Manifest, plan: Plan) -> list[Unit]:
    """Return the layers that could get more bits, the most worthwhile first."""
    if not _can_raise(failed.recipe):
        return []
    noise = _noise(failed)
    match plan:
        case GgufPlan():
            size = {tensor.name: tensor.elements for tensor in plan.tensors if _grows(tensor.type)}
        case CheckpointPlan():
            size = {name: module.shape[0] * module.shape[1] for name, module in plan.quantized.items()}
    units = _units(name for name in noise if name in size)
    return sorted(units, key=lambda unit: -sum(noise[name] for name in unit) / sum(size[name] for name in unit))


def _noise(failed: Manifest) -> dict[str, float]:
    """Return layer → its noise to signal ratio."""
    return {layer.module: 10 ** (-layer.sqnr / 10) for layer in failed.verification.layers}


def _grows(kind: TensorType) -> bool:
    """Tell whether a GGUF's tensor of this type would get more bits."""
    block, size = BLOCKS[kind]
    raised_block, raised_size = BLOCKS[RAISED_TENSOR]
    return size / block < raised_size / raised_block


def _can_raise(recipe: Recipe) -> bool:
    return recipe.engine in ("quantgate", "llama.cpp") and recipe.export is None


def _units(names: Iterable[str]) -> list[Unit]:
    """Return the `names` that are of a decoder layer, those together that runtimes fuse, and all experts of a layer."""
    together: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parent, fused = name.rpartition(".")[0], fused_set(name)
        expert = EXPERTS.match(name)
        if NUMBER.search(name):
            together[expert[1] if expert else f"{parent} {fused}" if fused else name].append(name)
    return [tuple(unit) for unit in together.values()]


def _fitting(recipe: Recipe, order: list[Unit], model: Checkpoint, allowed: int) -> int:
    """Return how many of the first units can be raised within `allowed` bytes of tensors."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        fits = make_plan(_raised(recipe, order[:middle], 0), model).bytes_after <= allowed
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _raised_scheme(scheme: SchemeName) -> SchemeName | None:
    """Return the 8-bit scheme for the layers that `scheme` hurts most; None where they stay in 16 bits."""
    if SCHEMES[scheme].weights.bits >= 8:
        return None
    return "FP8_DYNAMIC" if SCHEMES[scheme].activations else "W8A16"


def _raised(recipe: Recipe, units: Iterable[Unit], attempt: int) -> Recipe:
    """Return `recipe` with more bits for `units`."""
    names = [name for unit in units for name in unit]
    quantize = recipe.quantize.model_dump(mode="json")
    if isinstance(recipe.quantize, Gguf):
        quantize["tensors"] = dict.fromkeys(_patterns(names), RAISED_TENSOR) | quantize["tensors"]
    else:
        scheme = _raised_scheme(recipe.quantize.scheme)
        patterns = [f"re:{pattern}" for pattern in _patterns(names)]
        if scheme:
            quantize["rules"] = [{"match": patterns, "scheme": scheme}, *quantize["rules"]]
        else:
            quantize["ignore"] = [*quantize["ignore"], *patterns]
    values = recipe.model_dump(mode="json")
    what = f"{RAISED_TENSOR if recipe.family == 'GGUF' else 'more bits'} for the layers that lost most"
    summary = f"{recipe.name} with {what}, after its gate failed."
    return Recipe.model_validate(
        {**values, "name": f"{recipe.name}-repair{attempt}", "summary": summary, "quantize": quantize}
    )


def _patterns(names: Iterable[str]) -> list[str]:
    """Return regular expressions that match exactly `names`: one for each kind of layer, with the layers' numbers."""
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        before, number, after = NUMBER.split(name, maxsplit=1)
        kinds[re.escape(before), re.escape(after)].append(int(number))
    return [
        f"{before}\\.({'|'.join(map(str, sorted(numbers)))})\\.{after}$" for (before, after), numbers in kinds.items()
    ]
