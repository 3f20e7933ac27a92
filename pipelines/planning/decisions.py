"""The decision on each linear module of a checkpoint: kept or quantized, to which scheme, in which groups."""

from collections.abc import Sequence

from pipelines.checkpoint.headers import FLOAT, TensorInfo
from pipelines.checkpoint.names import EXPERTS, NOT_TEXT, ROUTER, fused_set, layer_number
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.schemes import SCHEMES, SMALLEST_GROUP, SchemeName
from pipelines.planning.anatomy import Anatomy, Place
from pipelines.planning.engines import scales_input
from pipelines.planning.patterns import LinearModules, Matches
from pipelines.planning.plan import Module
from pipelines.recipe import advice
from pipelines.recipe.methods import Method, Rule
from pipelines.recipe.recipe import Recipe


class Indivisible(Frozen):
    """A group size, and a width that it does not divide."""

    group_size: int
    width: int


class Decision(Frozen):
    """The decision on one module, and the part of the recipe that it is due to."""

    module: Module
    rule: int
    """Number of the rule that decided on the module, or `advice.MAIN`."""
    widths: tuple[int, ...] = ()
    """Sides of the weight that the group size has to divide; none where it is kept."""
    indivisible: Indivisible | None = None
    """Group size and width for which the module cannot be quantized as the recipe asks; None where it can."""


class _Grouping(Frozen):
    """The scheme and the group size of one module."""

    scheme: SchemeName | None
    group_size: int | None
    reason: str = ""
    """Reason why scheme and group size are not those that the recipe asks for; empty if they are."""
    indivisible: Indivisible | None = None


def decide(recipe: Recipe, anatomy: Anatomy, modules: LinearModules, matched: Matches) -> tuple[Decision, ...]:
    """Return the decision on each of `modules`, sorted by name."""
    ignored = frozenset[str]().union(*matched.ignored.values())
    tied = modules.head if anatomy.head_is_embedding else None
    decisions = []
    for name, weight in sorted(modules.weights.items()):
        rule = next((number for number, names in enumerate(matched.ruled) if name in names), advice.MAIN)
        place = anatomy.places[weight.name]
        kept = "ignored by the recipe" if name in ignored else _kept(name, weight, modules.layers, tied)
        decisions.append(_decision(recipe, name, weight, place, rule, kept or _unfit(place, anatomy)))
    return _shrunk_together(decisions)


def _decision(recipe: Recipe, name: str, weight: TensorInfo, place: Place, rule: int, kept: str) -> Decision:
    """Return the decision on module `name`, which is kept for the reason `kept` unless that is empty."""
    target = recipe.method if rule == advice.MAIN else recipe.method.rules[rule]
    widths = _grouped_sides(weight.shape, target.scheme)
    chosen = _Grouping(scheme=None, group_size=None, reason=kept) if kept else _grouping(recipe.method, target, widths)
    quantized = chosen.scheme is not None
    module = Module(
        name=name,
        address=name if place.kind == "experts" else place.module,
        shape=weight.shape,
        dtype=weight.dtype,
        scheme=chosen.scheme,
        group_size=chosen.group_size,
        packing=recipe.packing if quantized else "compressed-tensors",
        scales_input=quantized and scales_input(name, recipe),
        reason=chosen.reason,
        bytes_before=weight.bytes,
    )
    sized = bool(target.group_size) and not kept
    return Decision(module=module, rule=rule, widths=widths if sized else (), indivisible=chosen.indivisible)


def _grouping(method: Method, target: Method | Rule, widths: tuple[int, ...]) -> _Grouping:
    """Return the scheme of `target` with a group size that divides `widths`, as far as `method` says how to get one."""
    chosen = SCHEMES[target.scheme]
    size = target.group_size or chosen.weights.group_size
    odd = next((width for width in widths if size and width % size), None)
    if not size or odd is None:
        return _Grouping(scheme=target.scheme, group_size=size)
    why = f"{size} does not divide {odd}"
    divisor = advice.divisor(widths, size)
    if method.on_indivisible == "shrink" and chosen.resizable and divisor >= SMALLEST_GROUP:
        return _Grouping(scheme=target.scheme, group_size=divisor, reason=f"group size {divisor}: {why}")
    if method.on_indivisible == "error":
        return _Grouping(scheme=target.scheme, group_size=size, indivisible=Indivisible(group_size=size, width=odd))
    return _Grouping(scheme=None, group_size=None, reason=f"group size {why}")


def _grouped_sides(shape: tuple[int, ...], scheme: SchemeName) -> tuple[int, ...]:
    """Return the sides of a weight that a group size has to divide."""
    return shape if SCHEMES[scheme].is_block else shape[1:]


def _kept(name: str, weight: TensorInfo, layers: int, tied: str | None) -> str:
    """Return why a module that no pattern means is kept; empty when it is not."""
    if name == tied:
        return "is tied to the embedding"
    if ROUTER.search(name):
        return "routes tokens to experts"
    if NOT_TEXT.search(name):
        return "is not part of the language model"
    if layer_number(name) >= layers:
        return "predicts further tokens (MTP)"
    if len(weight.shape) != 2:
        return "experts stored as one tensor"
    return "" if weight.dtype in FLOAT else f"is {weight.dtype}"


def _unfit(place: Place, anatomy: Anatomy) -> str:
    """Return why transformers could not take a quantized weight at `place`; empty if it could."""
    if place.kind not in ("linear", "experts"):
        return "is no linear module of its model"
    return "its model reads the weight itself" if place.module in anatomy.trial.unused else ""


def _shrunk_together(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Return `decisions`, with the smallest group size of a set for all of the set where one was shrunk to it."""
    smallest: dict[str, Module] = {}
    for together in fused_sets([decision.module for decision in decisions]).values():
        if len({module.scheme for module in together}) == 1 and together[0].group_size:
            least = min(together, key=lambda module: module.group_size or 0)
            smallest |= {m.name: least for m in together if m.group_size != least.group_size and least.reason}
    return tuple(
        decision.model_copy(update={"module": _shrunk_to(decision.module, smallest.get(decision.module.name))})
        for decision in decisions
    )


def _shrunk_to(module: Module, least: Module | None) -> Module:
    """Return `module` with the group size of `least`, if there is one."""
    if least is None:
        return module
    return module.model_copy(update={"group_size": least.group_size, "reason": least.reason})


def fused_sets(modules: Sequence[Module]) -> dict[str, list[Module]]:
    """Return the modules of each set that vLLM loads as one matrix or as one tensor of experts, by a name for it."""
    sets: dict[str, list[Module]] = {}
    for module in modules:
        if fused := fused_set(module.name):
            sets.setdefault(f"{', '.join(fused)} of {module.name.rpartition('.')[0]}", []).append(module)
        if experts := EXPERTS.match(module.name):
            sets.setdefault(f"all experts of {experts[1]}", []).append(module)
    return sets


def unequal_sets(modules: Sequence[Module]) -> dict[str, list[Module]]:
    """Return the fused sets whose modules get different schemes or group sizes, which vLLM refuses."""
    sets = fused_sets(modules)
    return {name: some for name, some in sets.items() if len({(m.scheme, m.group_size) for m in some}) > 1}
