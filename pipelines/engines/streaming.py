"""Round to nearest, straight from file to file: a block of rows at a time, so memory does not grow with the model.

Source of the numbers: compressed-tensors' FP8_DYNAMIC. A row's scale is its largest magnitude / 448, in the source's
dtype; the quotient is taken in float32, so that each weight is rounded once (a quotient in bfloat16 rounds it twice).
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Never

from tqdm import tqdm

from pipelines.checkpoint import INDEX, TensorInfo
from pipelines.engines import Written
from pipelines.errors import QuantgateError
from pipelines.plan import Plan
from pipelines.safetensors_writer import SafetensorsWriter, write_index
from pipelines.schemes import FP8_MAX, config_group, layout

BLOCK_ELEMENTS = 1 << 21
"""Weights converted at a time: 8 MB in float32, small enough to stay in a core's cache."""

if TYPE_CHECKING:
    import torch

VERSION = "0.19.0"  # of compressed-tensors, whose format this is


def quantize(plan: Plan, tokens: None, folder: Path) -> Written:
    """Write the artifact's weight files, one for each of the source's, into `folder`."""
    assert tokens is None
    files: dict[str, list[tuple[str, int]]] = {}
    with tqdm(total=plan.bytes_before, unit="B", unit_scale=True, desc="quantize", delay=1) as bar:
        for file in plan.checkpoint.weight_files:
            sources = [tensor for tensor in plan.checkpoint.tensors if tensor.file == file]
            files[file] = _convert_file(plan, sources, folder / file, bar)
    if len(files) > 1 or (plan.checkpoint.folder / INDEX).is_file():
        write_index(folder, files)
    return Written(quantization_config=_config(plan))


def _convert_file(plan: Plan, sources: list[TensorInfo], to: Path, bar: "tqdm[Never]") -> list[tuple[str, int]]:
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in sources:
        module = tensor.name.removesuffix(".weight")
        if module in plan.quantized and tensor.name.endswith(".weight"):
            parts = layout(plan.recipe.quantize, tensor.shape, tensor.dtype, None)
            outputs |= {f"{module}.{suffix}": part for suffix, part in parts.items()}
        else:
            outputs[tensor.name] = (tensor.dtype, tensor.shape)
    source = os.open(plan.checkpoint.folder / sources[0].file, os.O_RDONLY)
    try:
        with SafetensorsWriter(to, outputs) as writer:
            for tensor in sorted(sources, key=lambda tensor: tensor.start):
                if f"{tensor.name}_scale" in outputs:
                    _fp8(tensor, source, writer)
                else:
                    writer.copy(tensor.name, source, tensor.start)
                bar.update(tensor.bytes)
            return list(writer.sizes.items())
    finally:
        os.close(source)


def _fp8(tensor: TensorInfo, source: int, writer: SafetensorsWriter) -> None:
    """Quantize one weight (out, in), reading and writing a block of whole rows at a time."""
    import torch

    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[tensor.dtype]
    rows, columns = tensor.shape
    block = max(1, BLOCK_ELEMENTS // columns)
    buffer = bytearray(min(rows, block) * columns * dtype.itemsize)
    for first in range(0, rows, block):
        count = min(block, rows - first)
        view = memoryview(buffer)[: count * columns * dtype.itemsize]
        read = os.preadv(source, [view], tensor.start + first * columns * dtype.itemsize)
        if read != view.nbytes:
            raise QuantgateError(f"the source of tensor {tensor.name} became shorter while it was read")
        weight = torch.frombuffer(view, dtype=dtype).view(count, columns)
        scale = fp8_scale(weight)
        codes = fp8_codes(weight, scale)
        if not torch.isfinite(scale).all():
            raise QuantgateError(f"tensor {tensor.name} holds NaN or infinite weights; the source checkpoint is broken")
        writer.write(tensor.name, codes.view(torch.uint8).numpy().data.cast("B"), first * columns)
        scales = scale.view(torch.uint8).numpy()
        writer.write(f"{tensor.name}_scale", scales.data.cast("B"), first * dtype.itemsize)


def fp8_scale(weight: "torch.Tensor") -> "torch.Tensor":
    """The scale of each row of `weight` (rows, columns), as (rows, 1) in the weight's dtype.

    A row of zeros gets the scale 1, so that no scale is zero.
    """
    import torch

    scale = (weight.abs().amax(dim=1, keepdim=True).float() / FP8_MAX).to(weight.dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def fp8_codes(weight: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """`weight` (rows, columns) over `scale` (rows, 1), rounded to float8_e4m3fn."""
    import torch

    return weight.float().div_(scale.float()).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def _config(plan: Plan) -> dict[str, object]:
    group = config_group(plan.recipe.quantize.scheme, ["Linear"], None)
    kept = [module.name for module in plan.modules if not module.quantized]
    head = [] if "lm_head" in {module.name for module in plan.modules} else ["lm_head"]
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "quantization_status": "compressed",
        "format": group["format"],
        "config_groups": {"group_0": group},
        "ignore": sorted([*kept, *head]),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
