"""MXFP4: E2M1 with a power of two (E8M0) for each 32 elements."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.checkpoint.headers import Layout
from pipelines.formats import e2m1
from pipelines.formats.bits import pack_nibbles, unpack_nibbles
from pipelines.formats.description import Activations, Changes, Scales, Scheme, Storage, Weights, group_count
from pipelines.formats.rows import in_groups

if TYPE_CHECKING:
    import torch

MX_OFFSET = 2
"""Exponent of E2M1's largest value, floor(log2(6)): a scale is the group's power of two over that of this value."""
BIAS = 127
"""Bias of an E8M0 exponent."""


def exponent(largest: "torch.Tensor") -> "torch.Tensor":
    """Return the E8M0 exponent (uint8, biased) for groups whose largest magnitudes are `largest`.

    The power of two below, or the one above from 1.75 times it on, where clipping to 6 costs more than a coarser step.
    """
    import torch

    mantissa, power = torch.frexp(largest)  # mantissa in [0.5, 1)
    power = power - 1 + (mantissa >= 0.875).int()
    return (power - MX_OFFSET + BIAS).clamp_(0, 2 * BIAS).to(torch.uint8)


def scale(largest: "torch.Tensor", _dtype: "torch.dtype", _tensor: "torch.Tensor | None" = None) -> "torch.Tensor":
    """Return the powers of two, in float32, for groups with the `largest` magnitudes."""
    import torch

    found = torch.exp2(exponent(largest).float() - BIAS)
    return torch.where(largest.isfinite(), found, torch.nan)


def round_groups(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """Return `x` (…, features) rounded with one power of two for each `size` features."""
    import torch

    groups = in_groups(x, size)
    found = exponent(groups.abs().amax(dim=-1, keepdim=True).float())
    step = torch.exp2(found.float() - BIAS).to(x.dtype)
    step = torch.where(step == 0, torch.finfo(x.dtype).eps, step)
    return e2m1.snap(groups / step).mul_(step).flatten(-2)


def _layout(_weights: Weights, shape: tuple[int, ...], _dtype: str, group_size: int | None) -> Layout:
    rows, columns = shape
    return {
        "weight_packed": ("U8", (rows, columns // 2)),
        "weight_scale": ("U8", (rows, group_count(columns, group_size))),
    }


def _pack(codes: "torch.Tensor", scales: Scales, _dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    import torch

    exponents = (scales.scale.log2() + BIAS).to(torch.uint8)
    return {"weight_packed": pack_nibbles(codes), "weight_scale": exponents}


def _unpack(
    parts: "Mapping[str, torch.Tensor]", weights: Weights, group_size: int | None, _columns: int
) -> "tuple[torch.Tensor, Scales]":
    import torch

    powers = torch.exp2(parts["weight_scale"].float() - BIAS)
    return unpack_nibbles(parts["weight_packed"]), Scales(weights, group_size, powers)


STORAGE = Storage("mxfp4-pack-quantized", _layout, _pack, _unpack, scale_dtype="torch.uint8", read_as_bfloat16=True)

MXFP4 = Scheme(
    family=e2m1.FAMILY,
    changes=Changes(discordance=0.22, deviation=0.33),
    storage=STORAGE,
    weights=Weights(element=e2m1.ELEMENT, strategy="group", group_size=32, scale=scale),
    activations=Activations(element=e2m1.ELEMENT, strategy="group", group_size=32, dynamic=True, round=round_groups),
    experts_are_read=True,
)
