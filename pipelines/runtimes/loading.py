"""Loading a checkpoint, quantized or not, in transformers, as evaluation and verification run it."""

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoint.architecture import auto_class, load_config
from pipelines.core.device import NO_ROOM, ComputeDtype, keep_freed_memory
from pipelines.core.errors import QuantgateError, brief
from pipelines.runtimes.generation import check_generation, use_own_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
from pipelines.formats.activations import input_rounder
from pipelines.formats.description import Rounder

SCALES = ("_scale", "_zero_point")
"""Ends of the names of compressed-tensors' parameters that are no weights."""


def load_for_inference(folder: Path, device: str, dtype: ComputeDtype | None = None) -> Any:
    """Return the model in `folder` on `device`, ready to compute in `dtype` (its own unless given).

    A compressed-tensors artifact is dequantized once, and its activations are quantized at every layer as a GPU kernel
    would do it. Two things transformers does are left out, and neither changes a bit of the result: it would round the
    dequantized weights again in every forward pass, and it rounds the same input once for each layer that reads it.

    What it generates is by its caller's settings, not by those that the checkpoint recommends (see `generation`).

    Raises:
        BadInput: transformers cannot read its generation config.
        QuantgateError: the GPU's memory does not hold the model.
    """
    import torch

    from pipelines.runtimes import dequantize

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
    """Return the model as transformers reads it; quantized weights come dequantized, on their grid."""
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
    """Return the log-probability, in nats, of each token of `ids` (1, tokens) after the first."""
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
            _replace_forward(module, rounding, input_rounder(module, inputs))


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


class _SharedRounding:
    """The last input and what it was rounded to, since q, k and v read the same one, and gate and up too."""

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
