"""INT8: 8-bit integers for weights, with 8-bit or 16-bit activations."""

from functools import partial
from typing import TYPE_CHECKING

from pipelines.formats import integers
from pipelines.formats.description import Activations, Changes, Family, Scheme, Weights
from pipelines.formats.linear import one_byte
from pipelines.formats.rows import by_rows, token_scale

if TYPE_CHECKING:
    import torch


def round_tokens(x: "torch.Tensor") -> "torch.Tensor":
    """Return `x` (…, features) rounded with one scale for each token."""

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        scale = token_scale(rows, 127.5)
        return (rows / scale).clamp_(-128, 127).round_().mul_(scale)

    return by_rows(each, x)


def round_static(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Return `x` rounded with the `scale` that was measured, in float32."""

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        return (rows.float() / scale).round_().clamp_(-128, 127).mul_(scale).to(rows.dtype)

    return by_rows(each, x)


ELEMENT = integers.element(8)
FAMILY = Family("INT8", "8-bit integers.")
CHANGES = Changes(discordance=0.045, deviation=0.06)
STORAGE = one_byte("int-quantized", "I8")
ROWS = Weights(element=ELEMENT, strategy="channel", scale=partial(integers.scale, bits=8))

W8A8 = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=STORAGE,
    weights=ROWS,
    activations=Activations(element=ELEMENT, strategy="token", dynamic=True, round=round_tokens),
)
W8A8_STATIC = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=STORAGE,
    weights=ROWS,
    activations=Activations(element=ELEMENT, strategy="tensor", round=round_static),
    own=False,
)
"""INT8 with one measured scale for all activations: Model Optimizer's way, and TensorRT-LLM's."""
W8A16 = Scheme(
    family=FAMILY,
    changes=Changes(discordance=0.015, deviation=0.02),
    storage=integers.PACKED,
    weights=ROWS,
    experts_are_read=True,
)
