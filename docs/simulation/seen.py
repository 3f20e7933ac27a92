"""What the gate sees of simulated runs at each look: the moments of `pipelines.gating.statistic`, of all runs at once.

The formulas are those of the gate; the tests hold each against it, run by run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from docs.simulation.answers import Floats, Population, Scores
from pipelines.core.bounds import leverage_weight, quantile
from pipelines.evaluation.looks import LOOKS, documents_at_look
from pipelines.recipe.suite import ScoreKind

Ints = npt.NDArray[np.int64]


class Task(NamedTuple):
    """A task whose documents are drawn from a population."""

    population: Population
    documents: int
    weight: float = 1.0


class Seen(NamedTuple):
    """Moments of a task's documents, or a statistic of all tasks: each (runs,)."""

    baseline: Floats
    candidate: Floats
    baseline_variance: Floats
    covariance: Floats
    candidate_variance: Floats
    leverage: float
    loss: Floats
    gain: Floats
    unseen: Floats

    def mean(self, target: float) -> Floats:
        mean = self.candidate - target * self.baseline
        return np.where(np.abs(mean) < 1e-12, 0.0, mean)

    def variance(self, target: float) -> Floats:
        return np.maximum(
            self.candidate_variance - 2 * target * self.covariance + target**2 * self.baseline_variance, 0.0
        )

    def margin(self, target: float, confidence: float, change: Floats) -> Floats:
        variance = self.variance(target)
        unseen = -math.log(1 - confidence) * self.unseen
        least = np.hypot(unseen, quantile(confidence) * np.sqrt(variance))
        return np.maximum(_margin_of_error(variance, change, confidence), least)

    def above_chance(self, confidence: float) -> npt.NDArray[np.bool_]:
        leverage = np.full_like(self.baseline, self.leverage)
        found: npt.NDArray[np.bool_] = self.baseline > _margin_of_error(self.baseline_variance, leverage, confidence)
        return found

    def above(self, target: float, confidence: float) -> npt.NDArray[np.bool_]:
        """Tell in which runs the retention is shown to be above the target."""
        lower = self.mean(target) - self.margin(target, confidence, self.loss)
        return self.above_chance(confidence) & (lower > 0)

    def below(self, target: float, confidence: float, chance: float) -> npt.NDArray[np.bool_]:
        """Tell in which runs it is shown to be below; that the baseline is above chance takes confidence `chance`."""
        upper = self.mean(target) + self.margin(target, confidence, self.gain)
        return self.above_chance(chance) & (upper < 0)


def _margin_of_error(variance: Floats, change: Floats, confidence: float) -> Floats:
    rare = leverage_weight(confidence) * change
    found: Floats = (rare + np.sqrt(rare * rare + 4 * quantile(confidence) ** 2 * variance)) / 2
    return found


def combine(moments: Sequence[Seen], weights: Sequence[float]) -> Seen:
    """Return the statistic over tasks with these weights."""
    shares = np.array(weights) / sum(weights)

    def summed(name: str, power: int) -> Floats:
        return np.asarray(sum(w**power * getattr(m, name) for w, m in zip(shares, moments, strict=True)))

    def largest(name: str) -> Floats:
        found: Floats = np.max([w * getattr(m, name) for w, m in zip(shares, moments, strict=True)], axis=0)
        return found

    return Seen(
        baseline=summed("baseline", 1),
        candidate=summed("candidate", 1),
        baseline_variance=summed("baseline_variance", 2),
        covariance=summed("covariance", 2),
        candidate_variance=summed("candidate_variance", 2),
        leverage=float(largest("leverage")),
        loss=largest("loss"),
        gain=largest("gain"),
        unseen=largest("unseen"),
    )


Looks = Sequence[Mapping[ScoreKind, Seen]]
"""Moments by statistic at each look."""


def looks(task: Task, random: np.random.Generator, times: int) -> Looks:
    """Return what is seen of a task in `times` runs."""
    clusters, size = next(iter(task.population.values())).baseline.shape
    if size == 1 and set(task.population) == {"accuracy"}:
        counted = _counted(task.population["accuracy"], random, times, _ends(task.documents))
        return [{"accuracy": seen} for seen in counted]
    drawn = random.integers(0, clusters, (times, math.ceil(task.documents / size)), dtype=np.int32)
    return seen_of(task, drawn, random)


def seen_of(task: Task, drawn: npt.NDArray[np.int32], random: np.random.Generator) -> Looks:
    """Return what is seen of a task where runs have `drawn` (runs, clusters) of its population; the order of documents
    is the same in all of them, as it is in evaluations."""
    ends = _ends(task.documents)
    size = next(iter(task.population.values())).baseline.shape[1]
    if size == 1:
        found = {kind: list(alone(scores, drawn, ends)) for kind, scores in task.population.items()}
    else:
        order = random.permutation(task.documents)
        found = {kind: list(_together(scores, drawn, order, ends)) for kind, scores in task.population.items()}
    return [{kind: at[look] for kind, at in found.items()} for look in range(len(LOOKS))]


