"""Marks by which a checkpoint says that it is quantized already."""

from collections.abc import Iterator

from pipelines.checkpoint.headers import BYTES, Checkpoint
from pipelines.checkpoint.safety import entries
from pipelines.core.errors import Problem, refuse

QUANTIZED_KEYS = ("quantization_config", "compression_config")
"""Keys of a config, at any depth, by which a checkpoint says that it is quantized."""
QUANTIZED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Files in which Model Optimizer, AutoGPTQ and AutoAWQ say it."""
QUANTIZED_SCALES = ("weight_scale", "weight_scale_inv", "weight_absmax", "SCB", "scales")
"""Ends of the names of scales that lie beside weights of 8 bits."""


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` when the checkpoint is already quantized, wherever it says so: quantizing twice loses twice."""
    remedy = "give the full-precision checkpoint it was made from"
    refuse(
        Problem(str(checkpoint.folder / file), f"the checkpoint is already quantized ({why})", remedy)
        for file, why in _marks_of_quantization(checkpoint)
    )


def _marks_of_quantization(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield the files that tell that a checkpoint is quantized, each with what it tells."""
    for key, found in entries(checkpoint.config):
        if key in QUANTIZED_KEYS and found is not None:
            method = found.get("quant_method") if isinstance(found, dict) else found
            yield "config.json", str(method or f"{key} is set")
    for name in QUANTIZED_FILES:
        if (checkpoint.folder / name).is_file():
            yield name, "by this file"
    names = {tensor.name for tensor in checkpoint.tensors}
    for tensor in checkpoint.tensors:
        module = tensor.name.removesuffix(".weight")
        scales = next((f"{module}.{end}" for end in QUANTIZED_SCALES if f"{module}.{end}" in names), None)
        if scales and BYTES[tensor.dtype] == 1 and len(tensor.shape) == 2:
            yield tensor.file, f"{tensor.name} is {tensor.dtype}, beside {scales}"
            return
