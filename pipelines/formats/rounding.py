"""The arithmetic of any scheme: scales, rounding, and the tensors that are stored.

A weight (rows = output features, columns = input features) becomes codes and `Scales`; both become the tensors that
`schemes.layout` names. Codes are float8_e4m3fn for FP8, int8 for integers and uint8 indices 0-15 for FP4 and NF4.
The conventions are compressed-tensors': a stored value times its scale (over the tensor's own, where there is one).
"""

from collections.abc import Mapping

import torch

from pipelines.checkpoint.dtypes import NAMES
from pipelines.formats.description import Numbers, Scales
from pipelines.formats.integers import spanning_scales
from pipelines.formats.schemes import SCHEMES, SchemeName

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, torch_name) for name, torch_name in NAMES.items()}
"""Type of weights by its name in safetensors → its name in torch."""


def find_scales(
    weight: torch.Tensor,
    scheme: SchemeName,
    group_size: int | None,
    tensor_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    shrink: float = 1.0,
) -> Scales:
    """Return the scales that map the largest magnitude of each group of `weight` (rows, columns) onto the largest code.

    `dtype` is what they are stored in, the weight's own unless given; `tensor_scale` is NVFP4's (`nvfp4.tensor_scale`).
    With `shrink` below 1 the scales cover that part of each group's range, and what is outside is clipped.
    """
    weights = SCHEMES[scheme].weights
    dtype = dtype or weight.dtype
    grouped = _grouped(weight, weights, group_size)
    if not weights.symmetric:
        low = grouped.amin(dim=-1).float().clamp(max=0) * shrink
        high = grouped.amax(dim=-1).float().clamp(min=0) * shrink
        return spanning_scales(low, high, weights, group_size, dtype)
    largest = grouped.abs().amax(dim=-1).float() * shrink
    if weights.strategy == "block":
        largest = largest.amax(dim=1)
    tensor = tensor_scale if weights.strategy == "tensor_group" else None
    return Scales(weights, group_size, weights.scale(largest, dtype, tensor), tensor=tensor)


def input_scale(scheme: SchemeName, largest: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the stored scale (1,) of activations whose largest magnitude is `largest`, by suffix; nothing where no
    scale is measured. `dtype` is what scales are stored in where the format leaves it open."""
    activations = SCHEMES[scheme].activations
    if activations is None or activations.dynamic is True:
        return {}
    assert activations.measure
    name, stored = activations.stored_scale("")
    return {name: activations.measure(largest).to(DTYPES.get(stored, dtype))}


def quantize(weight: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Return the codes of `weight` (rows, columns), rounded to nearest from a float32 quotient."""
    units = _grouped(weight, scales.numbers, scales.group_size).to(torch.float32, copy=True)
    units.div_(_spread(scales.step, scales))
    if scales.zero is not None:
        units.add_(_spread(scales.zero, scales))
    return scales.numbers.element.encode(units).reshape(weight.shape)


def dequantize(codes: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Return the weight (rows, columns) that `codes` stand for, in float32."""
    units = _grouped(scales.numbers.element.decode(codes), scales.numbers, scales.group_size)
    if scales.zero is not None:
        units = units - _spread(scales.zero, scales)
    return (units * _spread(scales.step, scales)).reshape(codes.shape)


def pack(codes: torch.Tensor, scales: Scales, scheme: SchemeName, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors that are stored, by suffix as in `schemes.layout`, but for those of activations and the shape;
    `dtype` is what scales are stored in where the format leaves it open."""
    return SCHEMES[scheme].storage.pack(codes, scales, dtype)


def unpack(
    parts: Mapping[str, torch.Tensor], scheme: SchemeName, group_size: int | None, columns: int
) -> tuple[torch.Tensor, Scales]:
    """Return codes and scales from the stored tensors of whole rows; the inverse of `pack`."""
    chosen = SCHEMES[scheme]
    return chosen.storage.unpack(parts, chosen.weights, group_size, columns)


def _grouped(weight: torch.Tensor, numbers: Numbers, group_size: int | None) -> torch.Tensor:
    """Return a view of (rows, columns) in which the last dimension shares a scale: (rows, groups, size).

    Blocks are (row blocks, rows, column blocks, columns), of which the second shares it too.
    """
    rows, columns = weight.shape
    if group_size is None:
        return weight.view(rows, 1, columns)
    if numbers.strategy == "block":
        return weight.view(rows // group_size, group_size, columns // group_size, group_size)
    return weight.view(rows, columns // group_size, group_size)


def _spread(scale: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Return `scale` in a shape that broadcasts over `_grouped`."""
    return scale[:, None, :, None] if scales.numbers.strategy == "block" else scale[:, :, None]
