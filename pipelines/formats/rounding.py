"""The arithmetic of the number formats: scales, rounding, and the bytes that are stored.

A weight (rows = output features, columns = input features) becomes codes and `Scales`; both become the tensors that
`schemes.layout` names. Codes are float8_e4m3fn for FP8, int8 for integers and uint8 indices 0-15 for FP4 (E2M1).
The conventions are compressed-tensors': a stored value times its scale (over the tensor's own, where there is one).
"""

import dataclasses
from collections.abc import Mapping

import torch

from pipelines.formats.schemes import FP4_MAX, FP8_MAX, SCHEMES, Numbers, SchemeName

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, with an exact zero (Dettmers et al. 2305.14314, appendix E)."""
SMALLEST_FP8 = 2.0**-9
"""Smallest positive float8_e4m3fn: what a scale of NVFP4 cannot fall below."""
MX_OFFSET = 2
"""floor(log2(6)): MXFP4's scale is the group's power of two over that of E2M1's largest value."""
BIAS = 127
"""Of an E8M0 exponent."""


@dataclasses.dataclass(frozen=True)
class Scales:
    """What codes are multiplied with, in float32 but already rounded to what is stored.

    `scale` and `zero` are (rows, groups), or (row blocks, column blocks); `tensor` is (1,): NVFP4's scale of scales.
    """

    numbers: Numbers
    group_size: int | None
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    tensor: torch.Tensor | None = None

    @property
    def step(self) -> torch.Tensor:
        """The distance of neighbouring codes in weight units, in the shape of `scale`."""
        return self.scale if self.tensor is None else self.scale / self.tensor

    def rows(self, first: int, last: int) -> "Scales":
        """Those of the rows `first` to `last` (of row blocks, where scales are of blocks)."""
        zero = None if self.zero is None else self.zero[first:last]
        return dataclasses.replace(self, scale=self.scale[first:last], zero=zero)


def find_scales(
    weight: torch.Tensor,
    scheme: SchemeName,
    group_size: int | None,
    tensor_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    shrink: float = 1.0,
) -> Scales:
    """The scales that map the largest magnitude of each group of `weight` (rows, columns) onto the largest code.

    `dtype` is what they are stored in, the weight's own unless given; `tensor_scale` is NVFP4's (`fp4_tensor_scale`).
    With `shrink` below 1 the scales cover that part of each group's range, and what is outside is clipped.
    """
    numbers = SCHEMES[scheme].weights
    dtype = dtype or weight.dtype
    grouped = _grouped(weight, numbers, group_size)
    if not numbers.symmetric:
        low = grouped.amin(dim=-1).float().clamp(max=0) * shrink
        high = grouped.amax(dim=-1).float().clamp(min=0) * shrink
        return integer_scales(low, high, numbers, group_size, dtype)
    largest = grouped.abs().amax(dim=-1).float() * shrink
    if numbers.strategy == "block":
        largest = largest.amax(dim=1)
    return symmetric_scales(largest, numbers, group_size, dtype, tensor_scale)


def symmetric_scales(
    largest: torch.Tensor,
    numbers: Numbers,
    group_size: int | None,
    dtype: torch.dtype,
    tensor_scale: torch.Tensor | None = None,
) -> Scales:
    """Scales for groups whose largest magnitudes are `largest`, float32 in the shape of the scales.

    A group of zeros gets a positive scale all the same.
    """
    if numbers.strategy == "tensor_group":
        assert tensor_scale is not None
        scale = (largest / FP4_MAX * tensor_scale).clamp_(SMALLEST_FP8, FP8_MAX).to(torch.float8_e4m3fn).float()
        return Scales(numbers, group_size, scale, tensor=tensor_scale)
    if numbers.kind == "float" and numbers.bits == 4:
        scale = torch.exp2(mx_exponent(largest).float() - BIAS)
        return Scales(numbers, group_size, torch.where(largest.isfinite(), scale, torch.nan))
    scale = (largest / _half_range(numbers)).to(dtype).float()
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # what underflows need not become zero
    return Scales(numbers, group_size, torch.where(scale == 0, torch.where(largest > 0, smallest, 1.0), scale))


