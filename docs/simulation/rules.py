"""Rules for looking, compared: how many documents each needs on a Brownian motion, which sums of documents become."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from docs.simulation.answers import TARGET, Floats
from pipelines.evaluation.looks import LOOKS

ALPHA = 0.05
NORMAL = NormalDist()
ERRORS: Mapping[str, float] = {"int8-weight-only": 0.0017, "fp8": 0.0044}
"""Recipe → standard error of the retention by the expected score over all of `smoke` (3,570 documents)."""
RETENTIONS = (1.0, 0.995, 0.98, 0.9)
EVERY_BLOCK = tuple(look / 112 for look in range(1, 113))
"""A look after each block of 32 documents: a confidence sequence may look as often as it likes."""
OLD_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)

Spending = Callable[[float], float]
"""Share of α that may be spent when a share of the documents is seen."""


class Rule(NamedTuple):
    """A rule: at which shares of the documents it looks, and how far from zero the standardized sum decides there."""

    looks: Sequence[float]
    bounds: Sequence[float]


def motions(looks: Sequence[float], times: int, random: np.random.Generator) -> Floats:
    """Return Brownian motions without drift at the looks, (runs, looks)."""
    steps = np.sqrt(np.diff(looks, prepend=0.0))
    return np.cumsum(random.standard_normal((times, len(steps))) * steps, axis=1)


def simulated_bounds(spending: Spending, looks: Sequence[float], times: int, alpha: float = ALPHA) -> list[float]:
    """Return the bound of the standardized sum at each look under which so much of `alpha` is spent, from simulated
    motions; infinite where that is too little to be seen."""
    motion = motions(looks, times, np.random.default_rng(1))
    going, before, bounds = np.ones(times, dtype=bool), 0.0, []
    for look, now in zip(looks, motion.T, strict=True):
        crossing = round((spending(look) - before) * alpha * times)
        bound = float(np.partition(now[going], -crossing)[-crossing]) if crossing else math.inf
        bounds.append(bound / math.sqrt(look))
        going &= now < bound
        before = spending(look)
    return bounds


def spending_rule(spending: Spending, times: int) -> Rule:
    """Return the rule of Lan and DeMets (1983) with this spending, at the gate's looks."""
    return Rule(LOOKS, simulated_bounds(spending, LOOKS, times))


def haybittle_peto(looks: Sequence[float]) -> Rule:
    """Return the rule that splits a tenth of α over the early looks and keeps the rest for the last."""
    early, last = 0.1 * ALPHA / (len(looks) - 1), 0.9 * ALPHA
    return Rule(looks, [*[-NORMAL.inv_cdf(early)] * (len(looks) - 1), -NORMAL.inv_cdf(last)])


def confidence_sequence(tuned: float = 0.125) -> Rule:
    """Return the one-sided mixture boundary of Robbins (1970; Howard et al. 1810.08240), narrowest near a share
    `tuned` of the documents; it holds at every look there could be."""
    weight = tuned / 6  # of the mixing normal, near the best for α of 5%

    def excess(bound: float, share: float) -> float:
        total = share + weight
        mixture = 2 * math.sqrt(weight / total) * math.exp(bound**2 * share / (2 * total))
        return mixture * NORMAL.cdf(bound * math.sqrt(share / total)) - 1 / ALPHA

    return Rule(EVERY_BLOCK, [_root(partial(excess, share=share), 0.0, 10.0) for share in EVERY_BLOCK])


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


def rules(times: int) -> dict[str, Rule]:
    """Return the rules that are compared, by name."""
    return {
        "Haybittle–Peto, six looks": haybittle_peto(OLD_LOOKS),
        "Haybittle–Peto, ten looks": haybittle_peto(LOOKS),
        "Lan–DeMets, Pocock-like": spending_rule(lambda t: math.log1p((math.e - 1) * t), times),
        "Lan–DeMets, O'Brien–Fleming-like": spending_rule(_obrien_fleming, times),
        "Lan–DeMets, α t": spending_rule(lambda t: t, times),
        "Lan–DeMets, α t²": spending_rule(lambda t: t * t, times),
        "confidence sequence, every 32 documents": confidence_sequence(),
    }


def _obrien_fleming(share: float) -> float:
    return 2 * NORMAL.cdf(NORMAL.inv_cdf(ALPHA / 2) / math.sqrt(share)) / ALPHA


def needed(rule: Rule, motion: Floats, retention: float, error: float) -> float:
    """Return the expected share of the documents until a rule decides, either way, or has seen all."""
    drift = (retention - TARGET) / error
    looks = np.array(rule.looks)
    standardized = motion / np.sqrt(looks) + drift * np.sqrt(looks)
    decides = np.abs(standardized) >= np.array(rule.bounds)
    decides[:, -1] = True
    return float(looks[decides.argmax(axis=1)].mean())


def compared(times: int) -> dict[str, list[float]]:
    """Return, for each rule, the expected share of the documents for each recipe's noise at each true retention, then
    their sum, of 8."""
    found = {}
    for name, rule in rules(20 * times).items():
        motion = motions(rule.looks, times, np.random.default_rng(2))
        shares = [needed(rule, motion, kept, error) for error in ERRORS.values() for kept in RETENTIONS]
        found[name] = [*shares, sum(shares)]
    return found


def against_retention(name: str, times: int) -> list[tuple[float, float]]:
    """Return (true retention in percent, expected share of the documents) of a rule, with the noise of fp8."""
    rule = rules(20 * times)[name]
    motion = motions(rule.looks, times, np.random.default_rng(2))
    return [(100 * kept, needed(rule, motion, kept, ERRORS["fp8"])) for kept in np.linspace(0.96, 1.02, 25).tolist()]
