"""What will become of every module, and what it will cost: from headers alone, before any weight is read.

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
from pipelines.recipe.recipe import Recipe


class Module(Frozen):
    """One linear module and what becomes of it."""

    name: str
    address: str
    """Its name in transformers' model, where that has such a module; that of the checkpoint may be shorter or older."""
    shape: tuple[int, ...]
    """(output features, input features)"""
    dtype: str
    scheme: SchemeName | None
    """None: kept as it is."""
    group_size: int | None = None
    packing: Packing = "compressed-tensors"
    """How its codes and scales are stored."""
    scales_input: bool = False
    """Whether smoothing factors are stored with it, which multiply what it reads (modelopt)."""
    reason: str = ""
    """Why it is kept, or what was changed to quantize it."""
    bytes_before: int

    @property
    def quantized(self) -> bool:
        return self.scheme is not None

    @property
    def parts(self) -> Layout:
        """The tensors that replace its weight; none when it is kept."""
        form = self.form
        if form is None:
            return {}
        factors: Layout = {"pre_quant_scale": (self.dtype, self.shape[1:])} if self.scales_input else {}
        return {**layout(form.packing, form.scheme, self.shape, self.dtype, form.group_size), **factors}

    @property
    def form(self) -> Form | None:
        """How its weight is stored; None when it is kept."""
        return Form(packing=self.packing, scheme=self.scheme, group_size=self.group_size) if self.scheme else None

    @property
    def bytes_after(self) -> int:
        return layout_bytes(self.parts) if self.scheme else self.bytes_before


Part = Literal["cache", "artifact"]
"""What takes disk space: of the cache, and where the artifact is published."""


class Need(Frozen):
    """What a stage is estimated to need of something, against what the machine has."""

    stage: str
    resource: Literal["memory", "disk"]
    where: str = ""
    needed: int
    available: int
    """Bytes."""
    parts: dict[Part, int] = Field(default={})
    """Of disk: what `needed` is made of."""


class Plan(Frozen):
    """A recipe applied to a checkpoint: immutable, printable, complete."""

    recipe: Recipe
    checkpoint: Checkpoint
    family: Family
    """The class of transformers that loads the model."""
    head: str
    """The module of that model which makes logits."""
    dtype: ComputeDtype
    """What models compute in on this machine, where they calibrate, are verified and evaluated; nothing is stored in
    it."""
    modules: tuple[Module, ...]
    attentions: tuple[str, ...] = ()
    """Attention modules whose keys and values are cached in FP8."""
    tensors: tuple[GgufTensor, ...] = ()
    """Of a GGUF, which has no modules."""
    needs: tuple[Need, ...]

    @cached_property
    def quantized(self) -> dict[str, Module]:
        return {module.name: module for module in self.modules if module.quantized}

    def stored_as(self, packing: Packing) -> "Plan":
        """The same plan, with its modules in another packing."""
        modules = (m.model_copy(update={"packing": packing}) if m.scheme else m for m in self.modules)
        fields = {name: getattr(self, name) for name in Plan.model_fields}
        return Plan(**{**fields, "modules": tuple(modules)})  # `model_copy` would take what is cached with it

    @property
    def form(self) -> Form:
        """That of every quantized module, in a packing that has one for all."""
        forms = {module.form for module in self.quantized.values() if module.form}
        (form,) = forms
        return form

    @property
    def formats(self) -> tuple[tuple[SchemeName, int | None], ...]:
        """The schemes of its modules, each with its group sizes."""
        return tuple(dict.fromkeys((module.scheme, module.group_size) for module in self.modules if module.scheme))

    @property
    def bytes_before(self) -> int:
        """Of all weights."""
        return self.checkpoint.weight_bytes

    @property
    def bytes_after(self) -> int:
        if self.tensors:
            return sum(tensor.bytes for tensor in self.tensors)
        changed = sum(module.bytes_after - module.bytes_before for module in self.modules)
        return self.bytes_before + changed + layout_bytes(self.cache_scales)

    @cached_property
    def stored(self) -> Layout:
        """Every tensor that the artifact holds: dtype and shape."""
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
        """The tensors that a quantized KV cache adds, by full name."""
        dtype = next((module.dtype for module in self.modules), "BF16")
        return {f"{name}.{scale}": (dtype, (1,)) for name in self.attentions for scale in ("k_scale", "v_scale")}

    @property
    def bits_per_weight(self) -> float:
        """Of the whole artifact: every byte of every tensor, over the source's parameters."""
        return self.bytes_after * 8 / self.checkpoint.parameters


def layout_bytes(parts: Layout) -> int:
    """Of all tensors of a layout."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in parts.values())
