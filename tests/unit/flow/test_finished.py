"""Looking for what is finished: nothing is made, nobody is waited for, nothing is said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipelines.core import progress
from pipelines.core.cache import Result, cache_dir, found, keep
from pipelines.core.errors import bad_input
from tests.helpers.listening import Heard


class Made(Result):
    number: int


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTGATE_CACHE", str(tmp_path / "cache"))


def made(number: int) -> Made:
    def make(_: Path) -> Mapping[str, Any]:
        progress.say("making")
        return {"number": number}

    return keep("counting", {"number": number}, Made, make)


def test_what_is_not_finished_is_not_made() -> None:
    heard = Heard()
    with progress.told_to(heard):
        assert found(lambda: made(1)) is None
    assert not heard.said and not cache_dir().joinpath("stages").exists()
    assert not made(1).reused, "afterwards all is as before"


def test_what_is_finished_is_found_though_another_process_holds_its_lock() -> None:
    first = made(2)
    with FileLock(cache_dir() / "stages" / "counting" / f"{first.key}.lock"):
        again = found(lambda: made(2))
    assert again and (again.number, again.reused) == (2, True)


def test_several_are_found_only_together_and_inside_one_another() -> None:
    made(3)
    assert found(lambda: (made(3), made(4))) is None
    both = found(lambda: (found(lambda: made(4)), made(3).number))
    assert both == (None, 3)


def test_bad_input_is_for_who_does_the_work_to_tell() -> None:
    def refuse() -> None:
        raise bad_input("it", "is bad")

    assert found(refuse) is None
    with pytest.raises(ZeroDivisionError):
        found(lambda: 1 / 0)
