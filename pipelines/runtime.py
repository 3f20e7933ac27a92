"""Loading a checkpoint, quantized or not, in transformers, as evaluation and verification run it."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import QuantgateError, bad_input
from pipelines.schemes import FP4_MAX, FP8_MAX

if TYPE_CHECKING:
    import torch

NO_ROOM = "give --device cpu, or a GPU with more memory"


def load_for_inference(folder: Path, device: str) -> Any:
    """The model in `folder` on `device`, in its own dtype, ready for inference.

    A compressed-tensors artifact is dequantized once, and its activations are quantized at every layer as a GPU kernel
    would do it. Two things transformers does are left out, and neither changes a bit of the result: it would round the
    dequantized weights again in every forward pass, and it rounds the same input once for each layer that reads it.

    Raises:
        QuantgateError: the GPU's memory does not hold the model.
    """
    import torch
    from transformers import AutoConfig

    from pipelines import dequantize

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    described = getattr(config, "quantization_config", None)
    quantized = described is not None
    apart = described is not None and dequantize.is_needed(folder, described)
    model = dequantize.load(folder, config) if apart else _load(folder, quantized)
    try:
        model = model.to(torch.device(device)).eval()
    except torch.OutOfMemoryError:
        raise QuantgateError(f"{folder}: the memory of {device} does not hold it dequantized; {NO_ROOM}") from None
    if quantized:
        _share_rounding(model)
    return model


def _load(folder: Path, quantized: bool) -> Any:
    """As transformers reads it; the weights of a quantized one come dequantized, on their grid."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantized else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that we pass `dequantize`, which we do
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True, **extra
        )
    unread = [name for name in loaded["unexpected_keys"] if name.endswith(("weight_scale", "weight_packed"))]
    if quantized and unread:
        what = f"transformers does not read {len(unread)} of its quantized tensors, like {min(unread)}"
        raise QuantgateError(f"{folder}: {what}: these modules are not linear in its model")
    if quantized:
        from compressed_tensors.offload import remove_dispatch

        remove_dispatch(model)  # else every module goes on computing where it was dequantized: on the CPU
        _skip_weight_rounding(model)
    return model


def score_tokens(model: Any, ids: "torch.Tensor") -> list[float]:
    """The log-probability, in nats, of each token of `ids` (1, tokens) after the first."""
    logprobs = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    scores: list[float] = logprobs.gather(1, ids[0, 1:, None]).flatten().tolist()
    return scores


def choose_device(wanted: str | None) -> str:
    """`wanted`, or `cuda` where there is one, else `cpu`.

    Raises:
        BadInput: it is not there.
    """
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not (re.fullmatch(r"cuda(:\d+)?", wanted) and torch.cuda.is_available()):
        raise bad_input(f"--device {wanted}", "is not a device of this machine", "leave it out, or use cpu")
    return wanted


def check_room(needed: int, device: str) -> None:
    """Refuse a `device` whose free memory does not hold `needed` bytes of weights.

    Raises:
        BadInput: it does not.
    """
    import torch

    if device == "cpu":
        return
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    if needed > free:
        what = f"has {free / 1e9:.1f} GB of memory free, and the model's weights take {needed / 1e9:.1f} GB"
        raise bad_input(f"--device {device}", what, NO_ROOM)


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


def _share_rounding(model: Any) -> None:
    """Round activations once for all layers that read them, and faster than compressed-tensors does."""
    import torch

    rounding = _SharedRounding()
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        inputs = scheme.input_activations if scheme else None
        if inputs and isinstance(module, torch.nn.Linear):
            _replace_forward(module, rounding, _rounder(module, inputs))


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

    def __call__(self, x: "torch.Tensor", rounder: Rounder) -> "torch.Tensor":
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
    import torch

    scale = x.abs().amax(dim=-1, keepdim=True) / FP8_MAX
    return _fp8(x, torch.where(scale == 0, torch.finfo(x.dtype).eps, scale))


def fp8_group_round(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """`x` (…, features) rounded to E4M3 with one scale for each `size` features of a token."""
    return fp8_round(_groups(x, size)).flatten(-2)


def _groups(x: "torch.Tensor", size: int) -> "torch.Tensor":
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def fp8_static_round(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """`x` rounded to E4M3 with the scale that was measured, in float32 where `x` cannot hold the scale."""
    stored = x.new_tensor(scale)
    rounded = _fp8(x, stored) if float(stored) == scale else _fp8(x.float(), x.new_tensor(scale).float().fill_(scale))
    return rounded.to(x.dtype).masked_fill_(x.isnan(), float("nan"))


def _fp8(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """A code's seven low bits, moved into a bfloat16's exponent and mantissa, are its value times 2^-120."""
    import torch

    codes = (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    if x.dtype != torch.bfloat16:
        return codes.to(x.dtype).mul_(scale)
    wide = codes.view(torch.uint8).to(torch.int16)
    bits = (wide & 0x7F).bitwise_left_shift_(4).bitwise_or_((wide & 0x80).bitwise_left_shift_(8))
    return bits.view(torch.bfloat16).mul_(2.0**120).mul_(scale)


def int8_round(x: "torch.Tensor") -> "torch.Tensor":
    """`x` (…, features) rounded to INT8 with one scale for each token."""
    import torch

    scale = x.abs().amax(dim=-1, keepdim=True) / 127.5
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    return (x / scale).clamp_(-128, 127).round_().mul_(scale)


def int8_static_round(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """`x` rounded to INT8 with the scale that was measured, in float32."""
    return (x.float() / scale).round_().clamp_(-128, 127).mul_(scale).to(x.dtype)


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
