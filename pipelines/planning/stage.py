"""The plan of a recipe for a checkpoint: what becomes of each module, decided before any weight is read."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.checkpoint.dtypes import check_dtype, choose_dtype
from pipelines.checkpoint.headers import Checkpoint, refuse_quantized
from pipelines.checkpoint.load import load_model
from pipelines.checkpoint.names import HEAD
from pipelines.core.device import ComputeDtype, Dtype, default_device
from pipelines.core.errors import BadInput, Problem, refuse
from pipelines.planning.anatomy import Anatomy, check_complete, examine
from pipelines.planning.gguf import GgufTensor, gguf_tensors
from pipelines.planning.modules import plan_modules
from pipelines.planning.needs import lacks, machine_needs
from pipelines.planning.plan import Module, Plan
from pipelines.planning.rehearsal import unreadable
from pipelines.recipe import advice
from pipelines.recipe.recipe import Gguf, Recipe, load_recipe


def make_plan(
    recipe: Recipe | str,
    model: Checkpoint | str | Path | None = None,
    to: Path | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
) -> Plan:
    """Decide, before any weight is read, what `recipe` does to `model` (the default model unless given), and what it
    computes in on `device` (a GPU where there is one, unless given) when `dtype` is asked for.

    Raises:
        BadInput: everything that makes the recipe impossible for this model or machine, at once.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model)
    refuse_quantized(checkpoint)
    anatomy = examine(checkpoint)
    problems = [*check_complete(checkpoint, anatomy), *check_dtype(checkpoint)]
    if any(place.kind == "transposed" for place in anatomy.places.values()):
        what = f"is a {anatomy.architecture}, which keeps its weights transposed (Conv1D)"
        problems.append(Problem(str(checkpoint.folder), what, advice.NONE))
        refuse(problems)
    computes = choose_dtype(dtype, device or default_device(), checkpoint)
    plan = _plan(recipe, checkpoint, computes, anatomy, problems)
    plan = plan.model_copy(update={"needs": machine_needs(plan, to)})
    problems += lacks(plan.needs, plan)
    refuse(problems)
    refuse(_unreadable(plan, anatomy))
    return plan


def _plan(
    recipe: Recipe, checkpoint: Checkpoint, computes: ComputeDtype, anatomy: Anatomy, problems: list[Problem]
) -> Plan:
    """The plan, but for what it needs of the machine."""
    tensors: tuple[GgufTensor, ...] = ()
    modules: tuple[Module, ...] = ()
    attentions: tuple[str, ...] = ()
    if isinstance(recipe.quantize, Gguf):
        tensors = gguf_tensors(recipe, checkpoint, problems)
        refuse(problems)
    else:
        planned = plan_modules(recipe, checkpoint, anatomy)
        problems += planned.problems
        modules, attentions = planned.modules, planned.attentions
    return Plan(
        recipe=recipe,
        checkpoint=checkpoint,
        family=anatomy.family,
        head=anatomy.head or HEAD,
        dtype=computes,
        modules=modules,
        attentions=attentions,
        tensors=tensors,
        needs=(),
    )


READABLE = ("fp8", "int8-weight-only", "gguf-q8_0")
"""Recipes without data that are tried when transformers could not load what another one makes."""


def _unreadable(plan: Plan, anatomy: Anatomy) -> Iterator[Problem]:
    """Yield that transformers, which the card names, could not load the artifact, and which recipes would do."""
    if not (why := unreadable(plan)):
        return
    others = [name for name in READABLE if name != plan.recipe.name and _is_readable(name, plan, anatomy)]
    what = f"transformers cannot load what it makes of {plan.checkpoint.label}: {why}"
    remedy = f"it could load what {' or '.join(others)} makes" if others else "no recipe here does better"
    yield Problem(f"recipe {plan.recipe.name}", what, remedy)


def _is_readable(name: str, plan: Plan, anatomy: Anatomy) -> bool:
    problems: list[Problem] = []
    try:
        other = _plan(load_recipe(name), plan.checkpoint, plan.dtype, anatomy, problems)
    except BadInput:
        return False
    return not problems and not unreadable(other)
