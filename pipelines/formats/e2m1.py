"""E2M1, the 4-bit floating point that NVFP4 and MXFP4 share: eight magnitudes and a sign."""

from typing import TYPE_CHECKING

from pipelines.formats.description import Element, Family

if TYPE_CHECKING:
    import torch

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_MAX = 6.0
"""Largest magnitude."""


def encode(values: "torch.Tensor") -> "torch.Tensor":
    """Return the nearest codes (uint8, 0-15, the sign in the fourth bit) of float32 `values`, which are overwritten."""
    import torch

    negative = values < 0
    index = _index(values.abs_())
    return index.bitwise_or_(negative.to(torch.uint8).bitwise_left_shift_(3))


def _index(magnitudes: "torch.Tensor") -> "torch.Tensor":
    """Return the index in `MAGNITUDES` (uint8) of the value nearest to each of float32 `magnitudes`, ties to even ones.

    Indices rise by 2 for each unit up to 2, by 1 up to 4, by 1/2 from there on: the least of three lines.
    """
    import torch

    index = torch.minimum((magnitudes * 2).round_(), magnitudes.round().add_(2))
    return torch.minimum(index, (magnitudes / 2).round_().add_(4)).clamp_(max=7).to(torch.uint8)


def decode(codes: "torch.Tensor") -> "torch.Tensor":
    """Return `codes` as float32."""
    import torch

    table = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], device=codes.device)
    return table[codes.int()]


def snap(values: "torch.Tensor") -> "torch.Tensor":
    """Round `values` (float32, bfloat16 or float16) in place to the nearest, ties to even mantissas; return them."""
    import torch

    if values.dtype == torch.float32:
        integer, exponent = torch.int32, 0x7F800000
    else:
        integer, exponent = torch.int16, 0x7F80 if values.dtype == torch.bfloat16 else 0x7C00
    power = values.view(integer).bitwise_and(exponent).view(values.dtype)  # the power of two below the magnitude
    step = power.clamp_(1, 4).mul_(0.5)  # 0.5 below 2, 1 below 4, 2 above: dividing by it is exact
    return values.div_(step).round_().mul_(step).clamp_(-FP4_MAX, FP4_MAX)


ELEMENT = Element("FP4 (E2M1)", "float", 4, encode, decode, snap)
FAMILY = Family(
    "FP4",
    "4-bit floating point (E2M1) with shared scales, which the newest GPUs compute with.",
)
