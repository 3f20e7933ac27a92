"""How the numbers between layers are rounded, bit for bit as compressed-tensors does it and several times faster."""

from typing import TYPE_CHECKING, Any

from pipelines.core.errors import QuantgateError
from pipelines.formats.schemes import FP4_MAX, FP8_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


CACHED = 1 << 17
"""Numbers that are rounded together on a CPU: half a megabyte of float32."""
Rounder = tuple[Any, ...]
"""A function that rounds activations, and the arguments that follow them: equal ones round alike."""


def input_rounder(module: Any, inputs: Any) -> Rounder:
    """How `module` rounds its input, by compressed-tensors' description of it."""
    described = inputs.model_dump(mode="json")
    form = tuple(described[key] for key in ("type", "num_bits", "strategy", "dynamic"))
    match form:
        case ("float", 8, "token", True):
            return (fp8_round,)
        case ("float", 8, "group", True):
            return (fp8_group_round, int(inputs.group_size))
        case ("float", 8, "tensor", False):
            return (fp8_static_round, float(module.input_scale))
        case ("int", 8, "token", True):
            return (int8_round,)
        case ("int", 8, "tensor", False):
            return (int8_static_round, float(module.input_scale))
        case ("float", 4, "tensor_group", "local"):
            return (nvfp4_round, float(module.input_global_scale), int(inputs.group_size))
        case ("float", 4, "group", True):
            return (mxfp4_round, int(inputs.group_size))
    raise QuantgateError(f"activations of this form are not known here: {form}")


def fp8_round(x: "torch.Tensor") -> "torch.Tensor":
    """`x` (…, features) rounded to E4M3 with one scale for each token; bit for bit compressed-tensors', as all here."""

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        return _fp8(rows, _token_scale(rows, FP8_MAX))

    return _by_rows(each, x)


def _token_scale(x: "torch.Tensor", largest: float) -> "torch.Tensor":
    """(…, 1): what maps the largest magnitude of each row of `x` onto `largest`."""
    import torch

    scale = x.abs().amax(dim=-1, keepdim=True) / largest
    return torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)


def fp8_group_round(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """`x` (…, features) rounded to E4M3 with one scale for each `size` features of a token."""
    return fp8_round(_groups(x, size)).flatten(-2)


def _groups(x: "torch.Tensor", size: int) -> "torch.Tensor":
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def fp8_static_round(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """`x` rounded to E4M3 with the scale that was measured, in float32 where `x` cannot hold the scale."""
    stored = x.new_tensor(scale)
    exact = stored if float(stored) == scale else x.new_tensor(scale).float().fill_(scale)

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        rounded = _fp8(rows if exact.dtype == rows.dtype else rows.float(), exact)
        return rounded.to(rows.dtype).masked_fill_(rows.isnan(), float("nan"))

    return _by_rows(each, x)


def _fp8(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Round `x` to multiples of `scale` that E4M3 has.

    In bfloat16, a code's seven low bits, moved into exponent and mantissa, are its value times 2^-120.
    """
    import torch

    if x.dtype == torch.float32 and scale.dtype == torch.float32:
        return _snap_fp8(x, scale)
    codes = (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    if x.dtype != torch.bfloat16:
        return codes.to(x.dtype).mul_(scale)
    wide = codes.view(torch.uint8).to(torch.int16)
    bits = (wide & 0x7F).bitwise_left_shift_(4).bitwise_or_((wide & 0x80).bitwise_left_shift_(8))
    return bits.view(torch.bfloat16).mul_(2.0**120).mul_(scale)


def _snap_fp8(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Round float32 by float32 arithmetic, several times faster than through PyTorch's 8-bit type and back.

    Adding and subtracting 1.5 · 2^(e + 20) leaves three bits below the leading one of a number with exponent e, rounded
    to nearest even as the hardware adds; e is at least -6, where E4M3's subnormal numbers begin.
    """
    import torch

    scaled = (x / scale).clamp_(-FP8_MAX, FP8_MAX)
    exponent = scaled.view(torch.int32).bitwise_and(0x7F800000).clamp_(min=(127 - 6) << 23)
    shift = exponent.add_((20 << 23) | 0x400000).view(torch.float32)
    return scaled.add_(shift).sub_(shift).mul_(scale)


def _by_rows(change: "Callable[[torch.Tensor], torch.Tensor]", x: "torch.Tensor") -> "torch.Tensor":
    """Apply `change` to rows of `x` (…, features), on a CPU as many at a time as its cache holds: what lies between the
    steps of `change` then never travels to memory."""
    import torch

    if x.device.type != "cpu" or x.numel() <= CACHED:
        return change(x)
    rows, result = x.reshape(-1, x.shape[-1]), torch.empty_like(x, memory_format=torch.contiguous_format)
    step = max(1, CACHED // x.shape[-1])
    for first in range(0, len(rows), step):
        result.view(rows.shape)[first : first + step] = change(rows[first : first + step])
    return result


def int8_round(x: "torch.Tensor") -> "torch.Tensor":
    """`x` (…, features) rounded to INT8 with one scale for each token."""

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        scale = _token_scale(rows, 127.5)
        return (rows / scale).clamp_(-128, 127).round_().mul_(scale)

    return _by_rows(each, x)


def int8_static_round(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """`x` rounded to INT8 with the scale that was measured, in float32."""

    def each(rows: "torch.Tensor") -> "torch.Tensor":
        return (rows.float() / scale).round_().clamp_(-128, 127).mul_(scale).to(rows.dtype)

    return _by_rows(each, x)


def nvfp4_round(x: "torch.Tensor", tensor_scale: float, size: int) -> "torch.Tensor":
    """`x` (…, features) rounded to E2M1 with one FP8 scale for each `size` features, found at run time."""
    import torch

    from pipelines.formats.rounding import fp4_snap

    groups = _groups(x, size)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / FP4_MAX).float().mul_(tensor_scale)
    scale = scale.clamp_(max=FP8_MAX).to(torch.float8_e4m3fn).float()
    step = torch.where(scale == 0, 0.125, scale).div_(torch.tensor(tensor_scale, device=x.device))
    return fp4_snap(groups / step).mul_(step).flatten(-2).to(x.dtype)


def mxfp4_round(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """`x` (…, features) rounded to E2M1 with one power of two for each `size` features."""
    import torch

    from pipelines.formats.rounding import BIAS, fp4_snap, mx_exponent

    groups = _groups(x, size)
    exponent = mx_exponent(groups.abs().amax(dim=-1, keepdim=True).float())
    step = torch.exp2(exponent.float() - BIAS).to(x.dtype)
    step = torch.where(step == 0, torch.finfo(x.dtype).eps, step)
    return fp4_snap(groups / step).mul_(step).flatten(-2)
