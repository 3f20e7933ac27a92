"""Whether the numbers of a checkpoint are numbers: a NaN in a norm makes every artifact look broken that keeps it."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipelines.checkpoint.dtypes import TORCH_DTYPES
from pipelines.checkpoint.headers import FLOAT, Checkpoint, TensorInfo
from pipelines.core.errors import Problem, refuse

if TYPE_CHECKING:
    import torch

BLOCK = 16 << 20
"""Bytes that are looked at together."""


def check_finite(checkpoint: Checkpoint, tensors: Iterable[TensorInfo]) -> None:
    """Raise `BadInput` with each of `tensors`, floating point, that holds NaN or infinities.

    A tensor that is a single number may be infinite: models keep what masks are filled with.
    """
    refuse(not_finite(tensor) for tensor in tensors if tensor.dtype in FLOAT and not _is_sound(checkpoint, tensor))


def not_finite(tensor: TensorInfo) -> Problem:
    """Return what is wrong with a tensor that holds NaN or infinities."""
    what = f"tensor {tensor.name} holds NaN or infinite numbers; the source checkpoint is broken"
    return Problem(tensor.file, what, "get it again, or one from before training broke down")


def _is_sound(checkpoint: Checkpoint, tensor: TensorInfo) -> bool:
    largest = [block.abs().amax() for block in _blocks(checkpoint, tensor)]  # NaN, if there is one
    return all(bool(one.isfinite()) or (not tensor.shape and not one.isnan()) for one in largest)


def _blocks(checkpoint: Checkpoint, tensor: TensorInfo) -> "Iterator[torch.Tensor]":
    import torch

    with (checkpoint.folder / tensor.file).open("rb") as file:
        file.seek(tensor.start)
        for at in range(0, tensor.bytes, BLOCK):
            data = bytearray(file.read(min(BLOCK, tensor.bytes - at)))
            yield torch.frombuffer(data, dtype=getattr(torch, TORCH_DTYPES[tensor.dtype]))
