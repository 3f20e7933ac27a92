"""A listener that keeps what work in progress tells."""


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.began: list[tuple[str, float | None, str]] = []
        self.done, self.skipped, self.ended = 0.0, 0.0, 0
        self.totals: list[float] = []
        self.notes: list[str] = []
        self.said: list[str] = []

    def begin(self, what: str, total: float | None, unit: str) -> None:
        self.began.append((what, total, unit))

    def advance(self, amount: float) -> None:
        self.done += amount

    def skip(self, amount: float) -> None:
        self.skipped += amount

    def resize(self, total: float) -> None:
        self.totals.append(total)

    def end(self) -> None:
        self.ended += 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)
