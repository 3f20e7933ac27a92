"""What measured speed costs, and how many servers a traffic needs. Nothing is extrapolated to another machine."""

import math

from pipelines.benching.measured import CONFIDENCE, Measured
from pipelines.benching.slo import Slo, requests_to_show
from pipelines.benching.workload import Arriving
from pipelines.core.strict_yaml import Frozen

HEADROOM = 0.75
"""Share of the rate that a server was shown to keep, which it is planned to get."""


class Capacity(Frozen):
    """The servers that a traffic needs."""

    rate: float | None
    """Largest rate, in requests a second, at which the objective was shown to be kept, there and at all lower ones."""
    replicas: int | None
    """Number of servers; None where no rate was shown."""


def dollars_per_million(tokens_per_second: float, dollars_per_hour: float) -> float:
    """Return what a million output tokens cost on a machine of that price."""
    return dollars_per_hour / (tokens_per_second * 3600) * 1e6


def capacity(measured: Measured, slo: Slo, traffic: float, headroom: float = HEADROOM) -> Capacity:
    """Return how many servers keep `slo` at a `traffic` in requests a second.

    A rate counts where the lower bound of the share that kept the objective reaches the share that has to.
    """
    shown = None
    for figures in measured.figures:  # in the order of their rates
        if not isinstance(figures.load, Arriving) or figures.kept is None or figures.kept.shown < slo.share:
            break
        shown = figures.load.rate
    return Capacity(rate=shown, replicas=math.ceil(traffic / (shown * headroom)) if shown else None)


def requests_needed(slo: Slo) -> int:
    """Return how many requests it takes at least to show that `slo` is kept."""
    return requests_to_show(slo.share, CONFIDENCE)
