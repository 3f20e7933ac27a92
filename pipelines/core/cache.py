"""The cache: results addressed by what went into them, written to a staging folder and renamed.

A stage's key is the digest of its inputs, so a finished stage is never done twice, a killed one leaves nothing that
could be taken for finished, and the baseline's evaluation is shared by every recipe and run of its model.
"""

import contextlib
import contextvars
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from pipelines.core import progress
from pipelines.core.code import code_digest
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.core.paths import expanded
from pipelines.core.strict_yaml import Frozen


class Result(Frozen):
    """A stage's result, and what it cost when it really ran."""

    stage: str
    key: str
    """Digest of the stage's inputs, hexadecimal."""
    inputs: dict[str, Any]
    folder: Path
    seconds: float
    peak_memory: int
    """Largest resident set of the process while the stage ran, in bytes (of a GPU's memory, see `peak_gpu_memory`)."""
    peak_gpu_memory: int = 0
    versions: dict[str, str]
    reused: bool = False
    """Whether the result was found finished rather than made now."""


R = TypeVar("R", bound=Result)
T = TypeVar("T")

_only_looks: contextvars.ContextVar[bool] = contextvars.ContextVar("only_looks", default=False)
"""Whether `keep` only looks for finished results and makes none (see `found`)."""


class _Unfinished(Exception):
    """A result that was asked for is not there, and nothing is to be made."""


def found(work: Callable[[], T]) -> T | None:
    """Return what `work` comes to where all that it asks of `keep` is finished, else None; nothing is made, no other
    process is waited for, and nothing is said."""
    token = _only_looks.set(True)
    try:
        with progress.muted():
            return work()
    except (_Unfinished, QuantgateError):  # what is wrong with the input, who does the work is going to say
        return None
    finally:
        _only_looks.reset(token)


def cache_dir() -> Path:
    """Return the folder of the cache: `$QUANTGATE_CACHE`, or `quantgate` in the user's cache folder."""
    if chosen := os.environ.get("QUANTGATE_CACHE"):
        return expanded(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantgate"


def digest(value: Any) -> str:
    """Return the SHA-256 over the canonical JSON of `value`, as its first 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def keep(
    stage: str,
    inputs: Mapping[str, Any],
    result: type[R],
    make: Callable[[Path], Mapping[str, Any]],
    intact: Callable[[R], bool] = lambda _: True,
    chosen: Iterable[str] = (),
) -> R:
    """Return the finished result of `stage` for these `inputs`: found in the cache, or made now.

    Its key is the digest of the inputs, of the versions of packages, and of the code: the module of `make` and all that
    it imports, and the modules `chosen` at run time, by full name.

    `make` gets an empty folder for its files and returns the fields that `result` adds to `Result`. What it wrote
    becomes visible only when it returned: a killed process leaves a `.partial` folder that the next one removes.
    A finished result that is no longer `intact` is made again.
    """
    versions = package_versions()
    plain = json.loads(json.dumps(dict(inputs), default=str))
    code = code_digest((make.__module__, *chosen))
    key = digest({"stage": stage, "inputs": plain, "versions": versions, "code": code})
    home = cache_dir() / "stages" / stage
    folder = home / key
    if _only_looks.get():
        kept = _finished(folder, result)
        if kept and intact(kept):
            return kept
        raise _Unfinished(stage)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{key}.lock"):
        found = _finished(folder, result)
        if found and intact(found):
            return found
        staging = home / f"{key}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        staging.mkdir()
        meter = Meter()
        try:
            made = make(staging)
        except BadInput:  # nothing was begun
            shutil.rmtree(staging)
            raise
        fields = {"stage": stage, "key": key, "inputs": plain, "versions": versions, **meter.read(), **made}
        finished = result.model_validate({**fields, "folder": folder})  # where it will be in a moment
        write_json(staging / "result.json", finished.model_dump(mode="json"))
        staging.replace(folder)
        return finished


def _finished(folder: Path, result: type[R]) -> R | None:
    """Return the result in `folder`; None if there is none, or none that `result` as it is now can read."""
    try:
        saved = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return result.model_validate({**saved, "folder": folder, "reused": True})
    except (OSError, ValueError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one.

    Raises:
        QuantgateError: it cannot be written, which leaves the old one.
    """
    try:
        _write_beside(path, text)
    except OSError as error:
        _beside(path).unlink(missing_ok=True)
        raise QuantgateError(f"{path} cannot be written: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a reader sees the old file or the whole new one."""
    _write_beside(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_beside(path: Path, text: str) -> None:
    """Write `text` to a file beside `path`, and rename it to that once it is whole."""
    partial = _beside(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


class Meter:
    """Seconds and peak memory since it was made."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # resets VmHWM, so that the peak is this stage's own
            Path("/proc/self/clear_refs").write_text("5")
        if torch := _torch_with_cuda():
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def read(self) -> dict[str, Any]:
        torch = _torch_with_cuda()
        return {
            "seconds": time.perf_counter() - self._start,
            "peak_memory": _peak_resident(),
            "peak_gpu_memory": torch.cuda.max_memory_allocated() if torch else 0,
        }


def _torch_with_cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _peak_resident() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


VERSIONED = (
    "quantgate", "torch", "transformers", "tokenizers", "llmcompressor", "compressed-tensors", "lm_eval", "datasets"
)  # fmt: skip
"""Names of the packages whose version can change a stage's result."""


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the installed version of each package of `VERSIONED`, or `not installed`."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


HASH_CHUNK = 8 << 20


def now() -> str:
    """Return the current time in UTC, to the second (ISO 8601)."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def file_digest(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal, remembered by path, size and modification time: it is read once."""
    stat = path.stat()
    key = digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    memo = cache_dir() / "digests" / key
    if memo.is_file():
        return memo.read_text()
    value = _sha256(path, stat.st_size)
    if time.time_ns() - stat.st_mtime_ns > 2_000_000_000:  # a file still being written could change unseen
        with contextlib.suppress(OSError):  # a cache that cannot be written to costs time and no result
            memo.parent.mkdir(parents=True, exist_ok=True)
            partial = memo.with_suffix(f".{os.getpid()}")
            partial.write_text(value)
            partial.replace(memo)
    return value


def _sha256(path: Path, size: int) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file, progress.bar(size, path.name, "B") as bar:
        while chunk := file.read(HASH_CHUNK):
            state.update(chunk)
            bar.update(len(chunk))
    return state.hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hexadecimal) of every file below `folder`, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
