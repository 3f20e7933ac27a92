"""One-sided bounds of means: what the gate and its measures share (docs/gate.md)."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Mean(NamedTuple):
    """The mean of numbers that come in clusters, and its variance."""

    value: float
    variance: float
    """Variance of the mean, robust to dependence within clusters."""
    leverage: float
    """Share of the mean that the largest cluster holds."""


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Mean:
    """Return the mean, and its variance from sums over clusters, of which there are two at least.

    The variance is G/(G-1) corrected (Miller 2411.00640).
    """
    mean = math.fsum(values) / len(values)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster][0] += value - mean
        sums[cluster][1] += 1
    scale = len(sums) / (len(sums) - 1) / len(values) ** 2
    return Mean(
        value=mean,
        variance=scale * math.fsum(total * total for total, _ in sums.values()),
        leverage=max(size for _, size in sums.values()) / len(values),
    )


def margin_of_error(variance: float, leverage: float, confidence: float) -> float:
    """Return the distance x from a mean of numbers within [-1, 1] to its one-sided bound: x² = z²V + k A x.

    k is max(-ln α, z²), V the variance of the mean, A the leverage. The second term is the variance of the extra
    changes that the boundary supposes: as in Wilson's interval, the variance is the one under the hypothesis, not the
    observed. Without it, 50 documents of which none changed would "certify" 99%; with it, no observed loss bounds the
    rate of losses by 3/n at 95%, which is what the exact binomial test says.
    """
    z = quantile(confidence)
    rare = leverage_weight(confidence) * leverage
    return (rare + math.sqrt(rare * rare + 4 * z * z * variance)) / 2


def level(confidence: float) -> str:
    """Return a confidence for people: `95%`, `95.5%`, `99.9%`."""
    return f"{100 * confidence:.4g}%"


def quantile(confidence: float) -> float:
    """Return the quantile of the standard normal distribution."""
    return statistics.NormalDist().inv_cdf(confidence)


def leverage_weight(confidence: float) -> float:
    """Return the weight of the leverage in `margin_of_error`: at least -ln α, as in the exact test without a loss."""
    return max(-math.log(1 - confidence), quantile(confidence) ** 2)
