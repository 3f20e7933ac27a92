"""The objections to the decisions on a checkpoint's modules; nothing is decided here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.names import EXPERTS, layer_number
from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import cannot_hold
from pipelines.planning.anatomy import Anatomy
from pipelines.planning.decisions import Decision, unequal_sets
from pipelines.planning.engines import beyond_engine, beyond_layers
from pipelines.planning.patterns import LinearModules, Matches
from pipelines.planning.plan import Module
from pipelines.planning.readers import misread, uncomputable
from pipelines.recipe.recipe import Recipe

Misfit = Literal["indivisible", "outside", "unequal", "inseparable", "unstorable", "nothing"]
"""Kind of thing that speaks against a recipe and that other settings of it may mend."""
OUTSIDE = "outside the decoder layers, which is all that calibrated methods quantize"


class Findings(Frozen):
    """The objections to the decisions on a checkpoint's modules."""

    problems: tuple[Problem, ...]
    """Problems whose remedy is known."""
    misfits: dict[Misfit, tuple[str, ...]]
    """Sentences on what other settings may mend, by kind; kinds without any are left out."""
    outside: tuple[str, ...]
    """Quantized modules outside of the decoder layers, where the method cannot reach them."""
    fused_patterns: tuple[str, ...]
    """Patterns that mean all modules of the fused sets which are treated differently."""
    dividing_ignores: tuple[str, ...]
    """Patterns of `ignore` that mean modules of the fused sets which are treated differently."""
    dividing_rules: tuple[int, ...]
    """Numbers of the rules that mean modules of the fused sets which are treated differently."""

    @property
    def complaints(self) -> set[str]:
        """Sentences that speak against the decisions."""
        return {
            *(problem.what for problem in self.problems),
            *(sentence for sentences in self.misfits.values() for sentence in sentences),
        }


def check(
    recipe: Recipe,
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    linear: LinearModules,
    matched: Matches,
    decisions: Sequence[Decision],
) -> Findings:
    """Return what speaks against `decisions`, which were made for `linear` modules by the patterns `matched`."""
    modules = [decision.module for decision in decisions]
    outside = [m.name for m in modules if m.quantized and layer_number(m.name) < 0] if recipe.calibrated else []
    unequal = unequal_sets(modules)
    problems = (
        *matched.problems,
        *(() if unequal else misread(recipe, checkpoint, modules, linear.layers)),
        *uncomputable(recipe, checkpoint, anatomy),
        *beyond_layers(recipe, modules, anatomy),
        *beyond_engine(recipe, checkpoint, modules),
    )
    misfits: dict[Misfit, tuple[str, ...]] = {
        "indivisible": tuple(_indivisible(decisions)),
        "outside": (f"{', '.join(outside)} is {OUTSIDE}",) if outside else (),
        "unequal": (f"{next(iter(unequal))} are not treated alike ({len(unequal)} such groups)",) if unequal else (),
    }
    quantized = [module for module in modules if module.quantized]
    misfits["inseparable"] = tuple(_inseparable(anatomy, linear, quantized))
    if not misfits["indivisible"] and (why := _cannot_hold(recipe, quantized)):
        misfits["unstorable"] = (why,)
    if not problems and not any(misfits.values()) and not quantized:
        misfits["nothing"] = ("has no linear module left to quantize",)
    divided = {module.name for together in unequal.values() for module in together}
    return Findings(
        problems=problems,
        misfits={kind: sentences for kind, sentences in misfits.items() if sentences},
        outside=tuple(outside),
        fused_patterns=_patterns_of_all(unequal),
        dividing_ignores=tuple(pattern for pattern, names in matched.ignored.items() if names & divided),
        dividing_rules=tuple(number for number, names in enumerate(matched.ruled) if names & divided),
    )


def _indivisible(decisions: Sequence[Decision]) -> Iterator[str]:
    """Yield a sentence for each group size and each width that it does not divide."""
    affected: dict[tuple[int, int], list[str]] = {}
    for decision in decisions:
        if found := decision.indivisible:
            affected.setdefault((found.group_size, found.width), []).append(decision.module.name)
    for (size, width), names in sorted(affected.items()):
        who = names[0] if len(names) == 1 else f"{len(names)} modules, like {names[0]}"
        yield f"group size {size} does not divide the width {width} of {who}"


def _inseparable(anatomy: Anatomy, linear: LinearModules, quantized: Sequence[Module]) -> Iterator[str]:
    """Yield a sentence if experts would be quantized one by one whose module cannot be taken apart."""
    together = sorted({anatomy.places[linear.weights[module.name].name].module for module in quantized})
    if found := [name for name in together if name in anatomy.inseparable]:
        yield f"quantized experts have to be modules of their own, and {found[0]} cannot be taken apart into such"


def _cannot_hold(recipe: Recipe, quantized: Sequence[Module]) -> str | None:
    """Return why the recipe's packing cannot hold the `quantized` modules; None if it can."""
    stored = {m.name: (m.scheme, m.group_size, m.shape) for m in quantized if m.scheme}
    return cannot_hold(recipe.packing, stored)


def _patterns_of_all(unequal: Mapping[str, Sequence[Module]]) -> tuple[str, ...]:
    """Return patterns that mean all modules of the `unequal` sets."""
    names = [module.name for together in unequal.values() for module in together]
    if len(unequal) > 1:
        names = [name if EXPERTS.match(name) else name.rpartition(".")[2] for name in names]
    return tuple(dict.fromkeys(r"re:.*\.experts\." if EXPERTS.match(name) else name for name in names))
