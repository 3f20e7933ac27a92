"""The weight files of an artifact: one for each of the source's, holding what the plan makes of its tensors."""

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipelines.checkpoint.dtypes import TORCH_DTYPES
from pipelines.checkpoint.headers import BYTES, INDEX, TensorInfo
from pipelines.checkpoint.writer import SafetensorsWriter, as_bytes, write_index
from pipelines.core.errors import QuantgateError
from pipelines.planning.plan import CheckpointPlan, Module

if TYPE_CHECKING:
    import torch


class ArtifactFiles:
    """The weight files while they are written, in pieces and in any order; on a clean exit every byte must be there."""

    def __init__(self, plan: CheckpointPlan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._writers: dict[str, SafetensorsWriter] = {}
        self._home: dict[str, SafetensorsWriter] = {}
        for file in plan.checkpoint.weight_files:
            outputs = _outputs(plan, [tensor for tensor in plan.checkpoint.tensors if tensor.file == file])
            writer = SafetensorsWriter(folder / file, outputs)
            self._writers[file] = writer
            self._home |= dict.fromkeys(outputs, writer)

    def write(self, name: str, value: "torch.Tensor", first_byte: int = 0) -> None:
        """Write contiguous `value` (CPU) at `first_byte` of tensor `name`."""
        self._home[name].write(name, as_bytes(value), first_byte)

    def write_rows(self, module: Module, parts: "Mapping[str, torch.Tensor]", first: int = 0) -> None:
        """Write the tensors (suffix → value, CPU) of a module's rows from `first` on."""
        rows = module.shape[0]
        for suffix, part in parts.items():
            stored, shape = module.parts[suffix]
            if len(shape) == 1:  # the whole tensor's own scale: once
                if first == 0:
                    self.write(f"{module.name}.{suffix}", part)
                continue
            row_bytes = BYTES[stored] * math.prod(shape[1:])
            self.write(f"{module.name}.{suffix}", part, first * shape[0] // rows * row_bytes)

    def write_shape(self, module: Module) -> None:
        """Write the shape of a module's weight, where its format stores one."""
        import torch

        if "weight_shape" in module.parts:
            self.write(f"{module.name}.weight_shape", torch.tensor(module.shape))

    def copy(self, tensor: TensorInfo, source: int) -> None:
        """Copy a tensor from `source`, the descriptor of an open file."""
        self._home[tensor.name].copy(tensor.name, source, tensor.start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.__exit__(kind, error, trace)
        if kind is None and (len(self._writers) > 1 or (self._plan.checkpoint.folder / INDEX).is_file()):
            write_index(self._folder, {file: writer.sizes.items() for file, writer in self._writers.items()})


def copy_kept(plan: CheckpointPlan, files: ArtifactFiles, but: Collection[str] = ()) -> None:
    """Copy every tensor of the source that is not quantized, but for those named in `but`."""
    for file in plan.checkpoint.weight_files:
        source = os.open(plan.checkpoint.folder / file, os.O_RDONLY)
        try:
            for tensor in plan.checkpoint.tensors:
                if tensor.file == file and tensor.name not in but and quantized_module(plan, tensor) is None:
                    files.copy(tensor, source)
        finally:
            os.close(source)


def quantized_module(plan: CheckpointPlan, tensor: TensorInfo) -> Module | None:
    """Return the quantized module whose weight `tensor` is; None if it is kept."""
    name, _, parameter = tensor.name.rpartition(".")
    return plan.quantized.get(name) if parameter == "weight" else None


def _outputs(plan: CheckpointPlan, sources: list[TensorInfo]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors that become of `sources`: name → dtype and shape. Scales of a cache lie beside its keys."""
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in sources:
        if module := quantized_module(plan, tensor):
            outputs |= {f"{module.name}.{suffix}": part for suffix, part in module.parts.items()}
        else:
            outputs[tensor.name] = (tensor.dtype, tensor.shape)
        attention, _, last = tensor.name.removesuffix(".weight").rpartition(".")
        if attention in plan.attentions and last in ("k_proj", "qkv_proj", "query_key_value"):
            scales = (f"{attention}.k_scale", f"{attention}.v_scale")
            outputs |= {name: plan.cache_scales[name] for name in scales}
    return outputs


def read_rows(folder: Path, tensor: TensorInfo, first: int = 0, last: int | None = None) -> "torch.Tensor":
    """Return the rows `first` to `last` of a stored tensor, in the dtype it is stored in.

    Raises:
        QuantgateError: the file is shorter than its header says.
    """
    import torch

    length, *rest = tensor.shape or (1,)
    row_bytes = tensor.bytes // length
    count = (length if last is None else last) - first
    data = bytearray(count * row_bytes)
    descriptor = os.open(folder / tensor.file, os.O_RDONLY)
    try:
        done, start = 0, tensor.start + first * row_bytes
        while done < len(data):  # a call reads 2 GiB at most
            read = os.preadv(descriptor, [memoryview(data)[done:]], start + done)
            if not read:
                raise QuantgateError(f"{folder / tensor.file} became shorter while tensor {tensor.name} was read")
            done += read
    finally:
        os.close(descriptor)
    return torch.frombuffer(data, dtype=getattr(torch, TORCH_DTYPES[tensor.dtype])).view(count, *rest)
