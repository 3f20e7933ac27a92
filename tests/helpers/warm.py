"""The command in a process of its own that need not import PyTorch and its like anew: forked from one that has.

Nine tenths of what a short command costs are imports. That these work, and which command needs which, other tests show.
"""

import gc
import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.cli.main import main
from pipelines.runtimes import distance
from pipelines.verification import reader
from tests.helpers import warm_reader

IMPORTED = (
    "pipelines.flow.run",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "lm_eval.models.utils",
    "datasets",
    "matplotlib.figure",
    "matplotlib.textpath",
    "pyarrow.parquet",
    *warm_reader.IMPORTED,
    "tests.helpers.read_before",
)
"""What commands import that do something with a model."""
READ_ON_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "OMP_", "MKL_", "ONEDNN_", "ATEN_", "PYTHON")
"""How the names of environment variables begin that libraries read once, when they are imported."""
READ_ON_USE = ("HF_TOKEN",)
"""Names that begin so and are read whenever they are used."""
CONTEXT = 128
"""Tokens of a piece of text that verification measures distances on: a quarter of what users get, and shows as much."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*IMPORTED])
os.environ.setdefault("HF_XET_HIGH_PERFORMANCE", "1")  # as lm_eval does it when it is imported
_began = dict(os.environ)


def is_current(environment: dict[str, str]) -> bool:
    """Tell whether the libraries that are imported already would read the same in `environment`."""
    names = {name for name in {*environment, *_began} if name.startswith(READ_ON_IMPORT) and name not in READ_ON_USE}
    return all(environment.get(name) == _began.get(name) for name in names)


def call(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run the command in `folder`; return its exit code and what it wrote to standard output and error."""
    with TemporaryDirectory() as scratch:
        files = Path(scratch, "out"), Path(scratch, "err")
        process = start(arguments, folder, environment, *files)
        process.join()
        out, err = (file.read_text(encoding="utf-8") for file in files)
    assert process.exitcode is not None
    return process.exitcode, out, err


def start(arguments: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> ForkServerProcess:
    """Start the command in `folder`, with `out` and `err` for what it writes to standard output and error."""
    assert is_current(environment)
    command = reader.command(Path(sys.executable))
    process = _context.Process(target=_command, args=(arguments, str(folder), environment, str(out), str(err), command))
    process.start()
    return process


def _command(
    arguments: list[str], folder: str, environment: dict[str, str], out: str, err: str, read: list[str]
) -> None:
    """Be the command: its arguments, folder, environment, standard output and error, and what starts its readers."""
    gc.freeze()  # what was imported before the fork is neither looked at nor copied
    reader.command = lambda python: read  # noqa: ARG005
    setattr(distance, "DISTANCE_CONTEXT", CONTEXT)  # noqa: B010  # which it imports and does not export
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, (name, file) in enumerate((("stdout", out), ("stderr", err)), 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
        setattr(sys, name, open(number, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115
    sys.argv = ["quantgate", *arguments]
    try:
        main(arguments, prog_name="quantgate")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
