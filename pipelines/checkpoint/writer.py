"""Writes a safetensors file whose tensors arrive in pieces and in any order, so that none must fit in memory."""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipelines.checkpoint.headers import BYTES
from pipelines.core.errors import QuantgateError

if TYPE_CHECKING:
    import torch

COPY_CHUNK = 16 << 20


def as_bytes(tensor: "torch.Tensor") -> memoryview:
    """Return the bytes of a tensor in memory, row after row."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class SafetensorsWriter:
    """A file for `tensors` (name → dtype, shape), filled by position; on exit every byte must have been written.

    Tensors are laid out widest dtype first, as the safetensors library does, so that each is aligned.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        order = sorted(tensors, key=lambda name: (-BYTES[tensors[name][0]], name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self.sizes: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        position = 0
        for name in order:
            dtype, shape = tensors[name]
            size = BYTES[dtype]
            for length in shape:
                size *= length
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
            self._starts[name], self.sizes[name] = position, size
            position += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data_start = 8 + len(text)
        self._written = dict.fromkeys(order, 0)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.pwrite(self._fd, struct.pack("<Q", len(text)) + text, 0)

    def write(self, name: str, data: memoryview, at: int = 0) -> None:
        """Write `data` (contiguous bytes) at byte `at` of tensor `name`."""
        start = self._data_start + self._starts[name] + at
        done = 0
        while done < data.nbytes:
            done += os.pwrite(self._fd, data[done:], start + done)
        self._written[name] += done

    def copy(self, name: str, source: int, start: int) -> None:
        """Fill tensor `name` with the bytes at `start` of the open file `source`."""
        for at in range(0, self.sizes[name], COPY_CHUNK):
            wanted = min(COPY_CHUNK, self.sizes[name] - at)
            chunk = os.pread(source, wanted, start + at)
            if len(chunk) != wanted:
                raise QuantgateError(f"the source of tensor {name} became shorter while it was read")
            self.write(name, memoryview(chunk), at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                short = [name for name, size in self.sizes.items() if self._written[name] != size]
                if short:
                    raise QuantgateError(f"{self._path.name}: tensors written in part: {', '.join(short[:3])}")
                os.fsync(self._fd)
        finally:
            os.close(self._fd)


def write_index(folder: Path, files: Mapping[str, Iterable[tuple[str, int]]]) -> None:
    """Write the index of a sharded checkpoint: `files` maps each file to its tensors' names and byte counts."""
    weight_map = {name: file for file, tensors in sorted(files.items()) for name, _ in tensors}
    total = sum(size for tensors in files.values() for _, size in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