def integer_scales(
    low: torch.Tensor, high: torch.Tensor, numbers: Numbers, group_size: int | None, dtype: torch.dtype
) -> Scales:
    """Scales and zero points of integers for groups that span `low` (not above 0) to `high` (not below 0)."""
    limit = 2.0 ** (numbers.bits - 1)
    scale = ((high - low) / (2 * limit - 1)).to(dtype).float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-limit - low / scale).round_().clamp_(-limit, limit - 1)
    return Scales(numbers, group_size, scale, zero=zero)


def fp4_tensor_scale(largest: torch.Tensor) -> torch.Tensor:
    """NVFP4's scale of a whole tensor (1,) in float32, for its largest magnitude: it brings the scales of the groups
    to the upper end of FP8's range."""
    largest = largest.float().reshape(1)
    return torch.where(largest > 0, FP8_MAX * FP4_MAX / largest.clamp(min=1e-30), torch.ones_like(largest))


def mx_exponent(largest: torch.Tensor) -> torch.Tensor:
    """The E8M0 exponent (uint8, biased) for groups whose largest magnitudes are `largest`.

    The power of two below, or the one above from 1.75 times it on, where clipping to 6 costs more than a coarser step.
    """
    mantissa, exponent = torch.frexp(largest)  # mantissa in [0.5, 1)
    power = exponent - 1 + (mantissa >= 0.875).int()
    return (power - MX_OFFSET + BIAS).clamp_(0, 2 * BIAS).to(torch.uint8)


