"""The loop after a gate that failed: the recipes of remedy.py, one after the other, until one passes."""

from pathlib import Path

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.device import Dtype
from pipelines.core.errors import bad_input
from pipelines.evaluation.subject import Runtime
from pipelines.flow.journal import Run
from pipelines.flow.remedy import cannot_be_judged, recipes
from pipelines.flow.run import run
from pipelines.gating.decision import AT_CHANCE
from pipelines.reporting.record import Manifest


def repair(
    failed: Manifest,
    model: Checkpoint,
    budget: int | None = None,
    to: Path | str | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
) -> tuple[Run, ...]:
    """Take `model` through recipes with ever more bits for the layers that hurt most, until the gate says PASS or the
    `budget` is used up, and return all runs: the last is the one that passed, if any did.

    `budget` is in bytes of tensors; unless given, those of the artifact with every layer raised.

    Raises:
        BadInput: the model is another one, the run needs no repair, or nothing can be raised within the budget.
    """
    if model.digest != failed.model.digest:
        raise bad_input(model.folder, f"is not the model of that run ({failed.model.label})", "give it with --model")
    if failed.gate.verdict == "PASS":
        raise bad_input(f"run of {failed.recipe.name}", "has passed its gate", "give a run that failed")
    if cannot_be_judged(failed):
        remedy = "judge it by a suite that the baseline scores on: --set gate.suite=…"
        raise bad_input(f"run of {failed.recipe.name}", f"says nothing of the artifact: {AT_CHANCE}", remedy)
    runtime: Runtime = "vllm" if failed.evaluation.runtime.startswith("vllm") else "transformers"
    done: list[Run] = []
    for recipe in recipes(failed, model, budget):
        place = Path(to) / recipe.name if to else None
        done.append(run(recipe, model, place, device, runtime, dtype=dtype))
        if done[-1].verdict.verdict == "PASS":
            break
    if not done:
        most = f"within {budget} bytes" if budget else "in this recipe"
        raise bad_input(f"recipe {failed.recipe.name}", f"has no layer that could get more bits {most}")
    return tuple(done)
