"""Loading a checkpoint, quantized or not, in transformers, as evaluation and verification run it."""

from pathlib import Path
from typing import Any


def load_for_inference(folder: Path, device: str) -> Any:
    """The model in `folder` on `device`, in its own dtype, ready for inference.

    A compressed-tensors artifact is dequantized once, and its activations are quantized at every layer as a GPU
    kernel would do it; without this, transformers would also round the weights again in every forward pass, which
    changes nothing but the time it takes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantization = getattr(config, "quantization_config", None)
    extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantization else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False, **extra)
    if quantization:
        _skip_weight_rounding(model)
    return model.to(torch.device(device)).eval()


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _skip_weight_rounding(model: Any) -> None:
    """Tell compressed-tensors that the weights are on their grid already (they were just dequantized from it)."""
    from compressed_tensors.quantization import QuantizationStatus

    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.quantization_status = QuantizationStatus.COMPRESSED
