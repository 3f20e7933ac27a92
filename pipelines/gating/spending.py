"""The error that each look at a growing evaluation may spend, so that no error rate exceeds α in all (docs/gate.md).

By α log(1 + (e - 1) t), where t is the share of the documents seen (Lan and DeMets 1983, Pocock-like): of what was
compared it needs the fewest documents. The level of a look is the one at which a Brownian motion that no earlier look
stopped crosses it with what the look may spend (Armitage, McPherson and Rowe 1969), whatever is stopped for otherwise.
"""

import functools
import math
from typing import TYPE_CHECKING

from pipelines.evaluation.looks import LOOKS

if TYPE_CHECKING:
    import numpy as np

STEPS = 800
"""Number of steps of the numerical integration; with twice as many no level changes by a ten thousandth of itself."""
FARTHEST = 8.0
"""Standard deviations beyond which a density is taken to be zero."""
SHARING = 1.15
"""Power of a test's share of α by which its level at a look shrinks."""


def look_confidence(look: int, confidence: float) -> float:
    """Return the confidence of each one-sided bound at the look with this index, where `confidence` is that of all."""
    return 1 - levels(1 - confidence)[look]


def shared(confidence: float, share: float) -> float:
    """Return the confidence at a look of a test that may use up a `share` of the error which `confidence` leaves.

    Strict tests at different looks coincide less often than lenient ones, so a level has to fall faster than the error
    that it may cause: by the power 1.15 of the share, which is enough for every share (docs/gate.md).
    """
    return 1 - (1 - confidence) * math.pow(share, SHARING)


def spent(share: float, alpha: float) -> float:
    """Return the part of `alpha` that may be spent when a share of the documents is seen."""
    return alpha * math.log1p((math.e - 1) * share)


@functools.cache
def levels(alpha: float, looks: tuple[float, ...] = LOOKS) -> tuple[float, ...]:
    """Return the level of the one-sided test at each of `looks`, shares of the documents, the last of which is 1."""
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import norm

    found = []
    before, used = 0.0, 0.0
    grid, mass = np.zeros(1), np.ones(1)  # where the motion is that was not stopped: at 0, before the first look
    for look in looks:
        deviation = math.sqrt(look - before)
        budget = spent(look, alpha) - used
        bound = brentq(_excess, -FARTHEST, FARTHEST, args=(grid, mass, deviation, budget))
        found.append(float(norm.sf(bound / math.sqrt(look))))
        reached = np.linspace(-FARTHEST * math.sqrt(look), bound, STEPS)
        density = (norm.pdf((reached[:, None] - grid) / deviation) / deviation * mass).sum(axis=1)
        weights = np.full(STEPS, reached[1] - reached[0])
        weights[[0, -1]] /= 2
        grid, mass, before, used = reached, density * weights, look, used + budget
    return tuple(found)


def _excess(at: float, grid: "np.ndarray", mass: "np.ndarray", deviation: float, budget: float) -> float:
    """Return by how much a motion that has its `mass` on `grid` crosses `at` likelier than by `budget`."""
    from scipy.stats import norm

    return float((mass * norm.sf((at - grid) / deviation)).sum()) - budget
