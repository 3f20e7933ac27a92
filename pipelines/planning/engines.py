"""The limits of the engine of a recipe with a model, found before it would stumble in the middle of its work."""

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.names import LAYER, fused_set, layer_number
from pipelines.core.device import has_cuda
from pipelines.core.errors import Problem
from pipelines.environments.engines import ENGINES, OtherEngine
from pipelines.planning.anatomy import Anatomy
from pipelines.planning.plan import Module
from pipelines.recipe.recipe import Recipe


def beyond_layers(recipe: Recipe, modules: list[Module], anatomy: Anatomy) -> list[Problem]:
    """Return what keeps a calibrated method from taking hidden states from one decoder layer to the next."""
    if not recipe.calibrated or recipe.engine != "quantgate":
        return []
    found = (LAYER.search(f"{module.address}.") for module in modules if module.quantized)
    stacks = {one.string[: one.end()].rstrip(".").rpartition(".")[0] for one in found if one}
    reasons = sorted({anatomy.trial.bound[stack] for stack in stacks if stack in anatomy.trial.bound})
    what = f"takes a text through one decoder layer after the other, and those of a {anatomy.architecture}"
    return [Problem(f"recipe {recipe.name}", f"{what} {why}", DATA_FREE) for why in reasons]


def beyond_engine(recipe: Recipe, checkpoint: Checkpoint, modules: list[Module]) -> list[Problem]:
    """Return problems that another project's engine would stumble over in the middle of its work."""
    method = recipe.method
    if method.engine == "quantgate":
        return []
    engine, where = ENGINES[method.engine], f"recipe {recipe.name}"
    reasons = [_unknown_model(engine, checkpoint, modules) or _clipped_unevenly(engine, method.method, modules)]
    problems = [Problem(where, why, INSTEAD[method.method]) for why in reasons if why]
    if engine.without_cuda and not getattr(method, "experimental_cpu", False) and not has_cuda():
        what = f"{engine.name} quantizes on CUDA only, which this machine has not"
        problems.append(Problem(where, what, engine.without_cuda))
    return problems


def _clipped_unevenly(engine: OtherEngine, method: str, modules: list[Module]) -> str:
    """Return a sentence on a module whose output features the engine cannot clip together; empty if there is none."""
    together = engine.clips_together.get(method, 1)
    odd = [module for module in modules if module.quantized and module.shape[0] % together]
    if not odd:
        return ""
    what = f"{engine.title}'s {method.upper()} clips {together} output features at a time"
    return f"{what}, and {odd[0].name} has {odd[0].shape[0]}"


def _unknown_model(engine: OtherEngine, checkpoint: Checkpoint, modules: list[Module]) -> str:
    """Return why an engine without maintainers is not trusted with the model; empty if it is."""
    if not engine.known_models:
        return ""
    kind = checkpoint.config.get("model_type")
    if kind not in engine.known_models:
        why = f"{engine.name} is no longer kept and is known to work for {', '.join(engine.known_models)}"
        return f"{why} here, and {checkpoint.label} is a {kind} model"
    left = [module.name for module in modules if not module.quantized and layer_number(module.name) >= 0]
    return f"{engine.name} quantizes every linear module of every layer, and {left[0]} is to be kept" if left else ""


INSTEAD = {"gptq": "recipe int4-gptq can", "awq": "recipe int4-awq can"}
"""Method → the recipe of ours that does the same."""
DATA_FREE = "use a recipe without calibration, like fp8 or int8-weight-only"


def scales_input(name: str, recipe: Recipe) -> bool:
    """Tell whether smoothing factors are stored with module `name`: Model Optimizer folds AWQ's factors into the norm
    that several modules read, SmoothQuant's into none."""
    method = recipe.method
    if method.engine == "quantgate" or not ENGINES[method.engine].stores_factors:
        return False
    reads_norm = bool(fused_set(name))
    return method.schemes == ("W8A8_STATIC",) or (method.method == "awq" and not reads_norm)