def _ends(documents: int) -> list[int]:
    """Return the number of documents at each look."""
    return [documents_at_look(look, documents) for look in range(len(LOOKS))]


def _sums(b: Floats, c: Floats) -> Floats:
    """Return (…, 11): what is summed over documents, of scores above chance."""
    loss, gain, has = np.maximum(b - c, 0), np.maximum(c - b, 0), np.maximum(b, 0)
    return np.stack([b, c, b * b, b * c, c * c, loss**2, loss**3, gain**2, gain**3, has, has**2], axis=-1)


def alone(scores: Scores, drawn: npt.NDArray[np.int32], ends: Sequence[int]) -> Iterator[Seen]:
    """Yield what is seen of independent documents, of which each look has the first."""
    table = _sums(scores.baseline[:, 0], scores.candidate[:, 0])
    total, before = np.zeros((len(drawn), table.shape[1])), 0
    for end in ends:
        if end > before:
            rows = np.take(table, drawn[:, before:end], axis=0)
            total = total + np.matmul(np.ones(end - before), rows)  # a sum over documents, in half of its time
            before = end
        yield _independent(total, end, scores.right_or_wrong)


def _counted(scores: Scores, random: np.random.Generator, times: int, ends: Sequence[int]) -> Iterator[Seen]:
    """Yield what is seen of independent right or wrong answers, of which it is enough to draw how many of each there
    are."""
    answers = np.stack([scores.baseline[:, 0], scores.candidate[:, 0]], axis=1)
    kinds, shares = np.unique(answers, axis=0, return_counts=True)
    table = _sums(kinds[:, 0], kinds[:, 1])
    total, before = np.zeros((times, table.shape[1])), 0
    for end in ends:
        total = total + random.multinomial(end - before, shares / shares.sum(), times) @ table
        before = end
        yield _independent(total, end, True)


def _independent(total: Floats, documents: int, right_or_wrong: bool) -> Seen:
    """Return the moments of independent documents' sums (runs, 11)."""
    count = float(documents)
    b, c = total[:, 0], total[:, 1]
    squares = [total[:, 2] - b * b / count, total[:, 3] - b * c / count, total[:, 4] - c * c / count]
    return _moments(total, count, squares, 1 / (count - 1) / count, 1.0, right_or_wrong)


def _together(scores: Scores, drawn: npt.NDArray[np.int32], order: Ints, ends: Sequence[int]) -> Iterator[Seen]:
    """Yield what is seen of documents in clusters, of which each look has the first of an order of documents."""
    size = scores.baseline.shape[1]
    table = _sums(scores.baseline, scores.candidate).astype(np.float32)
    every = np.take(table, drawn, axis=0)  # (runs, clusters, size, 11)
    for end in ends:
        mask = np.zeros(drawn.shape[1] * size, dtype=np.float32)
        mask[order[:end]] = 1
        mask = mask.reshape(-1, size)
        total = np.einsum("rcsk,cs->rk", every, mask, dtype=np.float64)
        parts = np.einsum("rcsk,cs->krc", every[..., :2], mask, dtype=np.float64)
        sizes, count = mask.sum(axis=1), float(end)
        rest = [part - np.outer(part.sum(axis=1) / count, sizes) for part in parts]
        squares = [np.einsum("rc,rc->r", x, y) for x, y in ((rest[0], rest[0]), (rest[0], rest[1]), (rest[1], rest[1]))]
        clusters = int((sizes > 0).sum())
        yield _moments(total, count, squares, clusters / (clusters - 1) / count**2, sizes.max(), scores.right_or_wrong)


def _moments(
    total: Floats, count: float, squares: Sequence[Floats], scale: float, largest: float, right_or_wrong: bool
) -> Seen:
    """Return the moments of sums (runs, 11); `squares` are those of clusters' sums about the mean."""
    leverage = float(largest) / count
    loss, gain = (_size(total[:, i], total[:, i + 1]) for i in (5, 7))
    above, has, square = np.maximum(total[:, 0], 0), total[:, 9], total[:, 10]
    unseen = np.where(has > 0, above * square / np.maximum(has, 1e-300) ** 2, 1.0)
    if right_or_wrong:
        loss = gain = unseen = np.ones(len(total))
    baseline_variance, candidate_variance = (np.maximum(squares[i], 0) * scale for i in (0, 2))
    covariance = squares[1] * scale
    return Seen(
        total[:, 0] / count,
        total[:, 1] / count,
        baseline_variance,
        covariance,
        candidate_variance,
        leverage=leverage,
        loss=leverage * loss,
        gain=leverage * gain,
        unseen=leverage * unseen,
    )


def _size(squares: Floats, cubes: Floats) -> Floats:
    found: Floats = np.where(squares > 0, cubes / np.maximum(squares, 1e-300), 0.0)
    return found
