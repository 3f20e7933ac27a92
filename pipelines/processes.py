"""Other programs: those that run once and leave a log, and those that are asked through pipes (JSON lines there, JSON
lines back), which is how vLLM and llama.cpp are spoken to.
"""

import json
import os
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pipelines.errors import QuantgateError

LOG_LINES = 8


def clean_variables() -> dict[str, str]:
    """Our environment variables without those that would make another Python import our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run_logged(
    command: Sequence[str], log: Path, folder: Path | None = None, see: Callable[[str], None] = lambda _: None
) -> None:
    """Run `command` (in `folder`), append what it prints to `log`, and show each line to `see` as it comes.

    Raises:
        QuantgateError: it failed; with the end of the log.
    """
    with log.open("a", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=clean_variables(),
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


class Worker:
    """A running program. It ends with the `with` block, or with this object; an error ends it, too."""

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """`name` is what errors call it, `variables` its environment."""
        self._name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
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
        """The program's answer.

        Raises:
            QuantgateError: it failed, and is over.
        """
        assert self._process.stdin
        assert self._process.stdout
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        reply = json.loads(line) if line else self._obituary()
        if "error" in reply:
            said = self._last_words()
            self.stop()
            details = "".join(f"\n    {line}" for line in reply["trace"].splitlines() or said)
            raise QuantgateError(f"{self._name} failed to {command}: {reply['error']}{details}")
        return reply["result"]

    def _obituary(self) -> dict[str, str]:
        return {"error": f"its process ended with code {self._process.wait()}", "trace": ""}

    def _last_words(self) -> list[str]:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()[-LOG_LINES:]


def _kill(process: "subprocess.Popen[str]", log: IO[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, log):
        with suppress(BrokenPipeError):  # what it did not read any more
            pipe.close()  # type: ignore[union-attr]
