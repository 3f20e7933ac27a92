"""quantgate: recipes that turn checkpoints into quantized artifacts, and a gate that lets only sound ones through.

    from pipelines import load_recipe, make_plan, quantize, evaluate, gate, publish, run, run_all

Importing this package loads neither torch nor transformers; a stage does when it runs.
"""

from pipelines.evaluation.stage import evaluate
from pipelines.flow.run import run, run_all
from pipelines.gating.gate import gate
from pipelines.planning.stage import make_plan
from pipelines.publishing.stage import publish
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe

__all__ = ["evaluate", "gate", "load_recipe", "make_plan", "publish", "quantize", "run", "run_all"]
