"""What engines cannot do: found by the plan, so that no engine stumbles over it in the middle of its work."""

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.names import FUSED, LAYER, layer_number
from pipelines.core.device import has_cuda
from pipelines.core.errors import Problem
from pipelines.planning.anatomy import Anatomy
from pipelines.planning.plan import Module
from pipelines.recipe.recipe import Recipe


def beyond_layers(recipe: Recipe, modules: list[Module], anatomy: Anatomy) -> list[Problem]:
    """What keeps a calibrated method from taking hidden states from one decoder layer to the next."""
    if not recipe.calibrated or recipe.engine != "quantgate":
        return []
    found = (LAYER.search(f"{module.address}.") for module in modules if module.quantized)
    stacks = {one.string[: one.end()].rstrip(".").rpartition(".")[0] for one in found if one}
    reasons = sorted({anatomy.trial.bound[stack] for stack in stacks if stack in anatomy.trial.bound})
    what = f"takes a text through one decoder layer after the other, and those of a {anatomy.architecture}"
    return [Problem(f"recipe {recipe.name}", f"{what} {why}", DATA_FREE) for why in reasons]


def beyond_engine(recipe: Recipe, checkpoint: Checkpoint, modules: list[Module]) -> list[Problem]:
    """What another project's engine would stumble over in the middle of its work."""
    method, why = recipe.method, ""
    odd = [module for module in modules if module.quantized and module.shape[0] % CLIPPED_TOGETHER]
    if method.engine == "gptqmodel" and method.method == "awq" and odd:
        why = f"GPTQModel's AWQ clips {CLIPPED_TOGETHER} output features at a time, and"
        why += f" {odd[0].name} has {odd[0].shape[0]}"
    if method.engine in KNOWN_MODELS:
        kind = checkpoint.config.get("model_type")
        left = [m.name for m in modules if not m.quantized and layer_number(m.name) >= 0]
        if kind not in KNOWN_MODELS[method.engine]:
            why = f"{method.engine} is no longer kept and is known to work for {', '.join(KNOWN_MODELS[method.engine])}"
            why += f" here, and {checkpoint.label} is a {kind} model"
        elif left:
            why = f"{method.engine} quantizes every linear module of every layer, and {left[0]} is to be kept"
    problems = [Problem(f"recipe {recipe.name}", why, INSTEAD[method.method])] if why else []
    if method.engine == "auto-gptq" and not getattr(method, "experimental_cpu", False) and not has_cuda():
        what = "auto-gptq quantizes on CUDA only, which this machine has not"
        remedy = "--experimental-cpu replaces two names inside it; recipes gptq-gptqmodel and int4-gptq need no GPU"
        problems.append(Problem(f"recipe {recipe.name}", what, remedy))
    return problems


KNOWN_MODELS: dict[str, tuple[str, ...]] = {
    "auto-gptq": ("llama", "mistral", "gemma"),
    "autoawq": ("llama", "mistral", "qwen2", "qwen3", "gemma"),
}
"""Model types that engines without maintainers were seen to quantize in full."""
INSTEAD = {"gptq": "recipe int4-gptq can", "awq": "recipe int4-awq can"}
CLIPPED_TOGETHER = 64
DATA_FREE = "use a recipe without calibration, like fp8 or int8-weight-only"


def scales_input(name: str, recipe: Recipe) -> bool:
    """Model Optimizer folds AWQ's factors into the norm that several modules read, SmoothQuant's into none."""
    method = recipe.method
    if method.engine != "modelopt":
        return False
    reads_norm = any(name.rpartition(".")[2] in fused for fused in FUSED)
    return method.schemes == ("W8A8_STATIC",) or (method.method == "awq" and not reads_norm)
