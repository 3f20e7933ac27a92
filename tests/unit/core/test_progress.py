"""Progress: what is told to whom, and how much of it."""

import io
from collections.abc import Generator

import pytest

from pipelines.core import progress
from tests.helpers.listening import Heard


def test_a_bar_tells_how_much_there_is_and_what_is_done() -> None:
    heard = Heard()
    with progress.told_to(heard):
        assert list(progress.track("abc", "letters", "letter")) == ["a", "b", "c"]
    assert heard.began == [("letters", 3, "letter")]
    assert (heard.done, heard.ended) == (3, 1)


def test_a_bar_inside_a_bar_is_not_told() -> None:
    heard = Heard()
    with progress.told_to(heard), progress.bar(10, "outer") as outer:
        list(progress.track(range(5), "inner"))
        outer.update(2)
    assert [what for what, *_ in heard.began] == ["outer"]
    assert heard.done == 2


def test_a_part_counts_as_what_it_is_of_the_bar_around_it() -> None:
    """However much the bars inside tell: half of it, all of it twice, or nothing."""
    heard = Heard()
    with progress.told_to(heard), progress.bar(100, "documents") as documents:
        with progress.part(40), progress.bar(8, "rows") as rows:
            rows.update(4)
            assert heard.done == 20
        assert heard.done == documents.done == 40
        with progress.part(30):
            for _ in range(2):
                list(progress.track(range(3), "rows"))
        assert heard.done == 70
        with progress.part(30):
            pass
    assert heard.done == 100


def test_a_part_without_a_bar_around_it_is_nothing() -> None:
    heard = Heard()
    with progress.told_to(heard), progress.part(5), progress.bar(2, "alone") as alone:
        alone.update(2)
    assert heard.began == [("alone", 2, "step")] and heard.done == 2


def test_a_total_may_turn_out_later() -> None:
    heard = Heard()
    with progress.told_to(heard), progress.bar(None, "files") as bar:
        bar.update_to(3, 10)
        bar.update_to(7, 10)
    assert heard.totals == [10] and heard.done == 7


def test_what_was_done_before_is_told_apart_and_is_no_more_than_there_is() -> None:
    heard = Heard()
    progress.found(5)  # nothing is running
    with progress.told_to(heard), progress.bar(100, "documents") as documents:
        progress.found(30)
        documents.update(10)
        assert (documents.done, heard.skipped, heard.done) == (40, 30, 10)
        progress.found(90)
        assert (documents.done, heard.skipped) == (100, 90)


def test_nothing_is_heard_of_what_is_muted() -> None:
    heard = Heard()
    with progress.told_to(heard), progress.bar(4, "work"), progress.muted():
        progress.say("a line")
        progress.note("a note")
        list(progress.track(range(3), "inner"))
        progress.found(1)
    assert (heard.said, heard.notes, heard.done, heard.skipped) == ([], [], 0, 0)
    assert [what for what, *_ in heard.began] == ["work"]


class _Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "term", "shown"),
    [(True, "xterm", "measuring …\r\x1b[2K"), (True, "dumb", ""), (False, "xterm", "")],
)
def test_a_status_is_for_terminals_and_is_taken_back(
    terminal: bool, term: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = _Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", term)
    with progress.status("measuring …"):
        pass
    assert screen.getvalue() == shown


def test_what_is_said_and_noted_reaches_the_display_from_inside_a_bar() -> None:
    heard = Heard()
    with progress.told_to(heard), progress.bar(1, "work"):
        progress.note("so far 99%")
        progress.say("fetching")
    assert (heard.notes, heard.said) == (["so far 99%"], ["fetching"])


def test_a_generator_that_is_left_in_the_middle_takes_nobodys_place() -> None:
    def rows() -> Generator[int, None, None]:
        yield from progress.track(range(3), "rows")

    first, second = Heard(), Heard()
    with progress.told_to(first):
        left = rows()
        next(left)
    with progress.told_to(second):
        left.close()
        list(progress.track(range(2), "others"))
    assert second.done == 2 and second.ended == 1
    list(progress.track(range(2), "nobody listens"))
    assert second.done == 2
