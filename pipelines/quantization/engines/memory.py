"""How a model that is larger than memory is worked on: a few tensors at a time in memory of their own."""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator

import torch

MADV_PAGEOUT = 21
"""Linux's number for: take these pages out of memory, and lose nothing. Kernels before 5.4 ignore it."""


@contextlib.contextmanager
def own_memory(tensors: list[torch.Tensor], device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Give `tensors` memory of their own, on `device`, for as long as they are worked on; parameters as `dtype`.

    They are pages of the source's file: what is read or written there stays in memory, layer after layer.
    """
    originals = [tensor.data for tensor in tensors]
    for tensor in tensors:
        own = dtype if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(device, own, copy=True)
    for original in originals:
        release_pages(original)
    yield
    for tensor, original in zip(tensors, originals, strict=True):
        tensor.data = original


def release_pages(tensor: torch.Tensor) -> None:
    """Give back the memory of pages that mirror a file; whoever reads `tensor` again reads the file again."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - first
    if sys.platform == "linux" and tensor.device.type == "cpu" and size > 0:
        libc = ctypes.CDLL(None)  # the standard library's madvise is for maps of its own
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_PAGEOUT)
