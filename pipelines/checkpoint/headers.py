"""A Hugging Face checkpoint as its config and safetensors headers tell it: no weight is read, torch is not imported."""

import json
import re
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from pydantic import Field

from pipelines.core.cache import digest, file_digest
from pipelines.core.errors import BadInput, Problem, bad_input, refuse
from pipelines.core.strict_yaml import Frozen, check_plain

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor suffix → (safetensors dtype, shape)."""


BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes per element of safetensors' dtypes."""

FLOAT = ("F32", "BF16", "F16")
MAX_HEADER = 100 << 20
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
    "additional_chat_templates/*.jinja",
)
"""The files that travel with the weights unchanged: tokenizer, chat template, generation config, licence."""
LEGAL = re.compile(r"(LICENSE|NOTICE)[^.]*(\.\d+)*(\.(txt|md|rst|html|pdf))?", re.IGNORECASE)
"""Names of licences that are texts: `LICENSE.py` could be imported, and vLLM would load `LICENSE.safetensors`."""
RESERVED = ("quantgate.json", "provenance.json")
"""Names of what is published beside an artifact: a source's own file of such a name does not travel."""
ADAPTER = "adapter_config.json"
OTHER_WEIGHTS = ("transformers_weights", "speculators_config")
"""Keys of a config by which transformers, or vLLM, loads other weights than those that lie there for it."""
QUANTIZED_KEYS = ("quantization_config", "compression_config")
"""Keys of a config, at any depth, by which a checkpoint says that it is quantized."""
QUANTIZED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Where Model Optimizer, AutoGPTQ and AutoAWQ say it."""
QUANTIZED_SCALES = ("weight_scale", "weight_scale_inv", "weight_absmax", "SCB", "scales")
"""What lies beside weights of 8 bits."""
MAX_CARD = 128 << 10
"""Bytes at the beginning of a card that are read for its front matter."""


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
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        return self.end - self.start


class Checkpoint(Frozen):
    """A checkpoint folder: safetensors weights, `config.json` and what travels with them."""

    folder: Path
    label: str
    """What to call the model: `org/name` or the folder's name."""
    revision: str | None = None
    """The hub's commit, for a checkpoint that came from there."""
    hub_id: str | None = None
    """The hub repository that these weights are, or come from."""
    licence: str | None = None
    notes: tuple[str, ...] = ()
    """What a reader of any result on this model must know."""
    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...] = Field(repr=False)
    companions: tuple[str, ...]
    """Files copied unchanged into an artifact, relative to `folder`."""
    left_behind: tuple[str, ...]
    """Files an artifact does not get: other formats, code."""

    @property
    def weight_files(self) -> tuple[str, ...]:
        return tuple(sorted({tensor.file for tensor in self.tensors}))

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that decides what the model computes. Reads every byte, once (see `file_digest`)."""
        files = {*self.weight_files, *self.companions, "config.json"}
        return {name: file_digest(self.folder / name) for name in sorted(files)}

    @property
    def digest(self) -> str:
        """One digest over `digests`."""
        return digest(self.digests)


def read_checkpoint(folder: Path, label: str | None = None) -> Checkpoint:
    """Read and check the headers of the checkpoint in `folder`.

    Raises:
        BadInput: with every problem: no config, no weights, pickles only, a missing shard, a truncated or corrupt file,
            a link that leads out of the folder, or what would make a runtime load something else.
    """
    if not folder.is_dir():
        raise bad_input(folder, "is not a folder", "MODEL is a checkpoint folder or a hub id like org/name[@revision]")
    refuse(_foreign(folder))
    problems: list[Problem] = []
    config = _read_json(folder / "config.json", problems)
    problems += _misleading(folder, config)
    files, promised = _weight_files(folder, problems)
    tensors: list[TensorInfo] = []
    for file in files:
        try:
            tensors += read_header(folder / file, file)
        except BadInput as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(str(folder / file), f"cannot be read: {error.strerror}", "copy it again"))
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
    companions, left_behind = _other_files(folder, files)
    refuse(_unprintable(folder, name) for name in left_behind if not name.isprintable())
    return Checkpoint(
        folder=folder.absolute(),
        label=label or _label(folder),
        licence=_licence(folder),
        config=config,
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
        companions=companions,
        left_behind=left_behind,
    )


def _label(folder: Path) -> str:
    """The folder's name; it becomes a part of paths, which `..` must not."""
    name = folder.absolute().name
    return name if name not in ("", "..") else folder.resolve().name or "model"


def _foreign(folder: Path) -> Iterator[Problem]:
    """What is not the checkpoint's own, before anything of it is read: what lies beside the weights may be published,
    and a link could take along any file of this machine.

    The hub's cache consists of links, from `snapshots/COMMIT/` to `blobs/` in the folder of the same repository.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[1]
    if not _label(folder).isprintable():
        yield Problem(repr(str(folder)), "has control characters in its name", "rename it")
    for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        name = path.relative_to(folder).as_posix()
        if name.startswith("."):  # neither read nor copied
            continue
        if not name.isprintable():
            yield _unprintable(folder, name)
        elif (target := _target(path)) is None:
            yield Problem(str(path), "is a link that leads nowhere", "copy the file itself here")
        elif not target.is_relative_to(home):
            yield Problem(str(path), f"leads out of the checkpoint, to {target}", "copy the file itself here")
        elif not (target.is_file() or target.is_dir()):
            yield Problem(str(path), "is neither a file nor a folder", "remove it")


def _unprintable(folder: Path, name: str) -> Problem:
    """Of a name that would be lines of its own in a card and in a list of checksums."""
    return Problem(str(folder), f"holds a file with control characters in its name: {name!r}", "rename it")


def _target(path: Path) -> Path | None:
    """What `path` is, without links; None if they lead to nothing, or in circles."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # of a circle, Python 3.13 raises another than those before
        return None


