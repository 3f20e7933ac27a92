"""NVFP4: E2M1 with an FP8 scale for each 16 elements, and a float32 scale of these scales for the whole tensor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.checkpoint.headers import Layout
from pipelines.formats import e2m1
from pipelines.formats.bits import pack_nibbles, unpack_nibbles
from pipelines.formats.description import Activations, Changes, Scales, Scheme, Storage, Weights, group_count
from pipelines.formats.e2m1 import FP4_MAX
from pipelines.formats.fp8 import FP8_MAX
from pipelines.formats.rows import in_groups

if TYPE_CHECKING:
    import torch

SMALLEST_FP8 = 2.0**-9
"""Smallest positive float8_e4m3fn, which a group's scale cannot fall below."""


def tensor_scale(largest: "torch.Tensor") -> "torch.Tensor":
    """Return the scale of a whole tensor whose largest magnitude is `largest`, float32 (1,): it brings the scales of
    the groups to the upper end of FP8's range."""
    import torch

    largest = largest.float().reshape(1)
    return torch.where(largest > 0, FP8_MAX * FP4_MAX / largest.clamp(min=1e-30), torch.ones_like(largest))


def scale(largest: "torch.Tensor", _dtype: "torch.dtype", tensor: "torch.Tensor | None") -> "torch.Tensor":
    """Return the scales, rounded to FP8 but in float32, for groups with the `largest` magnitudes."""
    import torch

    assert tensor is not None
    return (largest / FP4_MAX * tensor).clamp_(SMALLEST_FP8, FP8_MAX).to(torch.float8_e4m3fn).float()


def round_groups(x: "torch.Tensor", tensor_scale: float, size: int) -> "torch.Tensor":
    """Return `x` (…, features) rounded with one FP8 scale for each `size` features, found at run time."""
    import torch

    groups = in_groups(x, size)
    found = (groups.abs().amax(dim=-1, keepdim=True) / FP4_MAX).float().mul_(tensor_scale)
    found = found.clamp_(max=FP8_MAX).to(torch.float8_e4m3fn).float()
    step = torch.where(found == 0, 0.125, found).div_(torch.tensor(tensor_scale, device=x.device))
    return e2m1.snap(groups / step).mul_(step).flatten(-2).to(x.dtype)


def _layout(_weights: Weights, shape: tuple[int, ...], _dtype: str, group_size: int | None) -> Layout:
    rows, columns = shape
    return {
        "weight_packed": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, group_count(columns, group_size))),
        "weight_global_scale": ("F32", (1,)),
    }


def _pack(codes: "torch.Tensor", scales: Scales, _dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    import torch

    assert scales.tensor is not None
    return {
        "weight_packed": pack_nibbles(codes),
        "weight_scale": scales.scale.to(torch.float8_e4m3fn),
        "weight_global_scale": scales.tensor,
    }


def _unpack(
    parts: "Mapping[str, torch.Tensor]", weights: Weights, group_size: int | None, _columns: int
) -> "tuple[torch.Tensor, Scales]":
    stored, tensor = parts["weight_scale"].float(), parts["weight_global_scale"]
    return unpack_nibbles(parts["weight_packed"]), Scales(weights, group_size, stored, tensor=tensor)


STORAGE = Storage(
    "nvfp4-pack-quantized", _layout, _pack, _unpack, scale_dtype="torch.float8_e4m3fn", read_as_bfloat16=True
)
WEIGHTS = Weights(element=e2m1.ELEMENT, strategy="tensor_group", group_size=16, scale=scale)

NVFP4 = Scheme(
    family=e2m1.FAMILY,
    changes=Changes(discordance=0.13, deviation=0.195),
    storage=STORAGE,
    weights=WEIGHTS,
    activations=Activations(
        element=e2m1.ELEMENT,
        strategy="tensor_group",
        group_size=16,
        dynamic="local",
        round=round_groups,
        measure=tensor_scale,
    ),
)
NVFP4A16 = Scheme(
    family=e2m1.FAMILY,
    changes=Changes(discordance=0.08, deviation=0.12),
    storage=STORAGE,
    weights=WEIGHTS,
)
