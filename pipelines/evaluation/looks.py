"""The looks at a growing evaluation: at shares of each task's documents, in random order, the gate may stop it."""

import math
from collections.abc import Sequence
from itertools import pairwise

LOOKS = (1 / 24, 1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)
"""Shares of each task's documents at which the gate looks."""
BLOCK = 32
"""Number of documents that are evaluated and kept together, from the first in a task's order on: suites with other
limits share them, and a killed evaluation loses no more."""


def blocks_at_look(look: int, documents: int) -> int:
    """Return how many blocks of a task's `documents` the look with this index has."""
    return math.ceil(math.ceil(documents / BLOCK) * LOOKS[look])


def documents_at_look(look: int, documents: int) -> int:
    """Return how many of a task's `documents` the look with this index has."""
    return min(documents, BLOCK * blocks_at_look(look, documents))


def blocks_by_look(places: Sequence[int]) -> list[list[tuple[int, ...]]]:
    """Return, for each look, the blocks that it adds to the one before, of documents at `places` (in the order in
    which they are asked); the places of a block are sorted."""
    blocks = [tuple(sorted(places[first : first + BLOCK])) for first in range(0, len(places), BLOCK)]
    ends = [0, *(blocks_at_look(look, len(places)) for look in range(len(LOOKS)))]
    return [blocks[start:end] for start, end in pairwise(ends)]
