"""Programs that run beside us, such as servers: they end with their owner, whatever ends that (`guard.py`)."""

import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from pipelines.core.processes import LOG_LINES

GUARD = Path(__file__).with_name("guard.py")
STOP_SECONDS = 30
"""Seconds that the guard has to end everything, before it is killed, and with it the program."""


class GuardedProcess:
    """A running program, with all that it starts. It ends with the `with` block, with this object, or with us."""

    def __init__(
        self, command: Sequence[str], log: Path, variables: Mapping[str, str], folder: Path | None = None
    ) -> None:
        """Start `command` in `folder`, or where we run, with the environment `variables`; what it prints goes to the
        file `log`."""
        self.log = log
        with log.open("wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=variables,
            )
        self.stop = weakref.finalize(self, _stop, self._guard)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def code(self) -> int | None:
        """Exit code of the program; above 128, it ended by the signal of that number less 128; None while it runs."""
        return self._guard.poll()

    @property
    def processes(self) -> list[psutil.Process]:
        """Processes of the program: itself, and what it started."""
        try:
            return psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def peak_memory(self) -> int:
        """Return the bytes of memory that the program's processes have held at most, each at its own time, on a Linux;
        elsewhere those that they hold now."""
        return sum(_peak(process) for process in self.processes)

    def ending(self) -> str:
        """Return how the program ended: `it was killed (SIGKILL), as the system does …`, `it ended with code 1`."""
        code = self.code or 0
        if code == 128 + signal.SIGKILL:
            return "it was killed (SIGKILL), as the system does when memory is exhausted"
        if code > 128:
            with suppress(ValueError):
                return f"it was ended by {signal.Signals(code - 128).name}"
        return f"it ended with code {code}"

    def last_words(self, lines: int = LOG_LINES) -> str:
        """Return the end of the log, each line indented for a message."""
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "".join(f"\n    {line}" for line in [line for line in said if line.strip()][-lines:])


def _peak(process: psutil.Process) -> int:
    with suppress(OSError, psutil.Error):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return int(process.memory_info().rss)
    return 0


def _stop(guard: "subprocess.Popen[bytes]") -> None:
    """Close the pipe, which makes the guard end everything, and wait for that."""
    pipe: IO[bytes] | None = guard.stdin
    assert pipe
    pipe.close()
    try:
        guard.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
