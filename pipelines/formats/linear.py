"""The common part of FP8 and integers: a scale maps the largest magnitude onto the largest code and is stored beside
codes that take a byte each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.checkpoint.headers import Layout
from pipelines.formats.description import Scales, Storage, Weights, group_count

if TYPE_CHECKING:
    import torch


def scale_onto(limit: float, largest: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """Return the scales, rounded to `dtype` but in float32, that map magnitudes `largest` onto `limit`.

    A group of zeros gets a positive scale all the same, and what underflows in `dtype` the smallest one it has.
    """
    import torch

    scale = (largest / limit).to(dtype).float()
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return torch.where(scale == 0, torch.where(largest > 0, smallest, 1.0), scale)


def one_byte(name: str, dtype: str) -> Storage:
    """Return the storage `name` of codes that take a byte each, as safetensors' `dtype`."""

    def layout(weights: Weights, shape: tuple[int, ...], scales: str, group_size: int | None) -> Layout:
        rows, columns = shape
        blocks = group_count(rows, group_size) if weights.strategy == "block" else rows
        return {"weight": (dtype, shape), "weight_scale": (scales, (blocks, group_count(columns, group_size)))}

    return Storage(name, layout, _pack, _unpack)


def _pack(codes: "torch.Tensor", scales: Scales, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    return {"weight": codes, "weight_scale": scales.scale.to(dtype)}


def _unpack(
    parts: "Mapping[str, torch.Tensor]", weights: Weights, group_size: int | None, _columns: int
) -> "tuple[torch.Tensor, Scales]":
    return parts["weight"], Scales(weights, group_size, parts["weight_scale"].float())