def encode(values: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """`values` (float32, in units of a step) to the nearest codes, ties to even. Overwrites `values`."""
    if numbers.kind == "float" and numbers.bits == 8:
        return values.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    if numbers.kind == "float":
        negative = values < 0
        index = fp4_index(values.abs_())
        return index.bitwise_or_(negative.to(torch.uint8).bitwise_left_shift_(3))
    limit = 2 ** (numbers.bits - 1)
    return values.round_().clamp_(-limit, limit - 1).to(torch.int8)


def fp4_index(magnitudes: torch.Tensor) -> torch.Tensor:
    """The index in `E2M1` (uint8) of the value nearest to each of `magnitudes` (float32), ties to even indices.

    Indices rise by 2 for each unit up to 2, by 1 up to 4, by 1/2 from there on: the least of three lines.
    """
    index = torch.minimum((magnitudes * 2).round_(), magnitudes.round().add_(2))
    return torch.minimum(index, (magnitudes / 2).round_().add_(4)).clamp_(max=7).to(torch.uint8)


def snap(values: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """`decode(encode(values))`, without the detour through codes. Overwrites `values`."""
    if numbers.kind == "int":
        limit = 2 ** (numbers.bits - 1)
        return values.round_().clamp_(-limit, limit - 1)
    if numbers.bits == 8:
        return values.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(values.dtype)
    return fp4_snap(values)


_EXPONENT = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
"""The integers as wide as a float, and the bits of its exponent."""


def fp4_snap(values: torch.Tensor) -> torch.Tensor:
    """`values` to the nearest of E2M1, ties to even mantissas. Overwrites `values`."""
    integer, mask = _EXPONENT[values.dtype]
    power = values.view(integer).bitwise_and(mask).view(values.dtype)  # the power of two below the magnitude
    step = power.clamp_(1, 4).mul_(0.5)  # 0.5 below 2, 1 below 4, 2 above: dividing by it is exact
    return values.div_(step).round_().mul_(step).clamp_(-FP4_MAX, FP4_MAX)


def decode(codes: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """Codes to float32, in units of a step."""
    if numbers.kind == "normal":
        return torch.tensor(NF4, device=codes.device)[codes.int()]
    if codes.dtype == torch.uint8 and numbers.kind == "float":
        table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=codes.device)
        return table[codes.int()]
    return codes.float()


def quantize(weight: torch.Tensor, scales: Scales) -> torch.Tensor:
    """The codes of `weight` (rows, columns), rounded to nearest from a float32 quotient."""
    units = _grouped(weight, scales.numbers, scales.group_size).to(torch.float32, copy=True)
    units.div_(_spread(scales.step, scales))
    if scales.zero is not None:
        units.add_(_spread(scales.zero, scales))
    return encode(units, scales.numbers).reshape(weight.shape)


def dequantize(codes: torch.Tensor, scales: Scales) -> torch.Tensor:
    """The weight (rows, columns) that codes stand for, in float32."""
    units = _grouped(decode(codes, scales.numbers), scales.numbers, scales.group_size)
    if scales.zero is not None:
        units = units - _spread(scales.zero, scales)
    return (units * _spread(scales.step, scales)).reshape(codes.shape)


def pack(codes: torch.Tensor, scales: Scales, scheme: SchemeName, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors that are stored, by suffix as in `schemes.layout`, but for those of activations and the shape."""
    stored = SCHEMES[scheme].format
    if stored in ("float-quantized", "int-quantized"):
        return {"weight": codes, "weight_scale": scales.scale.to(dtype)}
    if stored == "nvfp4-pack-quantized":
        assert scales.tensor is not None
        return {
            "weight_packed": _pack_nibbles(codes),
            "weight_scale": scales.scale.to(torch.float8_e4m3fn),
            "weight_global_scale": scales.tensor,
        }
    if stored == "mxfp4-pack-quantized":
        exponents = (scales.scale.log2() + BIAS).to(torch.uint8)
        return {"weight_packed": _pack_nibbles(codes), "weight_scale": exponents}
    parts = {"weight_packed": pack_words(codes, scales.numbers.bits), "weight_scale": scales.scale.to(dtype)}
    if scales.zero is not None:
        parts["weight_zero_point"] = compact(pack_words(scales.zero.to(torch.int8).T, scales.numbers.bits).T)
    return parts


def unpack(
    parts: Mapping[str, torch.Tensor], scheme: SchemeName, group_size: int | None, columns: int
) -> tuple[torch.Tensor, Scales]:
    """Codes and scales from the stored tensors of whole rows; the inverse of `pack`."""
    chosen = SCHEMES[scheme]
    numbers, stored = chosen.weights, chosen.format
    scale, zero, tensor = parts["weight_scale"], None, None
    if stored in ("float-quantized", "int-quantized"):
        codes = parts["weight"]
    elif stored == "pack-quantized":
        codes = unpack_words(parts["weight_packed"], numbers.bits)[:, :columns]
        if not numbers.symmetric:
            zero = unpack_words(parts["weight_zero_point"].T, numbers.bits).T[: len(codes)].float()
    else:
        codes = _unpack_nibbles(parts["weight_packed"])
        if stored == "mxfp4-pack-quantized":
            scale = torch.exp2(scale.float() - BIAS)
        else:
            tensor = parts["weight_global_scale"]
    return codes, Scales(numbers, group_size, scale.float(), zero=zero, tensor=tensor)


def _half_range(numbers: Numbers) -> float:
    if numbers.kind == "float":
        return FP8_MAX
    return (2.0**numbers.bits - 1) / 2


def _grouped(weight: torch.Tensor, numbers: Numbers, group_size: int | None) -> torch.Tensor:
    """A view of (rows, columns) in which the last dimension shares a scale: (rows, groups, size).

    Blocks are (row blocks, rows, column blocks, columns), of which the second shares it too.
    """
    rows, columns = weight.shape
    if group_size is None:
        return weight.view(rows, 1, columns)
    if numbers.strategy == "block":
        return weight.view(rows // group_size, group_size, columns // group_size, group_size)
    return weight.view(rows, columns // group_size, group_size)


def _spread(scale: torch.Tensor, scales: Scales) -> torch.Tensor:
    """`scale` in a shape that broadcasts over `_grouped`."""
    return scale[:, None, :, None] if scales.numbers.strategy == "block" else scale[:, :, None]


def _pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 values 0-15 (rows, columns) to bytes (rows, columns / 2), the first of a pair in the low bits."""
    return codes[:, 0::2] | codes[:, 1::2].bitwise_left_shift(4)


def _unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `_pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 codes (rows, columns) to int32 (rows, words), offset to be unsigned, the first in the low bits."""
    unsigned = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    short = -unsigned.shape[1] % (32 // bits)
    if short:
        unsigned = torch.nn.functional.pad(unsigned, (0, short))
    return compact(_pack_nibbles(unsigned) if bits == 4 else unsigned).view(torch.int32)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 (rows, words) to int8 codes (rows, columns), those that pad the last word too."""
    unsigned = compact(words).view(torch.uint8)
    if bits == 4:
        unsigned = _unpack_nibbles(unsigned)
    return (unsigned.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, row after row. `contiguous` would leave a single row or column with the strides it came with."""
    return tensor.clone(memory_format=torch.contiguous_format)
