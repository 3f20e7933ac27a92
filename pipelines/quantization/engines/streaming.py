"""The data-free engine: rounding to nearest from file to file, a block of rows at a time, so that memory does not grow
with the model.

Each weight is rounded once, from a float32 quotient (one in bfloat16 would round it twice).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pipelines.checkpoint.finite import not_finite
from pipelines.checkpoint.headers import TensorInfo
from pipelines.core import progress
from pipelines.core.errors import QuantgateError, refuse
from pipelines.formats import nvfp4, rounding
from pipelines.planning.plan import CheckpointPlan, Module
from pipelines.planning.quantization_config import written_config
from pipelines.quantization.files import ArtifactFiles, quantized_module
from pipelines.quantization.written import Written, fused_names, rows_at_a_time

BLOCK_ELEMENTS = 1 << 21
"""Number of weights converted at a time: 8 MB in float32, small enough to stay in a core's cache."""


def quantize(plan: CheckpointPlan, tokens: None, folder: Path) -> Written:
    """Write the artifact's weight files, one for each of the source's, into `folder`.

    Raises:
        BadInput: a quantized weight of the source holds NaN or infinities.
        QuantgateError: the source became shorter while it was read.
    """
    assert tokens is None
    tensor_scales = _tensor_scales(plan)
    with (
        ArtifactFiles(plan, folder) as files,
        progress.bar(plan.bytes_before, "quantize", "B") as bar,
    ):
        for file in plan.checkpoint.weight_files:
            source = os.open(plan.checkpoint.folder / file, os.O_RDONLY)
            try:
                tensors = (tensor for tensor in plan.checkpoint.tensors if tensor.file == file)
                for tensor in sorted(tensors, key=lambda tensor: tensor.start):
                    if module := quantized_module(plan, tensor):
                        _convert(tensor, module, tensor_scales.get(module.name), source, files)
                    else:
                        files.copy(tensor, source)
                    bar.update(tensor.bytes)
            finally:
                os.close(source)
    return Written(quantization_config=written_config(plan))


def _convert(
    tensor: TensorInfo, module: Module, tensor_scale: torch.Tensor | None, source: int, files: ArtifactFiles
) -> None:
    """Quantize one weight (out, in), reading and writing a block of whole rows at a time."""
    assert module.scheme
    for first, weight in _blocks(tensor, module, source):
        scales = rounding.find_scales(weight, module.scheme, module.group_size, tensor_scale)
        _check_finite(tensor, scales.step)
        codes = rounding.quantize(weight, scales)
        files.write_rows(module, rounding.pack(codes, scales, module.scheme, weight.dtype), first)
    files.write_shape(module)


def _blocks(tensor: TensorInfo, module: Module, source: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield blocks of a weight (rows, columns), each with the number of its first row, and valid until the next."""
    dtype = rounding.DTYPES[tensor.dtype]
    rows, columns = tensor.shape
    block = rows_at_a_time(module, BLOCK_ELEMENTS)
    buffer = bytearray(min(rows, block) * columns * dtype.itemsize)
    for first in range(0, rows, block):
        count = min(block, rows - first)
        view = memoryview(buffer)[: count * columns * dtype.itemsize]
        read = os.preadv(source, [view], tensor.start + first * columns * dtype.itemsize)
        if read != view.nbytes:
            raise QuantgateError(f"the source of tensor {tensor.name} became shorter while it was read")
        yield first, torch.frombuffer(view, dtype=dtype).view(count, columns)


def _tensor_scales(plan: CheckpointPlan) -> dict[str, torch.Tensor]:
    """Return module → NVFP4's scale (1,) of its whole weight; runtimes fuse modules, so that a fused set shares one."""
    wanted = [module for module in plan.modules if "weight_global_scale" in module.parts]
    if not wanted:
        return {}
    tensors = {tensor.name: tensor for tensor in plan.checkpoint.tensors}
    largest: dict[str, torch.Tensor] = {}
    for module in progress.track(wanted, "scales", "layer"):
        tensor = tensors[f"{module.name}.weight"]
        source = os.open(plan.checkpoint.folder / tensor.file, os.O_RDONLY)
        try:
            blocks = [weight.abs().amax().float() for _, weight in _blocks(tensor, module, source)]
        finally:
            os.close(source)
        largest[module.name] = torch.stack(blocks).amax()
        _check_finite(tensor, largest[module.name])
    together = fused_names(plan)
    return {
        name: nvfp4.tensor_scale(torch.stack([largest[other] for other in together[name]]).amax()) for name in largest
    }


def _check_finite(tensor: TensorInfo, found: torch.Tensor) -> None:
    """Raise `BadInput` unless `found`, which is computed from all of `tensor` or a part of it, is numbers."""
    if not torch.isfinite(found).all():
        refuse([not_finite(tensor)])
