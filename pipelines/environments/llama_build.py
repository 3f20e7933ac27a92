"""llama.cpp on this machine: one source tree for converting, quantizing and running, compiled once.

The tree is the one that the source distribution of llama-cpp-python carries, fetched from the package index with a
pinned digest; or the user's own checkout, where `QUANTGATE_LLAMA_CPP` names one. The programs are compiled for the very
machine (`GGML_NATIVE`), so another kind of processor that shares the cache gets its own.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.core import progress, wheels
from pipelines.core.cache import digest, file_digest
from pipelines.core.device import cpu_lines
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.core.paths import expanded
from pipelines.core.processes import run_logged

OWN = "QUANTGATE_LLAMA_CPP"
PACKAGE = "llama-cpp-python"
PROGRAMS = {
    "llama-cpp": ("llama-worker", "llama-quantize", "llama-perplexity"),
    "llama-server": ("llama-server", "llama-imatrix"),
}
"""Environment → llama.cpp's programs in it: those that quantgate runs, and those that only users and tests run. The
second take half as many files again to compile.
"""
NEEDED = ("convert_hf_to_gguf.py", "CMakeLists.txt", "include/llama.h", "gguf-py", "tools/quantize")
"""Files that a source tree must have."""
BUILD_TOOLS = ("cmake>=3.28,<5", "ninja>=1.11,<2")
WORKER = Path(__file__).with_name("llama_worker")


def source() -> Path:
    """Return the source tree of llama.cpp: the user's own, or the pinned one, fetched on first use.

    Raises:
        BadInput: the user's own is none.
    """
    own = os.environ.get(OWN)
    if own is None:
        return wheels.unpacked(PACKAGE) / f"llama_cpp_python-{wheels.PINNED[PACKAGE].version}" / "vendor" / "llama.cpp"
    folder = expanded(own).absolute()
    if absent := [name for name in NEEDED if not (folder / name).exists()]:
        what = f"is not a source tree of llama.cpp: it has no {', '.join(absent)}"
        raise bad_input(f"{OWN}={own}", what, "give a checkout of github.com/ggml-org/llama.cpp, or unset it")
    return folder


def version() -> str:
    """Return the version that results remember: `llama.cpp of llama-cpp-python 0.3.36`, or the user's own by its
    sources' digest."""
    own = os.environ.get(OWN)
    if own is None:
        return f"llama.cpp of {PACKAGE} {wheels.PINNED[PACKAGE].version}"
    return f"llama.cpp, own checkout {_sources_digest(source())[:12]}"


def _sources_digest(tree: Path) -> str:
    """Return the digest of everything that is compiled or converts."""
    parts = ("src", "include", "ggml/src", "ggml/include", "common", "tools/quantize", "conversion", "gguf-py/gguf")
    files = [file for part in parts for file in sorted((tree / part).rglob("*")) if file.is_file()]
    files = [tree / "convert_hf_to_gguf.py", *(file for file in files if file.suffix != ".pyc")]
    return digest({file.relative_to(tree).as_posix(): file_digest(file) for file in files})


def inputs() -> list[Any]:
    """Return the inputs that decide where the build lies."""
    ours = [file_digest(file) for file in sorted(WORKER.iterdir())]
    tree = [version(), str(source())] if OWN in os.environ else [wheels.PINNED[PACKAGE].sha256]
    return [tree, ours, sysconfig.get_platform(), _processor(), _cuda()]


def build(folder: Path, programs: Sequence[str]) -> None:
    """Compile `programs` into `folder`/bin, with the sources' notes and nothing else left there.

    Raises:
        QuantgateError: there is no compiler, or it failed.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None or shutil.which(compiler) is None:
        raise QuantgateError("llama.cpp has to be compiled, and there is no C++ compiler: install g++ or clang++")
    tree, work = source(), folder / "build"
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    work.mkdir(parents=True)
    run_logged([sys.executable, "-m", "venv", str(folder / "tools")], log)
    tools = folder / "tools" / "bin"
    pip = [str(tools / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    run_logged([*pip, *BUILD_TOOLS], log)
    configure = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release"]
    cuda = ["-DGGML_CUDA=ON"] if _cuda() else []
    run_logged(
        [str(tools / "cmake"), *configure, *cuda, f"-DLLAMA_SOURCE={tree}", "-S", str(WORKER), "-B", str(work)], log
    )
    _compile([str(tools / "ninja"), "-C", str(work), *programs], log)
    (folder / "bin").mkdir()
    for program in programs:
        shutil.copy2(work / "bin" / program, folder / "bin" / program)
    shutil.rmtree(work)
    shutil.rmtree(folder / "tools")


def _compile(command: list[str], log: Path) -> None:
    """Run ninja and show progress, made of its `[12/345]`."""
    with progress.bar(None, "llama.cpp", "file") as bar:

        def see(line: str) -> None:
            if step := re.match(r"\[(\d+)/(\d+)\]", line):
                bar.update_to(int(step[1]), int(step[2]))

        run_logged(command, log, see=see)


def check(programs: Path) -> None:
    """Raise QuantgateError unless the programs in this folder start on this machine."""
    start = {"llama-cpp": ["llama-worker"], "llama-server": ["llama-server", "--version"]}
    (command,) = (command for command in start.values() if (programs / command[0]).exists())
    command = [str(programs / command[0]), *command[1:]]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        remedy = "`quantgate env remove llama-cpp`, then make it again"
        raise QuantgateError(f"llama.cpp does not start (code {done.returncode}): {remedy}")


def _cuda() -> bool:
    """Tell whether to compile for the GPU: there is one, and a compiler for it."""
    import torch

    return torch.cuda.is_available() and shutil.which("nvcc") is not None


def _processor() -> str:
    """Return a digest of what the processor can do."""
    lines = cpu_lines("flags", "Features", "model name")
    return digest(sorted({*lines})) if lines else "unknown"
