"""The display of a run while it lasts: its stages, one bar for the running one, and what is known so far.

On a terminal that is one picture, drawn anew in place; elsewhere (a CI job, a file) a line when a stage begins and
ends, and one a minute. What libraries write meanwhile goes to the run's log.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipelines.core import progress
from pipelines.core.cache import cache_dir
from pipelines.core.secrets import redact
from pipelines.core.text import roughly, size

PACE_SECONDS = 120.0
"""Seconds of the past from which the time left is estimated."""
LEAST_WORK = 20.0
"""Seconds of work before the time left is shown."""
LINE_INTERVAL = 60.0
"""Seconds between two lines about the same stage where there is no terminal."""
BAR, SHORTEST_BAR = 24, 6
"""Characters of a bar where there is room, and of the shortest that is drawn."""
MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "to come": ("·", "dim")}


class _Stage:
    """A stage of the run, and how far it has come."""

    def __init__(self, name: str, expected: float | None) -> None:
        self.name, self.expected = name, expected
        self.state, self.result = "to come", ""
        self.began = 0.0

    @property
    def expectation(self) -> str:
        """Text on the expected time: `about 11 min`, `done`, or nothing where nothing is known."""
        if self.expected is None:
            return ""
        return f"about {roughly(self.expected)}" if self.expected else "done"


class Work:
    """The work of the running bar: how much is done, and how fast it goes."""

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0.0
        self._worked = 0.0
        """Share of `done` that this process did: what was done before says nothing of the pace."""
        self._seen: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)])

    def advance(self, amount: float) -> None:
        now = time.monotonic()
        self.done += amount
        self._worked += amount
        self._seen.append((now, self._worked))
        while now - self._seen[0][0] > PACE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()

    def skip(self, amount: float) -> None:
        self.done += amount

    def left(self) -> float | None:
        """Return the seconds that are left, at the pace of the last two minutes; None while too little is known."""
        (first, before), now = self._seen[0], time.monotonic()
        if self.total is None or now - first < LEAST_WORK or self._worked <= before:
            return None
        return max(0.0, self.total - self.done) * (now - first) / (self._worked - before)

    def summary(self) -> str:
        """Return `1,200 of 7,140 documents, 11 min left`."""
        done = size(self.done) if self.unit == "B" else f"{self.done:,.0f}"
        if self.total is None:
            return f"{done} {self.unit}s" if self.done else ""
        of = size(self.total) if self.unit == "B" else f"{self.total:,.0f} {self.unit}s"
        left = self.left()
        return f"{done} of {of}" + (f", {roughly(left)} left" if left is not None else "")


class Display:
    """The stages of a run and the progress of the running one; a `progress.Listener`."""

    def __init__(self, title: str, stages: Sequence[str], expected: Mapping[str, float], log: Path) -> None:
        """Show `stages` in their order, some with the seconds that they are `expected` to take (0: they are done);
        `log` takes what libraries write."""
        self._title, self._log = title, log
        self._stages = {name: _Stage(name, expected.get(name)) for name in stages}
        self._running: _Stage | None = None
        self._work: Work | None = None
        self._note = ""
        self._live: Live | None = None
        self._console = Console(stderr=True)
        self._last_line = 0.0

    @contextlib.contextmanager
    def shown(self) -> Iterator["Display"]:
        """Show the display, and listen to the progress of what runs inside this block."""
        with _captured(self._log) as stream, _ended_orderly():
            self._console = Console(
                file=cast(IO[str], _TolerantStream(stream)), highlight=False, markup=False, soft_wrap=True
            )
            self._console.print(redact(f"{self._title}\nlog        {self._log}"))
            with progress.told_to(self), self._drawn():
                yield self

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[None]:
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield
            return
        # rich would otherwise show what libraries write above the picture
        live = Live(
            console=self._console,
            get_renderable=self._picture,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live as self._live:
            yield
        self._live = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show the stage `name` as the running one; `finish` says what came of it."""
        stage = self._stages.setdefault(name, _Stage(name, None))
        stage.state, stage.began = "running", time.monotonic()
        self._running, self._note, self._last_line = stage, "", stage.began
        self._line(f"{name}: begins" + (f", {stage.expectation}" if stage.expectation else ""))
        try:
            yield
        except BaseException:
            stage.state, stage.result = "failed", "failed"
            raise
        finally:
            self._running = None
        stage.state = "done"
        self._line(f"{name}: {stage.result or roughly(time.monotonic() - stage.began)}")

    def finish(self, result: str) -> None:
        """Say what came of the running stage."""
        if self._running:
            self._running.result = result

    def begin(self, what: str, total: float | None, unit: str) -> None:
        self._work = Work(what, total, unit)

    def advance(self, amount: float) -> None:
        if self._work:
            self._work.advance(amount)
        if self._running and self._work and time.monotonic() - self._last_line > LINE_INTERVAL:
            self._last_line = time.monotonic()
            self._line("; ".join(filter(None, [f"{self._running.name}: {self._work.summary()}", self._note])))

    def skip(self, amount: float) -> None:
        if self._work:
            self._work.skip(amount)

    def resize(self, total: float) -> None:
        if self._work:
            self._work.total = total

    def end(self) -> None:
        self._work = None

    def note(self, text: str) -> None:
        self._note = text

    def say(self, text: str) -> None:
        self._console.print(redact(text))

    def _line(self, text: str) -> None:
        """Print a line where there is no terminal to draw on."""
        if self._live is None:
            self._console.print(redact(text))

    def _picture(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for wraps in (False, False, True):
            table.add_column(no_wrap=not wraps, overflow="fold")
        for stage in self._stages.values():
            if stage is self._running:
                table.add_row(Spinner("dots", style="cyan"), Text(stage.name, style="bold"), self._now(stage))
                continue
            mark, style = MARKS[stage.state]
            expected = stage.expectation if stage.state == "to come" else ""
            table.add_row(Text(mark, style=style), Text(stage.name), Text(stage.result or expected, style="dim"))
        return table

    def _now(self, stage: _Stage) -> RenderableType:
        """Return the picture of the running stage: its bar, how far it is, and what is known so far."""
        passed = roughly(time.monotonic() - stage.began)
        work = self._work
        if work is None:
            expected = f" of about {roughly(stage.expected)}" if stage.expected else ""
            return Text(f"{passed}{expected}" + (f"; {self._note}" if self._note else ""))
        summary = Text(redact(work.summary() or work.what))
        row: Any = summary
        width = min(BAR, self._room() - summary.cell_len - 1)
        if width >= SHORTEST_BAR:
            row = Table.grid(padding=(0, 1))
            row.add_row(
                ProgressBar(total=work.total, completed=work.done, width=width, pulse=work.total is None), summary
            )
        return Group(row, Text(redact(self._note), style="cyan")) if self._note else row

    def _room(self) -> int:
        """Return the number of characters that are free beside the names of stages."""
        return self._console.width - max(map(len, self._stages)) - len("⠋  ")


@contextlib.contextmanager
def command_display(command: str, *stages: str) -> Iterator[Display]:
    """Show the stages of a `command` that is no run; its log is overwritten by the next such command."""
    with Display(command, stages, {}, cache_dir() / "logs" / f"{command}.log").shown() as display:
        yield display


class _TolerantStream:
    """A text stream whose reader may have gone, or whose disk may be full: a run goes on though nobody can see it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _ended_orderly() -> Iterator[None]:
    """Let a SIGTERM end the process by way of all `finally` clauses: the terminal gets its cursor back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _captured(log: Path) -> Iterator[IO[str]]:
    """Send to `log` what anything writes to standard output and error; yield the real standard error.

    That of the whole process, where `sys.stderr` is it: what C code and child processes write, too. Secrets in the log
    are hidden when it is closed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    real = sys.stderr
    try:
        whole = real.fileno() == 2
    except (AttributeError, OSError, ValueError):  # a notebook's, or a test's
        whole = False
    try:
        with (
            log.open("w", encoding="utf-8", errors="replace", buffering=1) as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            if not whole:
                yield real
                return
            real.flush()
            kept = os.dup(2)
            os.dup2(file.fileno(), 2)
            terminal = os.fdopen(os.dup(kept), "w", encoding=real.encoding or "utf-8", errors="replace")
            try:
                yield terminal
            finally:
                with contextlib.suppress(OSError):
                    terminal.close()
                os.dup2(kept, 2)
                os.close(kept)
    finally:
        _hide_secrets(log)


def _hide_secrets(log: Path) -> None:
    with contextlib.suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        if (hidden := redact(text)) != text:
            log.write_text(hidden, encoding="utf-8")
