"""The looks at which an evaluation may stop, with error rates that stay valid under them (docs/gate.md).

The documents of each task come in random order. At fixed shares of them the gate looks, and stops if its verdict is
shown. A tenth of α is split evenly over the looks before the last, the last keeps the rest: by Bonferroni's inequality
no error rate exceeds α, whatever the dependence between looks (Haybittle 1971 and Peto et al. 1976, who so left the
last test of a clinical trial nearly untouched).
"""

import math
from itertools import pairwise
from random import Random

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of each task's documents at which the gate looks."""
EARLY_ALPHA = 0.1
"""Share of α that the looks before the last may use up."""
FEWEST = 32
"""Fewest documents of a task at a look: what a bound on fewer would rest on is not worth loading a batch."""
BLOCK = 512
"""Most documents that are evaluated together, so that a killed evaluation loses no more."""


def look_confidence(look: int, confidence: float) -> float:
    """Return the confidence of each one-sided bound at the look with this index, where `confidence` is that of all."""
    last = look == len(LOOKS) - 1
    return 1 - (1 - confidence) * (1 - EARLY_ALPHA if last else EARLY_ALPHA / (len(LOOKS) - 1))


def documents_at_look(look: int, documents: int) -> int:
    """Return how many of a task's `documents` the look with this index has."""
    return min(documents, max(FEWEST, math.ceil(documents * LOOKS[look])))


def blocks_by_look(task: str, documents: int) -> list[list[tuple[int, ...]]]:
    """Return, for each look, the blocks of documents (their places, sorted) that it adds to the one before.

    The order is random, and always the same for a task of as many documents.
    """
    order = list(range(documents))
    Random(f"{task} {documents}").shuffle(order)
    ends = [0, *(documents_at_look(look, documents) for look in range(len(LOOKS)))]
    return [
        [tuple(sorted(order[first : min(first + BLOCK, end)])) for first in range(start, end, BLOCK)]
        for start, end in pairwise(ends)
    ]
