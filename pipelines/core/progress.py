"""The progress of running work, told to whoever shows it: the amount in all, the amount done, and notes.

Stages tell it here, and know nothing of who listens: the display of a run (`pipelines.flow.display`), or, where there
is none, a progress bar of their own on a terminal.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """Something that shows the progress it is told of."""

    def begin(self, what: str, total: float | None, unit: str) -> None:
        """Begin to show work on `what`: `total` units, or None where nobody knows."""

    def advance(self, amount: float) -> None:
        """Count `amount` units more as done."""

    def skip(self, amount: float) -> None:
        """Count `amount` units as done before, which says nothing of the pace."""

    def resize(self, total: float) -> None:
        """Take `total` for the number of all units from now on."""

    def end(self) -> None:
        """End the display of the work, which is over, finished or not."""

    def note(self, text: str) -> None:
        """Show `text` beside the running work, in place of the note before."""

    def say(self, text: str) -> None:
        """Show the line `text`, which stays."""


class Bar:
    """Work of a known or unknown number of units, of which some are done."""

    def __init__(self, listener: Listener | None, total: float | None) -> None:
        self._listener, self.total, self.done = listener, total, 0.0

    def update(self, amount: float = 1) -> None:
        """Tell that `amount` units more are done."""
        self.done += amount
        if self._listener:
            self._listener.advance(amount)

    def skip(self, amount: float) -> None:
        """Tell that `amount` units were done before: they are left out of the pace."""
        if self.total is not None:
            amount = min(amount, self.total - self.done)
        self.done += amount
        if self._listener:
            self._listener.skip(amount)

    def update_to(self, done: float, total: float) -> None:
        """Tell that `done` of `total` units are done."""
        if self._listener and total != self.total:
            self._listener.resize(total)
        self.total = total
        self.update(done - self.done)


class _Part:
    """A listener that counts a whole bar as `amount` units of the bar around it."""

    def __init__(self, around: Bar, amount: float) -> None:
        self.around, self.amount, self._total = around, amount, 1.0
        self.goal = around.done + amount

    def begin(self, what: str, total: float | None, unit: str) -> None:  # noqa: ARG002
        self._total = total or float("inf")

    def advance(self, amount: float) -> None:
        left = self.goal - self.around.done
        self.around.update(min(left, amount * self.amount / self._total))

    def skip(self, amount: float) -> None:
        self.advance(amount)

    def resize(self, total: float) -> None:
        self._total = total

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...


class _Entry:
    """A place in the stack of listeners, so that one listener can be there twice."""

    def __init__(self, listener: Listener | None) -> None:
        self.listener = listener


_listeners: list[_Entry] = []
"""Stack of listeners, the innermost last: displays, parts of bars, and None for a running bar (what is nested is not
told)."""
_bars: list[Bar] = []
"""Stack of the running bars, the innermost last."""


@contextlib.contextmanager
def told_to(listener: Listener | None) -> Iterator[None]:
    """Tell `listener`, or nobody, of all progress inside this block."""
    entry = _Entry(listener)
    _listeners.append(entry)
    try:
        yield
    finally:
        if entry in _listeners:  # a generator that was left in the middle may end after what is around it
            del _listeners[_listeners.index(entry) :]


class _Nobody:
    """A listener that shows nothing."""

    def begin(self, what: str, total: float | None, unit: str) -> None: ...

    def advance(self, amount: float) -> None: ...

    def skip(self, amount: float) -> None: ...

    def resize(self, total: float) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...


def muted() -> contextlib.AbstractContextManager[None]:
    """Show nothing of what is told or said inside this block."""
    return told_to(_Nobody())


@contextlib.contextmanager
def bar(total: float | None, what: str, unit: str = "step") -> Iterator[Bar]:
    """Show that `what` is being done, `total` units of it, and yield the bar whose `update` counts them."""
    listener = _listeners[-1].listener if _listeners else _Terminal()
    running = Bar(listener, total)
    if listener:
        listener.begin(what, total, unit)
    _bars.append(running)
    try:
        with told_to(None):
            yield running
    finally:
        if running in _bars:
            del _bars[_bars.index(running) :]
        if listener:
            listener.end()


@contextlib.contextmanager
def part(amount: float) -> Iterator[None]:
    """Count what a bar inside this block tells as `amount` units of the bar around it, and all of them at the end."""
    if not _bars:
        yield
        return
    scaled = _Part(_bars[-1], amount)
    with told_to(scaled):
        yield
    scaled.around.update(scaled.goal - scaled.around.done)


def found(amount: float) -> None:
    """Tell the running bar that `amount` units of it were done before."""
    if _bars and not isinstance(_display(), _Nobody):
        _bars[-1].skip(amount)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` while this block runs, where standard error is a terminal that can take it back."""
    shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if shown:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, unit: str = "step", total: int | None = None) -> Iterator[T]:
    """Yield `items`, and show how many of them are done."""
    count = len(items) if total is None and isinstance(items, Sized) else total
    with bar(count, what, unit) as running:
        for item in items:
            yield item
            running.update()


def note(text: str) -> None:
    """Show `text` beside the running work; the next note takes its place."""
    if display := _display():
        display.note(text)


def say(text: str) -> None:
    """Show the line `text`, which stays."""
    if display := _display():
        display.say(text)
    else:
        print(text, file=sys.stderr, flush=True)


def _display() -> Listener | None:
    listeners = [entry.listener for entry in _listeners if entry.listener]
    nobody = next((listener for listener in listeners if isinstance(listener, _Nobody)), None)
    return nobody or next(iter(listeners), None)


class _Terminal:
    """A plain bar on standard error, where that is a terminal and the work takes longer than a second."""

    def begin(self, what: str, total: float | None, unit: str) -> None:
        from tqdm import tqdm

        scaled = unit == "B"
        quiet = None  # unless it is a terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, unit_scale=scaled, delay=1, disable=quiet, leave=False)

    def advance(self, amount: float) -> None:
        self._bar.update(amount)

    def skip(self, amount: float) -> None:
        if not self._bar.disable:
            for name in ("n", "initial", "last_print_n"):  # what tqdm reckons its pace from
                setattr(self._bar, name, getattr(self._bar, name) + amount)

    def resize(self, total: float) -> None:
        self._bar.total = total

    def end(self) -> None:
        self._bar.close()

    def note(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...
