"""quantgate: recipes that turn checkpoints into quantized artifacts, and a gate that lets only sound ones through.

    from pipelines import load_recipe, make_plan, quantize, evaluate, gate, publish, run, run_all

Importing this package imports nothing else: each of these functions is looked up in its module when it is first asked
for. torch and transformers are imported by the stages that need them, when they run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.evaluation.stage import evaluate
    from pipelines.flow.run import run, run_all
    from pipelines.gating.gate import gate
    from pipelines.planning.stage import make_plan
    from pipelines.publishing.stage import publish
    from pipelines.quantization.stage import quantize
    from pipelines.recipe.load import load_recipe

__all__ = ["evaluate", "gate", "load_recipe", "make_plan", "publish", "quantize", "run", "run_all"]

MODULES = {
    "evaluate": "evaluation.stage",
    "gate": "gating.gate",
    "load_recipe": "recipe.load",
    "make_plan": "planning.stage",
    "publish": "publishing.stage",
    "quantize": "quantization.stage",
    "run": "flow.run",
    "run_all": "flow.run",
}
"""Public function → its module, below this package."""


def __getattr__(name: str) -> Any:
    """Return the public function `name`."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
