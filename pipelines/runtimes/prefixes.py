"""Token sequences laid into rows so that what several begin with is computed once.

A row is a prefix tree, flattened depth first: each token follows its parent, and sees its ancestors only. The choices
of a question share its text, and the documents of a task its examples. The idea is SpecInfer's (Miao et al.
2305.09781), which so verifies several continuations in one pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

Tokens = tuple[int, ...]


class Ask(NamedTuple):
    """A log-probability to read off a row."""

    node: int
    """Position in its row of the token after which it is read."""
    sequence: int
    position: int
    """Position in its sequence of the token whose log-probability it is."""


class Row(NamedTuple):
    """Tokens of one or several sequences; what descends from a token comes right after it."""

    tokens: list[int]
    parents: list[int]
    """Position of the token before each; -1 where a sequence begins, after what all have in common."""
    depths: list[int]
    """Number of ancestors of each token."""
    asks: list[Ask]

    @property
    def branches(self) -> bool:
        """Whether some token does not follow the one before it in the row."""
        return any(parent != node - 1 for node, parent in enumerate(self.parents))

    @property
    def ends(self) -> list[int]:
        """Position of the last descendant of each token; its own where it has none."""
        ends = list(range(len(self.parents)))
        for node in reversed(range(len(ends))):
            if (parent := self.parents[node]) >= 0:
                ends[parent] = max(ends[parent], ends[node])
        return ends


def lay_out(
    sequences: Sequence[Tokens], scored: Sequence[int], common: int = 0, longest: int | None = None
) -> list[Row]:
    """Return rows that hold all `sequences`, which must be sorted, without the `common` tokens that all begin with.

    `scored[i]` is the position of the first token of sequence i that is scored; the last token is predicted only, and
    put nowhere. A row is filled with sequences up to `longest` tokens, so that rows are of nearly the same length, and
    beyond that with those that share more than they add. With None it holds one.
    """
    rows: list[Row] = []
    path: list[int] = []
    before: Tokens = ()
    for number, whole in enumerate(sequences):
        sequence = whole[common:-1]
        alike = shared(before, sequence)
        new = len(sequence) - alike
        if not rows or longest is None or (len(rows[-1].tokens) + new > longest and alike < new):
            rows.append(Row([], [], [], []))
            path, alike = [], 0
        row = rows[-1]
        path = path[:alike]
        for token in sequence[alike:]:
            row.parents.append(path[-1] if path else -1)
            row.depths.append(len(path))
            path.append(len(row.tokens))
            row.tokens.append(token)
        first = scored[number]
        row.asks.extend(Ask(path[place - 1 - common], number, place) for place in range(first, len(whole)))
        before = sequence
    return rows


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens are the same."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
