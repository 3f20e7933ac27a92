"""The plan of a recipe for a checkpoint: what becomes of each module, decided before any weight is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.checkpoint.dtypes import check_dtype, choose_dtype, own_dtype
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.checkpoint.names import HEAD
from pipelines.checkpoint.quantized import refuse_quantized
from pipelines.checkpoint.tokenizer import check_templates
from pipelines.core.device import ComputeDtype, Dtype, default_device
from pipelines.core.errors import BadInput, Problem, refuse
from pipelines.planning.anatomy import Anatomy, check_complete, examine
from pipelines.planning.gguf import plan_tensors
from pipelines.planning.modules import plan_modules
from pipelines.planning.needs import lacks, machine_needs
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.planning.rehearsal import unreadable
from pipelines.recipe import advice
from pipelines.recipe.load import load_recipe
from pipelines.recipe.methods import Gguf
from pipelines.recipe.recipe import Recipe


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
    anatomy, problems = _examine(checkpoint)
    computes = choose_dtype(dtype, device or default_device(), checkpoint)
    plan, found = _plan(recipe, checkpoint, computes, anatomy)
    plan = plan.model_copy(update={"needs": machine_needs(plan, to)})
    refuse([*problems, *found, *lacks(plan.needs, plan)])
    refuse(_unreadable(plan, anatomy))
    return plan


def plan_elsewhere(recipe: Recipe, checkpoint: Checkpoint) -> Plan:
    """Return the plan of `recipe` for `checkpoint` on a machine that has room for it: it tells no needs.

    Raises:
        BadInput: everything that makes the recipe impossible for this model.
    """
    anatomy, problems = _examine(checkpoint)
    plan, found = _plan(recipe, checkpoint, own_dtype(checkpoint), anatomy)
    refuse([*problems, *found])
    refuse(_unreadable(plan, anatomy))
    return plan


def check_model(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that no recipe can be planned for.

    Raises:
        BadInput: everything that is wrong with it.
    """
    _, problems = _examine(checkpoint)
    refuse(problems)


def _examine(checkpoint: Checkpoint) -> tuple[Anatomy, list[Problem]]:
    """Return what transformers makes of `checkpoint`, and what is wrong with it for every recipe.

    Raises:
        BadInput: no recipe can do anything with it.
    """
    refuse_quantized(checkpoint)
    anatomy = examine(checkpoint)
    problems = [*check_complete(checkpoint, anatomy), *check_dtype(checkpoint), *check_templates(checkpoint)]
    if any(place.kind == "transposed" for place in anatomy.places.values()):
        what = f"is a {anatomy.architecture}, which keeps its weights transposed (Conv1D)"
        what += ": transformers gives no such module the scales of a quantized weight"
        refuse([*problems, Problem(str(checkpoint.folder), what, advice.NONE)])
    return anatomy, problems


def _plan(
    recipe: Recipe, checkpoint: Checkpoint, computes: ComputeDtype, anatomy: Anatomy
) -> tuple[Plan, tuple[Problem, ...]]:
    """Return the plan, but for what it needs of the machine, and what speaks against it.

    Raises:
        BadInput: no GGUF can be made of the checkpoint.
    """
    common: dict[str, Any] = {
        "recipe": recipe,
        "checkpoint": checkpoint,
        "family": anatomy.family,
        "head": anatomy.head or HEAD,
        "dtype": computes,
        "needs": (),
    }
    if isinstance(recipe.quantize, Gguf):
        file = plan_tensors(recipe, recipe.quantize, checkpoint)
        refuse(file.problems)
        return GgufPlan(**common, tensors=file.tensors), ()
    planned = plan_modules(recipe, checkpoint, anatomy)
    return CheckpointPlan(**common, modules=planned.modules, attentions=planned.attentions), planned.problems


READABLE = ("fp8", "int8-weight-only", "gguf-q8_0")
"""Recipes without data that are tried when transformers could not load what another one makes."""


def _unreadable(plan: Plan, anatomy: Anatomy) -> Iterator[Problem]:
    """Yield a problem if transformers, which the card names, could not load the artifact; name recipes that do."""
    if not isinstance(plan, CheckpointPlan) or not (why := unreadable(plan)):
        return
    others = [name for name in READABLE if name != plan.recipe.name and _is_readable(name, plan, anatomy)]
    what = f"transformers cannot load what it makes of {plan.checkpoint.label}: {why}"
    remedy = f"it could load what {' or '.join(others)} makes" if others else "no recipe here does better"
    yield Problem(f"recipe {plan.recipe.name}", what, remedy)


def _is_readable(name: str, plan: Plan, anatomy: Anatomy) -> bool:
    """Tell whether transformers could load what recipe `name` makes of the plan's checkpoint, or need not."""
    try:
        other, problems = _plan(load_recipe(name), plan.checkpoint, plan.dtype, anatomy)
    except BadInput:
        return False
    return not problems and not (isinstance(other, CheckpointPlan) and unreadable(other))
