"""The errors a user sees. Each says what is wrong, where, and what to do about it."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from pipelines.core.exit_codes import BAD_INPUT, ERROR

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` is a file (with line and column), an option or a module name."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        return f"{text}\n    {self.remedy}" if self.remedy else text


class QuantgateError(Exception):
    """Anything quantgate refuses or fails at, with a message meant for the user. Exit code 1."""

    exit_code = ERROR


class BadInput(QuantgateError):
    """The error that what was asked for cannot be done as asked; it carries every problem found. Exit code 2."""

    exit_code = BAD_INPUT

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def brief(error: Exception) -> str:
    """Return the first line of what an error of another project says, or what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def bad_input(where: object, what: str, remedy: str = "") -> BadInput:
    """Return a `BadInput` with a single problem."""
    return BadInput([Problem(str(where), what, remedy)])


def refuse(problems: Iterable[Problem]) -> None:
    """Raise `BadInput` with all `problems`, if there are any."""
    found = tuple(problems)
    if found:
        raise BadInput(found)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return the three of the `known` names that are most like `name`, whatever the case of either."""
    folded = {one.casefold(): one for one in known}
    return [folded[near] for near in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a question after the nearest of the `known` names; empty where none is near."""
    near = nearest(name, known, cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


class Problems:
    """The problems that one check after the other has found, so that all are told at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def of(self, check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what `check` returns; where it raises `BadInput`, keep its problems and return None."""
        try:
            return check(*args, **kwargs)
        except BadInput as error:
            self.found += error.problems
            return None
