"""The terms in which a number format describes itself: frozen data, whose fields hold its arithmetic as functions.

No torch here, and none at the top of a number format's module: planning reads descriptions and computes nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pipelines.checkpoint.headers import Layout
from pipelines.core.strict_yaml import Frozen

if TYPE_CHECKING:
    import torch

Rounder = tuple[Any, ...]
"""Function that rounds activations, with the arguments that follow these: equal ones round alike."""
Kind = Literal["int", "float", "normal"]
"""Spacing of the numbers that codes stand for; `normal`: like the quantiles of a normal distribution."""
Strategy = Literal["tensor", "channel", "token", "group", "tensor_group", "block"]
"""Name that compressed-tensors gives the elements that share a scale."""


@dataclasses.dataclass(frozen=True)
class Element:
    """The numbers that one code can stand for, in units of a step."""

    title: str
    """Name in docs and model cards, such as `FP8 (E4M3)`."""
    kind: Kind
    bits: int
    encode: "Callable[[torch.Tensor], torch.Tensor]"
    """Function that rounds float32 values to the nearest codes, ties to even; it may overwrite the values."""
    decode: "Callable[[torch.Tensor], torch.Tensor]"
    """Function from codes to float32 values."""
    snap: "Callable[[torch.Tensor], torch.Tensor]"
    """Function that equals `encode` and then `decode`, without the codes between; it may overwrite its argument."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """Elements with the scales they share (compressed-tensors' QuantizationArgs)."""

    element: Element
    strategy: Strategy
    """Name of the elements that share a scale."""
    group_size: int | None = None
    """Input columns that share a scale, for the strategies group, tensor_group and block."""
    symmetric: bool = True
    """Whether code 0 stands for zero, so that there are no zero points."""
    dynamic: bool | Literal["local"] = False
    """Whether scales are found at run time; `local` if those of each group are and the tensor's own is not."""

    @property
    def kind(self) -> Kind:
        """Spacing of the elements."""
        return self.element.kind

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return self.element.bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights(Numbers):
    """A format of weights, with the rule that finds their scales."""

    scale: "Callable[[torch.Tensor, torch.dtype, torch.Tensor | None], torch.Tensor]"
    """Function from each group's largest magnitude (float32), the type that scales are stored in, and the scale of the
    whole tensor (strategy tensor_group only) to scales that are rounded to what is stored, in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations(Numbers):
    """A format of activations, with the function that rounds them."""

    round: "Callable[..., torch.Tensor]"
    """Function that rounds activations (…, features), bit for bit as compressed-tensors does. It gets the measured
    scale next, unless all scales are found at run time, and then the group size, where there are groups."""
    measure: "Callable[[torch.Tensor], torch.Tensor] | None" = None
    """Function from the largest magnitude in calibration to the scale that is stored, float32 (1,)."""

    def stored_scale(self, dtype: str) -> tuple[str, str]:
        """Return suffix and type of the tensor for the measured scale, in a checkpoint whose scales are in `dtype`."""
        return ("input_global_scale", "F32") if self.strategy == "tensor_group" else ("input_scale", dtype)


@dataclasses.dataclass(frozen=True)
class Scales:
    """The numbers that codes are multiplied with, in float32 but already rounded to what is stored.

    `scale` and `zero` are (rows, groups), or (row blocks, column blocks); `tensor` is (1,): NVFP4's scale of scales.
    """

    numbers: Weights
    group_size: int | None
    scale: "torch.Tensor"
    zero: "torch.Tensor | None" = None
    tensor: "torch.Tensor | None" = None

    @property
    def step(self) -> "torch.Tensor":
        """Distance of neighbouring codes in units of the weights, float32 in the shape of `scale`."""
        return self.scale if self.tensor is None else self.scale / self.tensor

    def rows(self, first: int, last: int) -> "Scales":
        """Return the scales of the rows `first` to `last` (of row blocks, where scales are of blocks)."""
        zero = None if self.zero is None else self.zero[first:last]
        return dataclasses.replace(self, scale=self.scale[first:last], zero=zero)


@dataclasses.dataclass(frozen=True)
class Storage:
    """The tensors that hold a module's codes and scales."""

    name: str
    """Name that compressed-tensors gives the storage."""
    layout: Callable[[Weights, tuple[int, ...], str, int | None], Layout]
    """Function from weights, their shape (out, in), the type of their scales and the group size to the tensors."""
    pack: "Callable[[torch.Tensor, Scales, torch.dtype], dict[str, torch.Tensor]]"
    """Function from codes (rows, columns), scales, and the type these are stored in to tensors by suffix."""
    unpack: "Callable[[Mapping[str, torch.Tensor], Weights, int | None, int], tuple[torch.Tensor, Scales]]"
    """Function from tensors of whole rows, their weights, group size and columns to codes and scales."""
    scale_dtype: str | None = None
    """Type of scales that compressed-tensors wants to be told, as torch writes it."""
    read_as_bfloat16: bool = False
    """Whether transformers dequantizes such a weight to bfloat16, whatever type the model has that multiplies it."""


def group_count(columns: int, group_size: int | None) -> int:
    """Return how many groups of columns have a scale of their own; without a group size, all share one."""
    return columns // group_size if group_size else 1


@dataclasses.dataclass(frozen=True)
class Family:
    """Schemes that people choose among as one: a heading in the list of recipes."""

    name: str
    about: str
    """Sentence or two on the family, for docs/recipes.md."""


class Changes(Frozen):
    """What changes of a suite's scores between a model and its artifact."""

    discordance: float
    """Share of documents whose answer changes between right and wrong."""
    deviation: float
    """Standard deviation of the change of a document's expected score."""
    runs: int = 0
    """Number of earlier runs it was seen in; 0 for what is typical of a scheme."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """A pair of number formats, for weights and for activations, and how they are stored."""

    family: Family
    changes: Changes
    """What it typically changes: about what was seen on the default model (docs/gate.md#what-a-suite-can-see)."""
    storage: Storage
    weights: Weights
    activations: Activations | None = None
    """Format of activations; None where they stay in 16 bits."""
    own: bool = True
    """Whether quantgate's own engine writes the scheme."""
    experts_are_read: bool = False
    """Whether transformers reads a mixture's experts in the scheme; seen by loading them, and by equal logits."""
    reads_kept_experts: bool = False
    """Whether transformers reads experts that are kept in 16 bits beside modules of the scheme."""

    @property
    def format(self) -> str:
        """Name that compressed-tensors gives the storage."""
        return self.storage.name

    @property
    def calibrated(self) -> bool:
        """Whether a scale of the activations has to be measured."""
        return self.activations is not None and self.activations.dynamic is not True

    @property
    def resizable(self) -> bool:
        """Whether the group size is the recipe's to choose."""
        return self.is_block or (self.weights.kind == "int" and self.weights.strategy == "group")

    @property
    def is_block(self) -> bool:
        """Whether square blocks of weights share a scale."""
        return self.weights.strategy == "block"
