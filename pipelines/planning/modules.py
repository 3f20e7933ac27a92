"""A recipe applied to the linear modules of a checkpoint: patterns are matched, each module is decided on, the
decisions are checked, and settings that would suit the model better are tried before they are advised."""

from collections.abc import Iterator, Mapping, Sequence

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.names import HEAD, NOT_TEXT, layer_number
from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.planning.anatomy import Anatomy
from pipelines.planning.checks import Findings, Misfit, check
from pipelines.planning.decisions import Decision, decide
from pipelines.planning.patterns import decoder_layers, linear_modules, match_patterns
from pipelines.planning.plan import Module
from pipelines.recipe import advice
from pipelines.recipe.recipe import Recipe


class PlannedModules(Frozen):
    """The decisions on the modules of a checkpoint, and the objections to them."""

    modules: tuple[Module, ...]
    attentions: tuple[str, ...]
    """Attention modules whose keys and values are quantized."""
    problems: tuple[Problem, ...]


def plan_modules(recipe: Recipe, checkpoint: Checkpoint, anatomy: Anatomy) -> PlannedModules:
    """Return what `recipe`, which makes no GGUF, makes of the linear modules of `checkpoint`."""
    decisions, findings = _try(recipe, checkpoint, anatomy)
    modules = tuple(decision.module for decision in decisions)
    attentions = _attentions(recipe, checkpoint, modules)
    problems = [*findings.problems, *_advised(recipe, checkpoint, anatomy, decisions, findings)]
    if recipe.method.kv_cache and not attentions:
        problems.append(_no_attention(recipe, checkpoint))
    return PlannedModules(modules=modules, attentions=attentions, problems=tuple(problems))


def _try(recipe: Recipe, checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[tuple[Decision, ...], Findings]:
    """Match, decide and check."""
    linear = linear_modules(checkpoint, anatomy)
    matched = match_patterns(recipe, linear, checkpoint.label)
    decisions = decide(recipe, anatomy, linear, matched)
    return decisions, check(recipe, checkpoint, anatomy, linear, matched, decisions)


def _attentions(recipe: Recipe, checkpoint: Checkpoint, modules: tuple[Module, ...]) -> tuple[str, ...]:
    """Return the attention modules of the decoder layers, if the recipe quantizes their cache."""
    if recipe.method.kv_cache is None:
        return ()
    keys = (module.name for module in modules if module.name.endswith((".k_proj", ".qkv_proj", ".query_key_value")))
    layers = decoder_layers(checkpoint)
    inside = (name for name in keys if not NOT_TEXT.search(name) and layer_number(name) < layers)
    return tuple(sorted({name.rpartition(".")[0] for name in inside}))


def _no_attention(recipe: Recipe, checkpoint: Checkpoint) -> Problem:
    """Return the problem of a recipe that quantizes the cache of a model whose attention modules are unknown."""
    what = f"quantize.kv_cache is set, but no attention module of {checkpoint.label} is known"
    without = ({"quantize.kv_cache": None}, {"quantize.kv_cache": None, "calibrate": None})
    (way,) = advice.helpful(recipe, without, lambda _: True)  # without data unless something else needs it
    return Problem(f"recipe {recipe.name}", what, f"leave it out: {way}")


def _advised(
    recipe: Recipe, checkpoint: Checkpoint, anatomy: Anatomy, decisions: Sequence[Decision], findings: Findings
) -> Iterator[Problem]:
    """Yield why the recipe's settings do not suit the model, each with the settings that were tried and do."""
    for kind, sentences in findings.misfits.items():

        def suits(other: Recipe, kind: Misfit = kind) -> bool:
            _, tried = _try(other, checkpoint, anatomy)
            return kind not in tried.misfits and tried.complaints <= findings.complaints

        ways = advice.helpful(recipe, _attempts(kind, recipe, decisions, findings), suits)
        remedy = f"use {', or '.join(ways)}" if ways else advice.instead(suits)
        remedy = f"runtimes load them as one: {remedy}" if kind == "unequal" else remedy
        where = str(checkpoint.folder) if kind == "nothing" else f"recipe {recipe.name}"
        yield from (Problem(where, sentence, remedy) for sentence in sentences)


def _attempts(
    kind: Misfit, recipe: Recipe, decisions: Sequence[Decision], findings: Findings
) -> Iterator[advice.Settings]:
    """Yield settings that may make a recipe suit a model."""
    ignore = recipe.method.ignore
    match kind:
        case "outside":
            yield {"quantize.ignore": [*ignore, *findings.outside]}
        case "unequal":
            yield {"quantize.on_indivisible": "shrink"}
            yield from advice.widened(recipe, findings.dividing_rules, findings.fused_patterns)
            yield {"quantize.ignore": [pattern for pattern in ignore if pattern not in findings.dividing_ignores]}
            yield {"quantize.ignore": [*dict.fromkeys((*ignore, *findings.fused_patterns))]}
        case "inseparable":
            yield {"quantize.ignore": [*ignore, r"re:.*\.experts\."]}
        case "nothing":
            yield {"quantize.ignore": [HEAD]}
            yield {"quantize.on_indivisible": "shrink"}
        case "indivisible" | "unstorable":
            yield from advice.regrouped(recipe, _grouped_widths(decisions))
            yield from ({"quantize.on_indivisible": action} for action in ("shrink", "skip"))
            yield {"export": "compressed-tensors"}


def _grouped_widths(decisions: Sequence[Decision]) -> Mapping[int, set[int]]:
    """Return what the group size of each rule, or of `advice.MAIN`, has to divide."""
    widths: dict[int, set[int]] = {}
    for decision in decisions:
        if decision.widths:
            widths.setdefault(decision.rule, set()).update(decision.widths)
    return widths
