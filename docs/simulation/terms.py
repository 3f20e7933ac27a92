"""The second term of the bound, compared: how many documents certify an artifact that lost nothing, by the gate's
bound and by two that suppose nothing but scores between 0 and 1."""

import math

import numpy as np
import numpy.typing as npt

from docs.simulation.answers import TARGET, Floats, Kind, Scores, expected, right_or_wrong
from docs.simulation.seen import alone

ALPHA = 0.05
COUNTS = tuple(round(64 * 2 ** (step / 4)) for step in range(39))
"""Numbers of documents at which it is asked whether they certify, up to 46,341."""
MOST_OF_IT = 0.75
"""Share of the capital that a bet may lose."""

KEPT: tuple[tuple[Kind, float], ...] = (
    ("middling", 0.02),
    ("middling", 0.1),
    ("middling", 0.4),
    ("wide", 0.1),
    ("high", 0.1),
    ("single answer", 0.1),
)
"""Kinds of tasks, and the noise of an artifact that keeps all of them."""

Bools = npt.NDArray[np.bool_]
NAMES = ("ours", "betting", "empirical Bernstein")


def settings() -> dict[str, Scores]:
    """Return populations of which nothing is lost, by name."""
    found = {f"expected, {kind}, noise {noise:g}": expected(kind, noise, "a shift", 1.0) for kind, noise in KEPT}
    for changed in (0.0, 0.02):
        found[f"accuracy, {changed:.0%} changed"] = right_or_wrong(0.6, changed, 0.25, retention=1.0)["accuracy"]
    return found


def compared(times: int) -> dict[str, list[int | None]]:
    """Return, for each setting, the fewest of `COUNTS` that certify in half of the runs by each bound of `NAMES`; None
    where none do."""
    return {name: [_fewest(shown) for shown in _certified(scores, times)] for name, scores in settings().items()}


def _fewest(certified: Bools) -> int | None:
    """Return the first count that certifies in half of the runs, (counts, runs)."""
    enough = certified.mean(axis=1) >= 0.5
    return COUNTS[int(enough.argmax())] if enough.any() else None


def _certified(scores: Scores, times: int) -> tuple[Bools, Bools, Bools]:
    """Return in which runs each count certifies by each bound, (counts, runs)."""
    drawn = np.random.default_rng(1).integers(0, scores.baseline.size, (times, COUNTS[-1]), dtype=np.int32)
    d = (scores.candidate - TARGET * scores.baseline).ravel()[drawn]
    ours = np.array([seen.above(TARGET, 1 - ALPHA) for seen in alone(scores, drawn, COUNTS)])
    return ours, _betting(d), _bernstein(d)


def _bernstein(d: Floats) -> Bools:
    """Tell where the bound of Maurer and Pontil (0907.3740, theorem 4) is above 0; d has a range of 1 + target."""
    spread, strict = 1 + TARGET, math.log(2 / ALPHA)
    found = []
    for count in COUNTS:
        seen = d[:, :count]
        margin = np.sqrt(2 * seen.var(axis=1, ddof=1) * strict / count) + 7 * spread * strict / (3 * (count - 1))
        found.append(seen.mean(axis=1) > margin)
    return np.array(found)


def _betting(d: Floats) -> Bools:
    """Tell where bets on d, which is -1 at least, win 1/α at any time (Waudby-Smith and Ramdas 2010.09686): each bet is
    by the variance of the documents before it, and for as many documents as are asked."""
    spread = 1 + TARGET
    places = np.arange(1, d.shape[1] + 1)
    mean = np.cumsum(d, axis=1) / places
    rest = (spread**2 / 4 + np.cumsum((d - mean) ** 2, axis=1)) / (places + 1)
    deviation = np.sqrt(np.concatenate([np.full((len(d), 1), spread / 2), rest[:, :-1]], axis=1))
    found = []
    for count in COUNTS:
        bets = np.minimum(math.sqrt(2 * math.log(1 / ALPHA) / count) / deviation[:, :count], MOST_OF_IT)
        capital = np.cumsum(np.log1p(bets * d[:, :count]), axis=1)
        found.append(capital.max(axis=1) >= math.log(1 / ALPHA))
    return np.array(found)
