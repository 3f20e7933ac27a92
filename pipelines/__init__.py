"""quantgate: recipes that turn checkpoints into quantized artifacts, and a gate that lets only sound ones through.

    from pipelines import load_recipe, make_plan, quantize, evaluate, gate, publish, run, run_all

Importing this package loads neither torch nor transformers; a stage does when it runs.
"""

from pipelines.evaluate import evaluate
from pipelines.flow import run, run_all
from pipelines.gate import gate
from pipelines.plan_stage import make_plan
from pipelines.publish import publish
from pipelines.quantize import quantize
from pipelines.recipe import load_recipe

__all__ = ["evaluate", "gate", "load_recipe", "make_plan", "publish", "quantize", "run", "run_all"]
