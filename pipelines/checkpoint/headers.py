"""A Hugging Face checkpoint as its config and safetensors headers tell it: no weight is read, torch is not imported."""

import struct
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field

from pipelines.checkpoint.companions import declared_licence, other_files
from pipelines.checkpoint.safety import folder_label, foreign_files, misleading_settings, unprintable_name
from pipelines.core.cache import digest, file_digest
from pipelines.core.errors import BadInput, Problem, bad_input, refuse
from pipelines.core.records import parse_json
from pipelines.core.strict_yaml import Frozen

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor suffix → (safetensors dtype, shape)."""
BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes per element of safetensors' dtypes."""
FLOAT = ("F32", "BF16", "F16")
"""Types of weights that can be quantized."""
FLOATING = (*FLOAT, "F64", "F8_E4M3", "F8_E5M2")
"""Types of numbers that need not be whole."""
MAX_HEADER = 100 << 20
"""Bytes of the longest header that is read."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class TensorInfo(Frozen):
    """A tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    """Offset of its first byte in `file`."""
    end: int

    @property
    def elements(self) -> int:
        """Count of numbers."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Size in the file, in bytes."""
        return self.end - self.start


class Checkpoint(Frozen):
    """A checkpoint folder: safetensors weights, `config.json` and what travels with them."""

    folder: Path
    label: str
    """Name of the model: `org/name` or the folder's name."""
    revision: str | None = None
    """Commit of the hub, for a checkpoint that came from there."""
    hub_id: str | None = None
    """Hub repository that these weights are, or come from."""
    licence: str | None = None
    notes: tuple[str, ...] = ()
    """Sentences that a reader of any result on this model must know."""
    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...] = Field(repr=False)
    companions: tuple[str, ...]
    """Names of files copied unchanged into an artifact, relative to `folder`."""
    left_behind: tuple[str, ...]
    """Names of files that an artifact does not get: other formats, code."""

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the safetensors files."""
        return tuple(sorted({tensor.file for tensor in self.tensors}))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Count of the numbers in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that decides what the model computes. Reads every byte, once (see `file_digest`)."""
        files = {*self.weight_files, *self.companions, "config.json"}
        return {name: file_digest(self.folder / name) for name in sorted(files)}

    @property
    def digest(self) -> str:
        """Digest over `digests`."""
        return digest(self.digests)


def read_checkpoint(folder: Path, label: str | None = None) -> Checkpoint:
    """Read and check the headers of the checkpoint in `folder`.

    Raises:
        BadInput: with every problem: no config, no weights, pickles only, a missing shard, a truncated or corrupt file,
            a link that leads out of the folder, or what would make a runtime load something else.
    """
    if not folder.is_dir():
        raise bad_input(folder, "is not a folder", "MODEL is a checkpoint folder or a hub id like org/name[@revision]")
    refuse(foreign_files(folder))
    config, problems = _read_json(folder / "config.json")
    problems += misleading_settings(folder, config)
    files, promised, found = _weight_files(folder)
    problems += found
    tensors, found = _read_headers(folder, files)
    problems += found
    names = [tensor.name for tensor in tensors]
    for name in sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        what = f"tensor {name} is in more than one file"
        problems.append(Problem(str(folder), what, "take it out of all files but one"))
    if not problems and (absent := sorted(promised - set(names))):
        what = f"names {len(absent)} tensors that its files do not hold, like {absent[0]}"
        problems.append(Problem(str(folder / INDEX), what, "copy it again"))
    if not problems and files != [SINGLE] and (folder / SINGLE).is_file():
        what = f"lies beside an index of other files: transformers loads this one alone, vLLM what {INDEX} names"
        problems.append(Problem(str(folder / SINGLE), what, "remove one of the two"))
    refuse(problems)
    companions, left_behind = other_files(folder, {*files, INDEX})
    refuse(unprintable_name(folder, name) for name in left_behind if not name.isprintable())
    return Checkpoint(
        folder=folder.absolute(),
        label=label or folder_label(folder),
        licence=declared_licence(folder),
        config=config,
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
        companions=companions,
        left_behind=left_behind,
    )


