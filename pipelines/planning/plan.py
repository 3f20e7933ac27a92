"""The plan of a run: what becomes of every module, and what it costs, from headers alone.

Nothing here imports torch where there is no GPU: `quantgate plan` answers in a second or two.
"""

import math
from functools import cached_property
from typing import Literal

from pydantic import Field

from pipelines.checkpoint.architecture import Family
from pipelines.checkpoint.headers import BYTES, Checkpoint, Layout
from pipelines.core.device import ComputeDtype
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import Form, Packing, layout
from pipelines.formats.schemes import SchemeName
from pipelines.planning.gguf import GgufTensor
from pipelines.recipe.methods import Gguf
from pipelines.recipe.recipe import Recipe


class Module(Frozen):
    """One linear module and what becomes of it."""

    name: str
    address: str
    """Name in transformers' model, where that has such a module; `name`, the checkpoint's, may be shorter or older."""
    shape: tuple[int, ...]
    """Shape of the weight: (output features, input features)."""
    dtype: str
    scheme: SchemeName | None
    """Scheme that the module is quantized to; None where it is kept as it is."""
    group_size: int | None = None
    packing: Packing = "compressed-tensors"
    """Layout in which the codes and scales are stored."""
    scales_input: bool = False
    """Whether smoothing factors are stored with the module, which multiply what it reads (modelopt)."""
    reason: str = ""
    """Reason why the module is kept, or a note on what was changed to quantize it; mostly empty."""
    bytes_before: int

    @property
    def quantized(self) -> bool:
        """Whether the module gets another number format."""
        return self.scheme is not None

    @property
    def parts(self) -> Layout:
        """Dtype and shape of the tensors that replace the weight, by suffix; empty when the module is kept."""
        form = self.form
        if form is None:
            return {}
        factors: Layout = {"pre_quant_scale": (self.dtype, self.shape[1:])} if self.scales_input else {}
        return {**layout(form.packing, form.scheme, self.shape, self.dtype, form.group_size), **factors}

    @property
    def form(self) -> Form | None:
        """Form in which the weight is stored; None when the module is kept."""
        return Form(packing=self.packing, scheme=self.scheme, group_size=self.group_size) if self.scheme else None

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors that the weight becomes."""
        return layout_bytes(self.parts) if self.scheme else self.bytes_before


Part = Literal["cache", "artifact"]
"""Place that takes disk space: the cache, or the one that the artifact is published to."""


class Need(Frozen):
    """The estimated need of a stage for memory or disk space, against what the machine has."""

    stage: str
    resource: Literal["memory", "disk"]
    where: str = ""
    needed: int
    available: int
    """Bytes that the machine has."""
    parts: dict[Part, int] = Field(default={})
    """Parts of the disk space that is needed, in bytes."""


class ModelPlan(Frozen):
    """The common part of both kinds of plans: a recipe applied to a checkpoint, immutable, printable, complete."""

    recipe: Recipe
    checkpoint: Checkpoint
    family: Family
    """Auto class of transformers that loads the model."""
    head: str
    """Name of the module of the model that makes logits."""
    dtype: ComputeDtype
    """Type that models compute in on this machine, where they calibrate, are verified and evaluated; nothing is stored
    in it."""
    needs: tuple[Need, ...]

    @property
    def bytes_before(self) -> int:
        """Bytes of all weights of the checkpoint."""
        return self.checkpoint.weight_bytes

    @property
    def bytes_after(self) -> int:
        """Bytes of all weights of the artifact."""
        raise NotImplementedError

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors of the artifact over the checkpoint's number of parameters."""
        return self.bytes_after * 8 / self.checkpoint.parameters


class CheckpointPlan(ModelPlan):
    """A plan whose artifact is a checkpoint: what becomes of each linear module."""

    modules: tuple[Module, ...]
    attentions: tuple[str, ...] = ()
    """Attention modules whose keys and values are cached in FP8."""

    @property
    def parts(self) -> tuple[Module, ...]:
        """Modules that the plan decides on."""
        return self.modules

    @cached_property
    def quantized(self) -> dict[str, Module]:
        """Modules that are quantized, by name."""
        return {module.name: module for module in self.modules if module.quantized}

    def stored_as(self, packing: Packing) -> "CheckpointPlan":
        """Return the same plan with its modules in another packing."""
        modules = (m.model_copy(update={"packing": packing}) if m.scheme else m for m in self.modules)
        fields = {name: getattr(self, name) for name in CheckpointPlan.model_fields}
        return CheckpointPlan(**{**fields, "modules": tuple(modules)})  # `model_copy` would take what is cached with it

    @property
    def form(self) -> Form:
        """Form of every quantized module, for a packing that has one for all."""
        forms = {module.form for module in self.quantized.values() if module.form}
        (form,) = forms
        return form

    @property
    def formats(self) -> tuple[tuple[SchemeName, int | None], ...]:
        """Schemes of the modules, each with its group sizes."""
        return tuple(dict.fromkeys((module.scheme, module.group_size) for module in self.modules if module.scheme))

    @property
    def quantized_weights(self) -> int:
        """Number of weights that are quantized."""
        return sum(math.prod(module.shape) for module in self.quantized.values())

    @property
    def bytes_after(self) -> int:
        changed = sum(module.bytes_after - module.bytes_before for module in self.modules)
        return self.bytes_before + changed + layout_bytes(self.cache_scales)

    @cached_property
    def stored(self) -> Layout:
        """Dtype and shape of every tensor that the artifact holds."""
        stored: Layout = {}
        for tensor in self.checkpoint.tensors:
            module = self.quantized.get(tensor.name.removesuffix(".weight"))
            if module and tensor.name.endswith(".weight"):
                stored |= {f"{module.name}.{suffix}": part for suffix, part in module.parts.items()}
            else:
                stored[tensor.name] = (tensor.dtype, tensor.shape)
        return stored | self.cache_scales

    @cached_property
    def cache_scales(self) -> Layout:
        """Dtype and shape of the tensors that a quantized KV cache adds, by full name."""
        dtype = next((module.dtype for module in self.modules), "BF16")
        return {f"{name}.{scale}": (dtype, (1,)) for name in self.attentions for scale in ("k_scale", "v_scale")}


class GgufPlan(ModelPlan):
    """A plan whose artifact is a GGUF: what becomes of each tensor."""

    tensors: tuple[GgufTensor, ...]

    @property
    def method(self) -> Gguf:
        """Settings that the recipe gives for the file."""
        assert isinstance(self.recipe.quantize, Gguf)
        return self.recipe.quantize

    @property
    def parts(self) -> tuple[GgufTensor, ...]:
        """Tensors that the plan decides on."""
        return self.tensors

    @property
    def quantized_weights(self) -> int:
        """Number of weights that are quantized."""
        return sum(tensor.elements for tensor in self.tensors if tensor.quantized)

    @property
    def bytes_after(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


Plan = CheckpointPlan | GgufPlan
"""Plan of one of two kinds, which is chosen once, when it is made."""


def layout_bytes(parts: Layout) -> int:
    """Return the bytes of all tensors of a layout."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in parts.values())
