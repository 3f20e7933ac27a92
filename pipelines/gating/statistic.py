"""The statistics of paired scores: their moments, and the test of the retention (docs/gate.md)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pipelines.core.bounds import leverage_weight, margin_of_error, quantile
from pipelines.core.strict_yaml import Frozen
from pipelines.gating.spending import shared
from pipelines.recipe.suite import Policy


class Scored(NamedTuple):
    """One document's two scores by one statistic, each in [0, 1]."""

    baseline: float
    candidate: float
    chance: float
    cluster: str


class Sizes(NamedTuple):
    """The sizes, in [0, 1], of the changes that the data may not have shown (docs/gate.md)."""

    loss: float
    """Typical size of the largest losses seen: a loss that was not seen is taken to be as large."""
    gain: float
    """Typical size of the largest gains seen."""
    unseen: float
    """Loss of a task's mean for each document of it on which an artifact falls to chance."""


RIGHT_OR_WRONG = Sizes(1.0, 1.0, 1.0)
"""Sizes of changes between right and wrong."""


class PairedMoments(Frozen):
    """A task's paired scores, reduced to what any retention target needs."""

    documents: int
    clusters: int
    """Number of groups of documents that share nothing."""
    baseline: float
    """Mean of the baseline's scores above chance."""
    candidate: float
    """Mean of the candidate's scores above chance."""
    baseline_variance: float
    """Cluster-robust variance of the baseline's mean."""
    covariance: float
    """Cluster-robust covariance of the two means."""
    candidate_variance: float
    """Cluster-robust variance of the candidate's mean."""
    leverage: float
    """Share of the mean that the largest cluster holds."""
    loss: float
    """Leverage times the size of a loss (`Sizes`)."""
    gain: float
    """Leverage times the size of a gain."""
    unseen: float
    """Leverage times the size of a break that was not seen."""


class Statistic(Frozen):
    """The weighted mean of d (see `pipelines.gating.gate`), its variance and its bounds, as functions of the target.

    The fields are those of `PairedMoments`, weighted over tasks.
    """

    baseline: float
    candidate: float
    baseline_variance: float
    covariance: float
    candidate_variance: float
    leverage: float
    loss: float
    gain: float
    unseen: float

    def mean(self, target: float) -> float:
        """Return the mean of d; a tie is zero, though sums of floats miss it by 1e-16."""
        mean = self.candidate - target * self.baseline
        return 0.0 if abs(mean) < 1e-12 else mean

    def margin(self, target: float, confidence: float, change: float) -> float:
        """Return the distance from `mean` to its one-sided bound, where one `change` more moves the mean by so much:
        `loss` for the lower bound, `gain` for the upper.

        It is at least what a break costs that shows in none of the documents, at this confidence: -ln α times `unseen`,
        to which what was seen adds as variances do.
        """
        variance = self.variance(target)
        unseen = -math.log(1 - confidence) * self.unseen
        least = math.hypot(unseen, quantile(confidence) * math.sqrt(variance))
        return max(margin_of_error(variance, change, confidence), least)

    def variance(self, target: float) -> float:
        """Return the variance of the mean of d."""
        return max(
            0.0, self.candidate_variance - 2 * target * self.covariance + target * target * self.baseline_variance
        )

    def above_chance(self, confidence: float) -> bool:
        """Tell whether the baseline is shown to score above chance; else no ratio to it means anything."""
        return self.baseline > margin_of_error(self.baseline_variance, self.leverage, confidence)

    def lower(self, target: float, confidence: float) -> float:
        """Return the lower one-sided bound of the mean of d."""
        return self.mean(target) - self.margin(target, confidence, self.loss)

    def upper(self, target: float, confidence: float) -> float:
        """Return the upper one-sided bound of the mean of d."""
        return self.mean(target) + self.margin(target, confidence, self.gain)

    def error(self, target: float) -> float:
        """Return the standard error of the retention, near `target`."""
        return math.sqrt(self.variance(target)) / self.baseline if self.baseline > 0 else math.inf

    def retention(self) -> float | None:
        """Return the point estimate of the retention; None where the baseline does not score above chance."""
        return self.candidate / self.baseline if self.baseline > 0 else None

    def retention_bound(self, bound: Callable[[float, float], float], confidence: float) -> float | None:
        """Return the target at which `bound` (`lower` or `upper`) is zero: the bound of the ratio (Fieller 1954).

        None where the baseline is not shown to score above chance, or the bound is beyond 10.
        """
        low, high = 0.0, 10.0
        if not self.above_chance(confidence) or bound(high, confidence) > 0:
            return None
        if bound(low, confidence) <= 0:
            return 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if bound(middle, confidence) > 0 else (low, middle)
        return low


