"""FP8: 8-bit floating point (E4M3), with scales of rows, blocks, tensors or tokens."""

from typing import TYPE_CHECKING

from pipelines.formats.description import Activations, Changes, Element, Family, Scheme, Weights
from pipelines.formats.linear import one_byte, scale_onto
from pipelines.formats.rows import by_rows, in_groups, token_scale

if TYPE_CHECKING:
    import torch

FP8_MAX = 448.0
"""Largest finite value of float8_e4m3fn."""


def encode(values: "torch.Tensor") -> "torch.Tensor":
    """Return the nearest codes (float8_e4m3fn) of float32 `values`, which are overwritten."""
    import torch

    return values.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def decode(codes: "torch.Tensor") -> "torch.Tensor":
    """Return `codes` as float32."""
    return codes.float()


def snap(values: "torch.Tensor") -> "torch.Tensor":
    """Return `values` rounded to the nearest of FP8, in their own type; they are overwritten."""
    return encode(values).to(values.dtype)


def scale(largest: "torch.Tensor", dtype: "torch.dtype", _tensor: "torch.Tensor | None" = None) -> "torch.Tensor":
    """Return the scales, rounded to `dtype` but in float32, for groups with the `largest` magnitudes."""
    return scale_onto(FP8_MAX, largest, dtype)


def measured_scale(largest: "torch.Tensor") -> "torch.Tensor":
    """Return the scale that maps the magnitude `largest` onto FP8's largest value, float32 (1,)."""
    import torch

    largest = largest.float().reshape(1)
    return torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))


# Activations


def round_tokens(x: "torch.Tensor") -> "torch.Tensor":
    """Return `x` (…, features) rounded with one scale for each token."""

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        return _round(rows, token_scale(rows, FP8_MAX))

    return by_rows(each, x)


def round_groups(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """Return `x` (…, features) rounded with one scale for each `size` features of a token."""
    return round_tokens(in_groups(x, size)).flatten(-2)


def round_static(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Return `x` rounded with the `scale` that was measured, in float32 where `x` cannot hold the scale."""
    stored = x.new_tensor(scale)
    exact = stored if float(stored) == scale else x.new_tensor(scale).float().fill_(scale)

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        rounded = _round(rows if exact.dtype == rows.dtype else rows.float(), exact)
        return rounded.to(rows.dtype).masked_fill_(rows.isnan(), float("nan"))

    return by_rows(each, x)


def _round(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Round `x` to multiples of `scale` that E4M3 has.

    In bfloat16, a code's seven low bits, moved into exponent and mantissa, are its value times 2^-120.
    """
    import torch

    if x.dtype == torch.float32 and scale.dtype == torch.float32:
        return _round_float32(x, scale)
    codes = encode(x / scale)
    if x.dtype != torch.bfloat16:
        return codes.to(x.dtype).mul_(scale)
    wide = codes.view(torch.uint8).to(torch.int16)
    bits = (wide & 0x7F).bitwise_left_shift_(4).bitwise_or_((wide & 0x80).bitwise_left_shift_(8))
    return bits.view(torch.bfloat16).mul_(2.0**120).mul_(scale)


def _round_float32(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Round float32 by float32 arithmetic, several times faster than through PyTorch's 8-bit type and back.

    Adding and subtracting 1.5 · 2^(e + 20) leaves three bits below the leading one of a number with exponent e, rounded
    to nearest even as the hardware adds; e is at least -6, where E4M3's subnormal numbers begin.
    """
    import torch

    scaled = (x / scale).clamp_(-FP8_MAX, FP8_MAX)
    exponent = scaled.view(torch.int32).bitwise_and(0x7F800000).clamp_(min=(127 - 6) << 23)
    shift = exponent.add_((20 << 23) | 0x400000).view(torch.float32)
    return scaled.add_(shift).sub_(shift).mul_(scale)


# Descriptions

ELEMENT = Element("FP8 (E4M3)", "float", 8, encode, decode, snap)
FAMILY = Family("FP8", "8-bit floating point (E4M3). The first thing to try on a GPU that has it.")
CHANGES = Changes(discordance=0.045, deviation=0.06)
STORAGE = one_byte("float-quantized", "F8_E4M3")
ROWS = Weights(element=ELEMENT, strategy="channel", scale=scale)
TOKENS = Activations(element=ELEMENT, strategy="token", dynamic=True, round=round_tokens)
MEASURED = Activations(element=ELEMENT, strategy="tensor", round=round_static, measure=measured_scale)

DYNAMIC = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=STORAGE,
    weights=ROWS,
    activations=TOKENS,
    experts_are_read=True,
    reads_kept_experts=True,
)
STATIC = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=STORAGE,
    weights=ROWS,
    activations=MEASURED,
    experts_are_read=True,
    reads_kept_experts=True,
)
TENSOR = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=STORAGE,
    weights=Weights(element=ELEMENT, strategy="tensor", scale=scale),
    activations=MEASURED,
    own=False,
    reads_kept_experts=True,
)
"""FP8 with one scale for the whole weight: Model Optimizer's way, and TensorRT-LLM's."""
BLOCK = Scheme(
    family=FAMILY,
    changes=CHANGES,
    storage=STORAGE,
    weights=Weights(element=ELEMENT, strategy="block", group_size=128, scale=scale),
    activations=Activations(element=ELEMENT, strategy="group", group_size=128, dynamic=True, round=round_groups),
    reads_kept_experts=True,
)
