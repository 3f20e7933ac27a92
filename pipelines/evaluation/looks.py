"""The looks at which an evaluation may stop, with error rates that stay valid under them (docs/gate.md).

The documents of each task come in random order. At fixed shares of them the gate looks, and stops if its verdict is
shown. A tenth of α is split evenly over the looks before the last, the last keeps the rest: by Bonferroni's inequality
no error rate exceeds α, whatever the dependence between looks (Haybittle 1971 and Peto et al. 1976, who so left the
last test of a clinical trial nearly untouched).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of each task's documents at which the gate looks."""
EARLY_ALPHA = 0.1
"""Share of α that the looks before the last may use up."""
BLOCK = 32
"""Number of documents that are evaluated and kept together, from the first in a task's order on: suites with other
limits share them, and a killed evaluation loses no more."""


def look_confidence(look: int, confidence: float) -> float:
    """Return the confidence of each one-sided bound at the look with this index, where `confidence` is that of all."""
    last = look == len(LOOKS) - 1
    return 1 - (1 - confidence) * (1 - EARLY_ALPHA if last else EARLY_ALPHA / (len(LOOKS) - 1))


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
