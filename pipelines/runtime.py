"""Loading a checkpoint, quantized or not, in transformers, as evaluation and verification run it."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import bad_input
from pipelines.schemes import FP8_MAX

if TYPE_CHECKING:
    import torch


def load_for_inference(folder: Path, device: str) -> Any:
    """The model in `folder` on `device`, in its own dtype, ready for inference.

    A compressed-tensors artifact is dequantized once, and its activations are quantized at every layer as a GPU kernel
    would do it. Two things transformers does are left out, and neither changes a bit of the result: it would round the
    dequantized weights again in every forward pass, and it rounds the same input once for each layer that reads it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantized = getattr(config, "quantization_config", None) is not None
    extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantized else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that we pass `dequantize`, which we do
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False, **extra)
    if quantized:
        _skip_weight_rounding(model)
    model = model.to(torch.device(device)).eval()
    if quantized and device == "cpu":
        _share_fp8_rounding(model)
    return model


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


def _skip_weight_rounding(model: Any) -> None:
    """Tell compressed-tensors that the weights are on their grid already (they were just dequantized from it)."""
    from compressed_tensors.quantization import QuantizationStatus

    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.quantization_status = QuantizationStatus.COMPRESSED


def _share_fp8_rounding(model: Any) -> None:
    """Round FP8 activations once for all layers that read them, and faster than PyTorch's cast back from FP8 does."""
    import torch

    rounding = _SharedRounding()
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        inputs = scheme.input_activations if scheme else None
        plain = isinstance(module, torch.nn.Linear) and module.weight.dtype == torch.bfloat16
        if inputs and plain and inputs.type == "float" and inputs.num_bits == 8 and inputs.strategy == "token":
            module.forward = _linear(module, rounding)


def _linear(module: Any, rounding: "_SharedRounding") -> Any:
    import torch

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.linear(rounding(x), module.weight, module.bias)

    return forward


class _SharedRounding:
    """Remembers the last input and what it was rounded to: q, k and v read the same one, gate and up too."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: "torch.Tensor") -> "torch.Tensor":
        if self._last is None or self._last[0] is not x:
            self._last = (x, fp8_round(x))
        return self._last[1]


def fp8_round(x: "torch.Tensor") -> "torch.Tensor":
    """`x` (…, features) in bfloat16, rounded to E4M3 with one scale for each token; bit for bit compressed-tensors'.

    A code's seven low bits, moved into a bfloat16's exponent and mantissa, are its value times 2^-120.
    """
    import torch

    scale = x.abs().amax(dim=-1, keepdim=True) / FP8_MAX
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    codes = (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    bits = (codes & 0x7F).bitwise_left_shift_(4).bitwise_or_((codes & 0x80).bitwise_left_shift_(8))
    return bits.view(torch.bfloat16).mul_(2.0**120).mul_(scale)
