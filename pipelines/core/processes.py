"""Other programs: those that run once and leave a log, and those that are asked through pipes (JSON lines there, JSON
lines back), which is how vLLM and llama.cpp are spoken to.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self

from pipelines.core.errors import QuantgateError

LOG_LINES = 8
See = Callable[[int, int, str], None]
"""Function that is told of progress: how much is done, of how much, and what is being done."""
SILENCE = 4 * 3600.0
"""Seconds after which a program that says nothing is taken for dead: longer than an engine needs for one step."""


def clean_variables() -> dict[str, str]:
    """Return our environment variables without those that would make another Python import our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run_logged(
    command: Sequence[str],
    log: Path,
    folder: Path | None = None,
    see: Callable[[str], None] = lambda _: None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run `command` (in `folder`, with `variables` beside ours), append what it prints to `log`, and show each line to
    `see` as it comes.

    Raises:
        QuantgateError: it failed; with the end of the log.
    """
    with log.open("a", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**clean_variables(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise QuantgateError(f"{command[0]} cannot be started: {error.strerror}") from None
        with process:
            assert process.stdout
            for line in process.stdout:
                output.write(line)
                see(line)
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8").splitlines()
        what = f"{Path(command[0]).name} ended with code {process.returncode}; the end of {log}:"
        raise QuantgateError("\n    ".join([what, *lines[-LOG_LINES:]]))


class WorkerProcess:
    """A running program. It ends with the `with` block, or with this object; an error ends it, too."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        log: Path | None = None,
        see: See = lambda *_: None,
        silence: float = SILENCE,
        folder: Path | None = None,
    ) -> None:
        """Start `command` in `folder`, or where we run, with the environment `variables`.

        Errors call it `name`. What it prints is kept in the file `log`, and what it says of its progress is shown to
        `see`. After `silence` seconds without a word it is ended.
        """
        self._name, self._see, self._silence, self._silent = name, see, silence, False
        self.peak_memory = 0
        """Largest resident set of the program until its last answer, in bytes; 0 if it does not tell."""
        self._log: IO[bytes] = log.open("w+b") if log else tempfile.TemporaryFile()  # noqa: SIM115  # `stop` closes it
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=folder,
                env=variables,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that its children can be ended with it
            )
        except OSError as error:
            raise QuantgateError(f"{command[0]} cannot be started: {error.strerror}") from None
        self.stop = weakref.finalize(self, _kill, self._process, self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send the request `command` with its `arguments`, and return the program's answer.

        Raises:
            QuantgateError: it failed, or said nothing for too long, and is over.
        """
        assert self._process.stdin
        assert self._process.stdout
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._listen()
            while line.startswith('{"progress"'):
                self._see(*json.loads(line)["progress"])
                line = self._listen()
        reply = json.loads(line) if line else self._obituary()
        if "error" in reply:
            said = self._last_words()
            self.stop()
            details = "".join(f"\n    {line}" for line in reply["trace"].splitlines() or said)
            raise QuantgateError(f"{self._name} failed to {command}: {reply['error']}{details}")
        self.peak_memory = int(reply.get("peak_memory", 0))
        return reply["result"]

    def _listen(self) -> str:
        """Return the program's next line; empty when it ended, or was ended because none came in time."""
        assert self._process.stdout
        timer = threading.Timer(self._silence, self._end)
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        return line

    def _end(self) -> None:
        self._silent = True
        _signal(self._process)

    def _obituary(self) -> dict[str, str]:
        code = self._process.wait()
        how = f"its process ended with code {code}"
        if self._silent:
            how = f"it said nothing for {self._silence:.0f} seconds and was ended"
        elif code == -signal.SIGKILL:
            how = "its process was killed, as the system does when memory is exhausted"
        elif code < 0:
            how = f"its process was ended by {signal.Signals(-code).name}"
        return {"error": how, "trace": ""}

    def _last_words(self) -> list[str]:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()[-LOG_LINES:]


def _signal(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _kill(process: "subprocess.Popen[str]", log: IO[bytes]) -> None:
    _signal(process)
    process.wait()
    for pipe in (process.stdin, process.stdout, log):
        with suppress(BrokenPipeError):  # what it did not read any more
            pipe.close()  # type: ignore[union-attr]
