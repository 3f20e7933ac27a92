"""The common part of INT8 and INT4: rounding to integers, zero points, and codes packed into words."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from pipelines.checkpoint.headers import Layout
from pipelines.formats.bits import compact, pack_words, unpack_words
from pipelines.formats.description import Element, Scales, Storage, Weights, group_count
from pipelines.formats.linear import scale_onto

if TYPE_CHECKING:
    import torch


def encode(values: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Return the nearest codes (int8) of float32 `values`, which are overwritten."""
    import torch

    return snap(values, bits).to(torch.int8)


def decode(codes: "torch.Tensor") -> "torch.Tensor":
    """Return `codes` as float32."""
    return codes.float()


def snap(values: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Round `values` in place to the nearest integers of so many `bits`, and return them."""
    limit = 2 ** (bits - 1)
    return values.round_().clamp_(-limit, limit - 1)


def element(bits: int) -> Element:
    """Return the element of integers of so many `bits`."""
    return Element(f"INT{bits}", "int", bits, partial(encode, bits=bits), decode, partial(snap, bits=bits))


def scale(
    largest: "torch.Tensor", dtype: "torch.dtype", _tensor: "torch.Tensor | None" = None, *, bits: int
) -> "torch.Tensor":
    """Return the scales, rounded to `dtype` but in float32, for groups with the `largest` magnitudes."""
    return scale_onto((2.0**bits - 1) / 2, largest, dtype)


def spanning_scales(
    low: "torch.Tensor", high: "torch.Tensor", weights: Weights, group_size: int | None, dtype: "torch.dtype"
) -> Scales:
    """Return scales and zero points for groups that span `low` (not above 0) to `high` (not below 0)."""
    import torch

    limit = 2.0 ** (weights.bits - 1)
    found = ((high - low) / (2 * limit - 1)).to(dtype).float()
    found = torch.where(found == 0, torch.ones_like(found), found)
    zero = (-limit - low / found).round_().clamp_(-limit, limit - 1)
    return Scales(weights, group_size, found, zero=zero)


def _layout(weights: Weights, shape: tuple[int, ...], dtype: str, group_size: int | None) -> Layout:
    rows, columns = shape
    groups = group_count(columns, group_size)
    parts: Layout = {
        "weight_packed": ("I32", (rows, -(-columns * weights.bits // 32))),
        "weight_scale": (dtype, (rows, groups)),
        "weight_shape": ("I64", (2,)),
    }
    if not weights.symmetric:
        parts["weight_zero_point"] = ("I32", (-(-rows * weights.bits // 32), groups))
    return parts


def _pack(codes: "torch.Tensor", scales: Scales, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    import torch

    bits = scales.numbers.bits
    parts = {"weight_packed": pack_words(codes, bits), "weight_scale": scales.scale.to(dtype)}
    if scales.zero is not None:
        parts["weight_zero_point"] = compact(pack_words(scales.zero.to(torch.int8).T, bits).T)
    return parts


def _unpack(
    parts: "Mapping[str, torch.Tensor]", weights: Weights, group_size: int | None, columns: int
) -> "tuple[torch.Tensor, Scales]":
    codes, zero = unpack_words(parts["weight_packed"], weights.bits)[:, :columns], None
    if not weights.symmetric:
        zero = unpack_words(parts["weight_zero_point"].T, weights.bits).T[: len(codes)].float()
    return codes, Scales(weights, group_size, parts["weight_scale"].float(), zero=zero)


PACKED = Storage("pack-quantized", _layout, _pack, _unpack)
"""Storage of codes in words of 32 bits, beside the shape that they fill."""