def paired_moments(scored: Sequence[Scored], policy: Policy, sizes: Sizes | None = None) -> PairedMoments:
    """Return means above chance and their cluster-robust covariance (sums over clusters, G/(G-1) corrected).

    `sizes` are those of the scores unless given.
    """
    count = len(scored)
    chance = 1.0 if policy.chance_correction else 0.0
    b = [one.baseline - chance * one.chance for one in scored]
    c = [one.candidate - chance * one.chance for one in scored]
    sizes = sizes or _sizes(b, c)
    mean_b, mean_c = math.fsum(b) / count, math.fsum(c) / count
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for one, b_i, c_i in zip(scored, b, c, strict=True):
        total = sums[one.cluster]
        total[0] += b_i - mean_b
        total[1] += c_i - mean_c
        total[2] += 1
    clusters = len(sums)
    scale = clusters / (clusters - 1) / count**2
    leverage = max(size for _, _, size in sums.values()) / count
    return PairedMoments(
        documents=count,
        clusters=clusters,
        baseline=mean_b,
        candidate=mean_c,
        baseline_variance=scale * math.fsum(x * x for x, _, _ in sums.values()),
        covariance=scale * math.fsum(x * y for x, y, _ in sums.values()),
        candidate_variance=scale * math.fsum(y * y for _, y, _ in sums.values()),
        leverage=leverage,
        loss=leverage * sizes.loss,
        gain=leverage * sizes.gain,
        unseen=leverage * sizes.unseen,
    )


def _sizes(b: Sequence[float], c: Sequence[float]) -> Sizes:
    """Return the sizes of changes from scores above chance.

    Of changes seen, the third moment over the second: a few large ones outweigh many small ones, as they do in the
    skewness that a normal bound misses. An artifact that falls to chance on a share p of the documents loses p of the
    mean h, and shows it on those only where there was something to lose: a share v of all, by the participation ratio
    of what there is (E[b]² / E[b²]). With none seen in n documents, p v is at most -ln α / n, and the loss h / v of it.
    """
    changes = [theirs - ours for ours, theirs in zip(b, c, strict=True)]
    has = [max(0.0, value) for value in b]
    lost, square = math.fsum(has), math.fsum(value * value for value in has)
    mean = max(0.0, math.fsum(b))
    return Sizes(
        loss=_largest(change for change in changes if change < 0),
        gain=_largest(change for change in changes if change > 0),
        unseen=mean / lost * (square / lost) if lost > 0 else 1.0,
    )


def _largest(changes: Iterable[float]) -> float:
    """Return the typical size of the largest of `changes`; 0 where there are none."""
    squares, cubes = 0.0, 0.0
    for change in changes:
        squares += change * change
        cubes += abs(change) ** 3
    return cubes / squares if squares > 0 else 0.0


def combine(moments: Mapping[str, PairedMoments], weights: Mapping[str, float]) -> Statistic:
    """Return the statistic over strata: weighted means, independent between tasks."""
    return Statistic(
        baseline=math.fsum(weights[name] * m.baseline for name, m in moments.items()),
        candidate=math.fsum(weights[name] * m.candidate for name, m in moments.items()),
        baseline_variance=math.fsum(weights[name] ** 2 * m.baseline_variance for name, m in moments.items()),
        covariance=math.fsum(weights[name] ** 2 * m.covariance for name, m in moments.items()),
        candidate_variance=math.fsum(weights[name] ** 2 * m.candidate_variance for name, m in moments.items()),
        leverage=max(weights[name] * m.leverage for name, m in moments.items()),
        loss=max(weights[name] * m.loss for name, m in moments.items()),
        gain=max(weights[name] * m.gain for name, m in moments.items()),
        unseen=max(weights[name] * m.unseen for name, m in moments.items()),
    )


def tasks_below_floor(moments: Mapping[str, PairedMoments], policy: Policy) -> set[str]:
    """Return the tasks that are shown to keep less than the policy's floor.

    The chance of naming any task that does not stays within α (Holm 1979): each of k tasks may use up a k-th of it, and
    after each finding what is left of them is tested anew.
    """
    if policy.floor is None:
        return set()
    alone = {name: combine({name: task}, {name: 1.0}) for name, task in moments.items()}
    open_ = {name for name, task in alone.items() if task.above_chance(policy.confidence)}
    found: set[str] = set()
    while left := len(moments) - len(found):
        confidence = shared(policy.confidence, 1 / left)
        new = {name for name in open_ - found if alone[name].upper(policy.floor, confidence) < 0}
        if not new:
            break
        found |= new
    return found


def documents_to_decide(overall: Statistic, target: float, confidence: float, documents: int) -> int | None:
    """Return how many documents to add so that the margin shrinks to the distance seen; None where that is zero."""
    distance = abs(overall.mean(target))
    if distance == 0:
        return None
    dense = quantile(confidence) ** 2 * overall.variance(target)
    rare = leverage_weight(confidence) * max(overall.loss, overall.gain) * distance
    unseen = -math.log(1 - confidence) * overall.unseen * distance
    factor = max(dense + rare, (dense + math.hypot(dense, 2 * unseen)) / 2) / distance**2
    return max(1, math.ceil((factor - 1) * documents))
