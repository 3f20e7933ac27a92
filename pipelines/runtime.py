"""Loading a checkpoint, quantized or not, in transformers, as evaluation and verification run it."""

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.anatomy import auto_class, load_config
from pipelines.device import NO_ROOM, ComputeDtype, keep_freed_memory
from pipelines.errors import QuantgateError, brief
from pipelines.generation import check_generation, use_own_settings
from pipelines.schemes import FP4_MAX, FP8_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

SCALES = ("_scale", "_zero_point")
"""How the names of compressed-tensors' parameters end that are no weights."""
CACHED = 1 << 17
"""Numbers that are rounded together on a CPU: half a megabyte of float32."""


def load_for_inference(folder: Path, device: str, dtype: ComputeDtype | None = None) -> Any:
    """Return the model in `folder` on `device`, ready to compute in `dtype` (its own unless given).

    A compressed-tensors artifact is dequantized once, and its activations are quantized at every layer as a GPU kernel
    would do it. Two things transformers does are left out, and neither changes a bit of the result: it would round the
    dequantized weights again in every forward pass, and it rounds the same input once for each layer that reads it.

    What it generates is by its caller's settings, not by those that the checkpoint recommends (`pipelines.generation`).

    Raises:
        BadInput: transformers cannot read its generation config.
        QuantgateError: the GPU's memory does not hold the model.
    """
    import torch

    from pipelines import dequantize

    check_generation(folder)
    config = load_config(folder)
    described = getattr(config, "quantization_config", None)
    quantized = described is not None
    apart = described is not None and dequantize.is_needed(folder, described)
    model = dequantize.load(folder, config, dtype) if apart else _load(folder, config, quantized, dtype)
    if device == "cpu":
        keep_freed_memory()
    try:
        model = model.to(torch.device(device)).eval()
    except torch.OutOfMemoryError:
        raise QuantgateError(f"{folder}: the memory of {device} does not hold it dequantized; {NO_ROOM}") from None
    if quantized:
        _share_rounding(model)
    use_own_settings(model)
    return model


def _load(folder: Path, config: Any, quantized: bool, dtype: ComputeDtype | None) -> Any:
    """As transformers reads it; the weights of a quantized one come dequantized, on their grid."""
    from transformers.utils.quantization_config import CompressedTensorsConfig

    extra: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantized else {}
    extra |= {"dtype": dtype or "auto", "use_safetensors": True, "output_loading_info": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that we pass `dequantize`, which we do
        model, loaded = auto_class(config, folder).from_pretrained(folder, trust_remote_code=False, **extra)
    unread = [name for name in loaded["unexpected_keys"] if name.endswith(("weight_scale", "weight_packed"))]
    if quantized and unread:
        what = f"transformers does not read {len(unread)} of its quantized tensors, like {min(unread)}"
        raise QuantgateError(f"{folder}: {what}: these modules are not linear in its model")
    if quantized:
        from compressed_tensors.offload import remove_dispatch

        remove_dispatch(model)  # else every module goes on computing where it was dequantized: on the CPU
        _skip_weight_rounding(model)
        _widen_kept(model)
    return model


@contextlib.contextmanager
def explained(refusal: "Callable[[str], QuantgateError]") -> "Iterator[None]":
    """Turn what a class of transformers raises while it computes into the error that `refusal` makes of its first line;
    ours, and those of memory and files, pass."""
    import torch

    try:
        yield
    except (QuantgateError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:  # sizes or settings that do not fit together: the classes share no error
        raise refusal(brief(error)) from None


def score_tokens(model: Any, ids: "torch.Tensor") -> list[float]:
    """The log-probability, in nats, of each token of `ids` (1, tokens) after the first."""
    logprobs = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    scores: list[float] = logprobs.gather(1, ids[0, 1:, None]).flatten().tolist()
    return scores


def _skip_weight_rounding(model: Any) -> None:
    """Tell compressed-tensors that the weights are on their grid already (they were just dequantized from it).

    Those of FP4 come as bfloat16 whatever the model's dtype is, and get that one here.
    """
    import torch
    from compressed_tensors.quantization import QuantizationStatus

    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.quantization_status = QuantizationStatus.COMPRESSED
            if isinstance(module, torch.nn.Linear):  # an attention module with a quantized cache has no weight
                module.weight.data = module.weight.data.to(model.config.dtype)


def _widen_kept(model: Any) -> None:
    """Give what is not quantized the model's dtype: of models whose modules transformers renames while it loads, it
    leaves such weights as they are stored when others are quantized. Scales lose no bit."""
    wanted = model.config.dtype
    for name, parameter in model.named_parameters():
        narrows = name.endswith(SCALES) and wanted.itemsize < parameter.dtype.itemsize
        if parameter.is_floating_point() and not narrows:
            parameter.data = parameter.data.to(wanted)


def _share_rounding(model: Any) -> None:
    """Round activations once for all layers that read them, and faster than compressed-tensors does."""
    import torch

    rounding = model.quantgate_rounding = _SharedRounding()
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        inputs = scheme.input_activations if scheme else None
        if inputs and isinstance(module, torch.nn.Linear):
            _replace_forward(module, rounding, _rounder(module, inputs))


@contextlib.contextmanager
def unrounded(model: Any) -> "Iterator[None]":
    """Leave the activations of `model` as they are: rounded ones show how it is built less clearly, since a sum whose
    last bit differs may land on the next value of 8 bits."""
    rounding = getattr(model, "quantgate_rounding", None) or _SharedRounding()
    rounding.off = True
    try:
        yield
    finally:
        rounding.off = False


def _replace_forward(module: Any, rounding: "_SharedRounding", rounder: "Rounder") -> None:
    import torch

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.linear(rounding(x, rounder), module.weight, module.bias)

    module.forward = forward


Rounder = tuple[Any, ...]
"""A function that rounds activations, and the arguments that follow them: equal ones round alike."""


class _SharedRounding:
    """Remembers the last input and what it was rounded to: q, k and v read the same one, gate and up too."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, Rounder, torch.Tensor] | None = None
        self.off = False
        """Whether activations are left as they are."""

    def __call__(self, x: "torch.Tensor", rounder: Rounder) -> "torch.Tensor":
        if self.off:
            return x
        if self._last is None or self._last[0] is not x or self._last[1] != rounder:
            self._last = (x, rounder, rounder[0](x, *rounder[1:]))
        return self._last[2]


def _rounder(module: Any, inputs: Any) -> Rounder:
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

    from pipelines.rounding import fp4_snap

    groups = _groups(x, size)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / FP4_MAX).float().mul_(tensor_scale)
    scale = scale.clamp_(max=FP8_MAX).to(torch.float8_e4m3fn).float()
    step = torch.where(scale == 0, 0.125, scale).div_(torch.tensor(tensor_scale, device=x.device))
    return fp4_snap(groups / step).mul_(step).flatten(-2).to(x.dtype)


def mxfp4_round(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """`x` (…, features) rounded to E2M1 with one power of two for each `size` features."""
    import torch

    from pipelines.rounding import BIAS, fp4_snap, mx_exponent

    groups = _groups(x, size)
    exponent = mx_exponent(groups.abs().amax(dim=-1, keepdim=True).float())
    step = torch.exp2(exponent.float() - BIAS).to(x.dtype)
    step = torch.where(step == 0, torch.finfo(x.dtype).eps, step)
    return fp4_snap(groups / step).mul_(step).flatten(-2)
