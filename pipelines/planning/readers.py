"""The programs that load artifacts, and the limits of transformers with quantized checkpoints, as data.

Seen in transformers 5.15 to 5.17. Of a mixture whose experts a checkpoint stores one by one, it makes one tensor for
all experts of a layer while it loads, and dequantizes them for that. It does so by one description for all layers, and
knows weights in FP8 with a scale for each row, and packed ones whose scales need no more than themselves. A whole
number of 8 bits, a zero point, a scale of the whole tensor or of a block stops it, or is left out in silence.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import Packing
from pipelines.formats.schemes import SCHEMES, SchemeName
from pipelines.serving.where import serves

if TYPE_CHECKING:
    from pipelines.checkpoint.headers import Checkpoint
    from pipelines.planning.anatomy import Anatomy
    from pipelines.planning.plan import Module
    from pipelines.recipe.recipe import Recipe
from pipelines.checkpoint.names import ONE_BY_ONE

Program = Literal["transformers", "vLLM", "TensorRT-LLM", "llama.cpp"]


class Home(Frozen):
    """The program that loads the checkpoints of a packing, and the environment it lives in."""

    program: Program
    environment: str | None = None
    """Name of the environment (`pipelines.environments.isolated`) that has the program; None where that is ours."""
    absent: str = ""
    """Sentence on what has to load the artifact where the program is not here."""


_GPTQMODEL = Home(
    program="transformers",
    environment="gptqmodel",
    absent="transformers needs the package gptqmodel for it, which `quantgate env make gptqmodel` installs; vLLM and "
    "SGLang need nothing else",
)
HOMES: dict[Packing, Home] = {
    "compressed-tensors": Home(program="transformers"),
    "bitsandbytes": Home(program="transformers"),
    "gptq": _GPTQMODEL,
    "awq": _GPTQMODEL,
    "modelopt": Home(program="vLLM", absent="vLLM, SGLang or TensorRT-LLM has to load it, on a GPU"),
}
"""Packing → program that loads such an artifact before it counts as verified."""


def home(recipe: "Recipe") -> Home:
    """Return what loads the artifacts of `recipe`, which makes no GGUF."""
    if recipe.packing == "modelopt" and not serves("vllm", recipe.packing, [(recipe.schemes[0], None)]):
        return Home(program="TensorRT-LLM", absent="TensorRT-LLM has to load it, on a GPU")
    return HOMES[recipe.packing]


READABLE_EXPERTS: dict[Packing, tuple[SchemeName, ...]] = {
    "compressed-tensors": tuple(name for name, scheme in SCHEMES.items() if scheme.experts_are_read),
    "bitsandbytes": (),
    "gptq": (),
    "awq": (),
}
"""Packing → schemes that transformers reads experts in; it is not asked to read those of other packings."""
INSTEAD = "recipe fp8 can"


def unknown(unexpected: Iterable[str]) -> list[str]:
    """Return the tensors among those that transformers does not expect that it should: it rounds no inputs of experts,
    and need not know their scales."""
    return sorted(name for name in unexpected if not (ONE_BY_ONE.match(name) and name.endswith(".input_scale")))


def misread(recipe: "Recipe", checkpoint: "Checkpoint", modules: list["Module"], layers: int) -> list[Problem]:
    """Return why transformers would misread the artifact with these `modules`, of which it never loads those of decoder
    layers from number `layers` on."""
    from pipelines.checkpoint.names import layer_number

    loaded = [module for module in modules if layer_number(module.name) < layers]
    reasons = (_experts_misread(recipe.packing, loaded), _types_clash(checkpoint, loaded))
    return [Problem(f"recipe {recipe.name}", why, INSTEAD) for why in reasons if why]


def uncomputable(recipe: "Recipe", checkpoint: "Checkpoint", anatomy: "Anatomy") -> list[Problem]:
    """Return why transformers, where it is to load the artifact, could not compute with it in the type of `checkpoint`,
    by the trial of its model."""
    from pipelines.checkpoint.dtypes import own_dtype

    trial, file = anatomy.trial, str(checkpoint.folder / "config.json")
    if trial.refused:
        what = f"transformers cannot compute with the model that it makes: {trial.refused}"
        return [Problem(file, what, "mend it, or give another model")]
    what, own = "", own_dtype(checkpoint)
    if home(recipe).program == "transformers" and trial.clash:
        what = f"transformers cannot compute with the model in {own}: {trial.clash}"
    elif recipe.packing == "compressed-tensors" and trial.retyped:
        what = f"the model replaces {trial.retyped[0]} by one in {own} while it computes"
        what += ", and transformers keeps the type of that in a quantized one"
    renamed = any(place.module != name.rpartition(".")[0] for name, place in anatomy.places.items())
    remedy = 'set "dtype": "float32" in it'
    if renamed:  # then transformers leaves what is kept as it is stored
        remedy += ", and store the weights in float32"
    return [Problem(file, what, remedy)] if what else []


def _experts_misread(packing: Packing, modules: list["Module"]) -> str:
    """Return why transformers would misread the experts; empty if it would not."""
    experts = [module for module in modules if ONE_BY_ONE.match(module.name)]
    readable = READABLE_EXPERTS.get(packing)
    if not experts or readable is None:
        return ""
    found = {(module.scheme, module.group_size) for module in experts}
    quantized = {scheme for scheme, _ in found if scheme}
    deciding = quantized or {module.scheme for module in modules if module.scheme}
    if beyond := sorted(quantized - {*readable}):
        return f"transformers does not read experts in {beyond[0]} from {_a(packing)} checkpoint"
    if len(found - {(None, None)}) > 1:
        formats = ", ".join(f"{scheme} {size or ''}".strip() for scheme, size in sorted(found, key=str) if scheme)
        return f"transformers reads all experts in one format, and these would be in {formats}"
    together = packing != "compressed-tensors" or all(SCHEMES[scheme].reads_kept_experts for scheme in deciding)
    if (None, None) in found and not together:
        kept = next(module.name for module in experts if not module.scheme)
        return f"transformers does not read experts that are kept, like {kept}, beside {', '.join(sorted(deciding))}"
    return ""


def _types_clash(checkpoint: "Checkpoint", modules: list["Module"]) -> str:
    """Return why transformers would multiply numbers of two types; empty if it would not."""
    from pipelines.checkpoint.names import NOT_TEXT

    schemes = {module.scheme for module in modules if module.scheme}
    stored = {module.dtype for module in modules} - {"BF16"}
    if not stored or not any(SCHEMES[scheme].storage.read_as_bfloat16 for scheme in schemes):
        return ""
    if not any(NOT_TEXT.search(module.name) or module.name != module.address for module in modules):
        return ""
    what = f"and of {checkpoint.label} leaves others as they are stored, {min(stored)}, for it renames them"
    return f"transformers computes with FP4 weights in bfloat16, {what}"


def _a(packing: Packing) -> str:
    """Return the name of a packing with its article."""
    return f"{'an' if packing == 'awq' else 'a'} {packing}"


def own_type(quantization: Mapping[str, Any]) -> dict[str, str]:
    """Return what `config.json` has to say of a checkpoint's type where `quantization`, its `quantization_config`,
    leaves transformers no choice."""
    found = {group.get("format") for group in quantization.get("config_groups", {}).values()}
    forced = {scheme.format for scheme in SCHEMES.values() if scheme.storage.read_as_bfloat16}
    return {"dtype": "bfloat16"} if found & forced else {}