def _misleading(folder: Path, config: dict[str, Any]) -> Iterator[Problem]:
    """What would make a runtime load something else than the weights that are read here."""
    where = str(folder / "config.json")
    for key, value in entries(config):
        if key in OTHER_WEIGHTS:
            yield Problem(where, f"its '{key}' sends runtimes to other weights than those here", "remove the key")
        if key.endswith("attn_implementation") and "/" in str(value):
            what = f"its '{key}' asks for code from the hub ({value}), which quantgate does not run"
            yield Problem(where, what, "remove the key")
    if "auto_map" in config and not _is_known(config.get("model_type")):
        what = f"its model type {config.get('model_type')} needs code of its own, which quantgate does not run"
        yield Problem(where, what, "give a model of a type that transformers knows")
    if (folder / ADAPTER).is_file():
        what = "is of an adapter, which transformers would put on the weights unasked"
        yield Problem(str(folder / ADAPTER), what, "merge it into the weights, or remove this file")


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it holds, at any depth."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            left += inner.values()
        elif isinstance(inner, list):
            left += inner


def _is_known(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # takes a second: for few configs

    return model_type in CONFIG_MAPPING_NAMES


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` when the checkpoint is already quantized, wherever it says so: quantizing twice loses twice."""
    remedy = "give the full-precision checkpoint it was made from"
    refuse(
        Problem(str(checkpoint.folder / file), f"the checkpoint is already quantized ({why})", remedy)
        for file, why in _marks_of_quantization(checkpoint)
    )


def _marks_of_quantization(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """The files that tell that a checkpoint is quantized, each with what it tells."""
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


def read_header(path: Path, file: str) -> list[TensorInfo]:
    """The tensors of one safetensors file, checked against its size.

    Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON header, data).
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        header, data_start = _header(handle, path, size)
    tensors, problems = [], []
    for name, entry in header.items():
        try:
            begin, end = entry["data_offsets"]
            tensor = TensorInfo(
                name=name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                file=file,
                start=data_start + begin,
                end=data_start + end,
            )
        except (KeyError, TypeError, ValueError):
            problems.append(Problem(str(path), f"corrupt header entry for tensor {name}", "copy it again"))
            continue
        if tensor.end > size:
            missing = tensor.end - size
            problems.append(
                Problem(str(path), f"truncated: {missing} bytes of tensor {name} are missing", "copy it again")
            )
        elif tensor.dtype not in BYTES:
            problems.append(
                Problem(
                    str(path),
                    f"tensor {name} has dtype {tensor.dtype}, which is not supported",
                    f"give weights in {', '.join(sorted(FLOAT))}",
                )
            )
        elif tensor.elements * BYTES[tensor.dtype] != tensor.bytes or min(tensor.shape, default=0) < 0:
            problems.append(
                Problem(str(path), f"corrupt header: shape and size of tensor {name} disagree", "copy it again")
            )
        tensors.append(tensor)
    refuse(problems)
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


def _header(handle: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    prefix = handle.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if length == 0 or length > MAX_HEADER or 8 + length > size:
        raise bad_input(path, "is not a safetensors file, or its header is truncated", "copy it again")
    try:
        header = json.loads(handle.read(length), object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        raise bad_input(path, "has a corrupt safetensors header", "copy it again") from None
    if not isinstance(header, dict):
        raise bad_input(path, "has a corrupt safetensors header", "copy it again")
    header.pop("__metadata__", None)
    return header, 8 + length


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, or ValueError for a key that is given twice: each reader may take another one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _weight_files(folder: Path, problems: list[Problem]) -> tuple[list[str], set[str]]:
    """The files that hold the model, and the tensors that an index promises."""
    if (folder / INDEX).is_file():
        return _indexed_files(folder, problems)
    if (folder / SINGLE).is_file():  # an adapter or another form of the weights beside it is no part of it
        return [SINGLE], set()
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
    return files, set()


def _indexed_files(folder: Path, problems: list[Problem]) -> tuple[list[str], set[str]]:
    index, before = folder / INDEX, len(problems)
    weight_map = _read_json(index, problems).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        weight_map = {}
    if not weight_map and len(problems) == before:
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
    return [file for file in files if Path(file).name == file and _is_file(folder / file)], set(weight_map)


def _is_file(path: Path) -> bool:
    """Tell whether there is such a file; there is none of a name that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _other_files(folder: Path, weights: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = {*weights, INDEX, "config.json", "README.md"}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {path.relative_to(folder).as_posix() for pattern in COMPANIONS for path in folder.glob(pattern)}
    visible = {name for name in present if not name.startswith(".") and not name.endswith(".index.json")}
    wanted -= {name for name in wanted if name.startswith(("LICENSE", "NOTICE")) and not LEGAL.fullmatch(name)}
    wanted -= {*RESERVED}
    return tuple(sorted(wanted & visible - known)), tuple(sorted(visible - wanted - known))


def _licence(folder: Path) -> str | None:
    """The licence the checkpoint's own card declares."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        front = re.match(r"---\s*\n(.*?\n)---\s*(\n|$)", file.read(MAX_CARD), re.DOTALL)
    try:
        check_plain(front[1] if front else "")
        data = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError):
        return None
    declared = data.get("license") if isinstance(data, dict) else None
    named = [name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)]
    said = ", ".join(named).strip()
    return said if said and said.isprintable() else None


def _read_json(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(Problem(str(path), "is missing", f"copy the model's {path.name} here"))
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(Problem(str(path), f"cannot be read as JSON: {error}", "copy it again"))
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(str(path), "is not a JSON object", "copy it again"))
        return {}
    return value