def read_header(path: Path, file: str) -> list[TensorInfo]:
    """Return the tensors of one safetensors file, checked against its size.

    Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON header, data).
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        header, data_start = _header(handle, path, size)
    read = {name: _tensor(name, entry, file, data_start) for name, entry in header.items()}
    tensors = [tensor for tensor in read.values() if tensor]
    end = max((tensor.end for tensor in tensors), default=size)
    faults: dict[_Fault, list[str]] = {}
    for name, tensor in read.items():
        if fault := _fault(tensor, size, end):
            faults.setdefault(fault, []).append(name)
    refuse(
        Problem(str(path), f"{before}{_who(names)}{after}", remedy) for (before, after, remedy), names in faults.items()
    )
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise bad_input(
                path,
                f"corrupt header: tensor {tensor.name} does not begin where the one before it ends",
                "copy it again",
            )
        position = tensor.end
    if position != size:
        raise bad_input(path, f"has {size - position} bytes that belong to no tensor", "copy it again")
    return tensors


_Fault = tuple[str, str, str]
"""What is wrong with some tensors of a file: the words before and after their names, and the remedy."""


def _tensor(name: str, entry: Any, file: str, data_start: int) -> TensorInfo | None:
    """Return the tensor that an entry of the header of `file` describes; None if it describes none."""
    try:
        begin, end = entry["data_offsets"]
        start, end, shape = data_start + begin, data_start + end, tuple(entry["shape"])
        return TensorInfo(name=name, dtype=entry["dtype"], shape=shape, file=file, start=start, end=end)
    except (KeyError, TypeError, ValueError):
        return None


def _fault(tensor: TensorInfo | None, size: int, end: int) -> _Fault | None:
    """Return what is wrong with a tensor of a file of `size` bytes, whose header says that it ends at `end`."""
    if tensor is None:
        return "corrupt header entry for ", "", "copy it again"
    if tensor.end > size:
        return f"truncated: {end - size} bytes of ", " are missing", "copy it again"
    if tensor.dtype not in BYTES:
        return f"dtype {tensor.dtype} of ", " is not supported", f"give weights in {', '.join(sorted(FLOAT))}"
    if tensor.elements * BYTES[tensor.dtype] != tensor.bytes or min(tensor.shape, default=0) < 0:
        return "corrupt header: shape and size of ", " disagree", "copy it again"
    return None


def _who(names: list[str]) -> str:
    return f"tensor {names[0]}" if len(names) == 1 else f"{len(names)} tensors, like {names[0]},"


def _header(handle: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    prefix = handle.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if length == 0 or length > MAX_HEADER or 8 + length > size:
        raise bad_input(path, "is not a safetensors file, or its header is truncated", "copy it again")
    try:
        header = parse_json(handle.read(length), _each_once)
    except ValueError:
        raise bad_input(path, "has a corrupt safetensors header", "copy it again") from None
    if not isinstance(header, dict):
        raise bad_input(path, "has a corrupt safetensors header", "copy it again")
    header.pop("__metadata__", None)
    return header, 8 + length


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError for a key that is given twice: each reader may take another one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _read_headers(folder: Path, files: list[str]) -> tuple[list[TensorInfo], list[Problem]]:
    """Return the tensors of all `files` that can be read, and what is wrong with the others."""
    tensors: list[TensorInfo] = []
    problems: list[Problem] = []
    for file in files:
        try:
            tensors += read_header(folder / file, file)
        except BadInput as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(str(folder / file), f"cannot be read: {error.strerror}", "copy it again"))
    return tensors, problems


def _weight_files(folder: Path) -> tuple[list[str], set[str], list[Problem]]:
    """Return the files that hold the model, the tensors that an index promises, and what is wrong with either."""
    if (folder / INDEX).is_file():
        return _indexed_files(folder)
    if (folder / SINGLE).is_file():  # an adapter or another form of the weights beside it is no part of it
        return [SINGLE], set(), []
    problems = []
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles and not files:
        what = f"has pickle weights only ({', '.join(pickles[:3])})"
        problems.append(Problem(str(folder), what, "pickle can run code: convert to safetensors where you trust it"))
    elif not files:
        problems.append(Problem(str(folder), "has no safetensors weights", "is this a checkpoint?"))
    elif any(name.startswith("pytorch_model") for name in pickles):
        what = f"has no {SINGLE}, so that loaders would take its pickles, which can run code, and not {files[0]}"
        problems.append(Problem(str(folder), what, f"rename that to {SINGLE}, or remove the pickles"))
    return files, set(), problems


def _indexed_files(folder: Path) -> tuple[list[str], set[str], list[Problem]]:
    """Return, as `_weight_files`, what the index names."""
    index = folder / INDEX
    content, problems = _read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        weight_map = {}
    if not weight_map and not problems:
        problems.append(Problem(str(index), "has no weight_map from tensors to files", "copy it again"))
    files = sorted(set(weight_map.values()))
    for file in files:
        if Path(file).name != file:
            problems.append(
                Problem(
                    str(index),
                    f"names a file outside its folder: {file}",
                    "copy the file beside the index, and name it there",
                )
            )
        elif not _is_file(folder / file):
            problems.append(Problem(str(folder / file), "missing shard, named by the index", "copy it again"))
    readable = [file for file in files if Path(file).name == file and _is_file(folder / file)]
    return readable, set(weight_map), problems


def _is_file(path: Path) -> bool:
    """Tell whether there is such a file; there is none of a name that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read_json(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Return the JSON object in `path`, or an empty one and what is wrong with the file."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, [Problem(str(path), "is missing", f"copy the model's {path.name} here")]
    except (OSError, ValueError) as error:
        return {}, [Problem(str(path), f"cannot be read as JSON: {error}", "copy it again")]
    if not isinstance(value, dict):
        return {}, [Problem(str(path), "is not a JSON object", "copy it again")]
    return value, []
