"""The two statistics of a suite's paired documents, accuracy and expected score, each weighed over its tasks."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pipelines.gating.expected import expected_scores
from pipelines.gating.pairs import Pairs
from pipelines.gating.statistic import (
    RIGHT_OR_WRONG,
    PairedMoments,
    Scored,
    Sizes,
    Statistic,
    combine,
    paired_moments,
)
from pipelines.gating.verdict import Kept
from pipelines.recipe.suite import Policy, ScoreKind, Suite


class Weighed(NamedTuple):
    """One statistic of the documents of the tasks that have it."""

    scored: Mapping[str, Sequence[Scored]]
    """Scores of each task's documents."""
    moments: Mapping[str, PairedMoments]
    overall: Statistic
    """Statistic over these tasks."""

    def kept(self, shares: Mapping[str, float], confidence: float) -> Kept:
        """Return what is kept over the suite, whose tasks have these `shares`."""
        kept = _kept([(shares[name], scored) for name, scored in self.scored.items()], self.overall, confidence)
        return kept if self.overall.above_chance(confidence) else kept.model_copy(update={"retention": None})

    def kept_of(self, task: str, confidence: float) -> Kept:
        """Return what is kept of one task alone."""
        alone = combine({task: self.moments[task]}, {task: 1.0})
        return _kept([(1.0, self.scored[task])], alone, confidence)


class Both(NamedTuple):
    """Both statistics of a suite's documents."""

    accuracy: Weighed
    offered: Weighed | None
    """Expected score of the tasks that have one; None where none has."""
    temperatures: Mapping[str, float | None]
    """Temperature of the softmax of each task that has one."""

    @property
    def expected(self) -> Weighed | None:
        """Expected score of all tasks; None where one has none."""
        return self.offered if len(self.temperatures) == len(self.accuracy.moments) else None

    @property
    def found(self) -> dict[ScoreKind, Weighed]:
        """Statistics that there are, by name."""
        found: dict[ScoreKind, Weighed] = {"accuracy": self.accuracy}
        return found | ({"expected": self.expected} if self.expected else {})


def weigh_both(pairs: Mapping[str, Pairs], suite: Suite, policy: Policy) -> Both:
    """Return both statistics of the paired documents."""
    found = {name: expected_scores(documents) for name, documents in pairs.items()}
    accuracy = {
        name: [Scored(ours.score, theirs.score, ours.chance, ours.cluster) for ours, theirs in documents]
        for name, documents in pairs.items()
    }
    expected = {name: one.scored for name, one in found.items() if one}
    return Both(
        accuracy=_weigh(accuracy, suite, policy, RIGHT_OR_WRONG),
        offered=_weigh(expected, suite, policy, None) if expected else None,
        temperatures={name: one.temperature for name, one in found.items() if one},
    )


def _weigh(scored: Mapping[str, Sequence[Scored]], suite: Suite, policy: Policy, sizes: Sizes | None) -> Weighed:
    """Return the statistic of all scores; of changes as large as `sizes`, or as the scores show."""
    moments = {name: paired_moments(documents, policy, sizes) for name, documents in scored.items()}
    return Weighed(scored, moments, combine(moments, suite.shares))


def _kept(scored: Iterable[tuple[float, Sequence[Scored]]], overall: Statistic, confidence: float) -> Kept:
    """Return what is kept over tasks, each with its share and its scores."""
    means = [
        (share, fmean(one.baseline for one in every), fmean(one.candidate for one in every)) for share, every in scored
    ]
    return Kept(
        baseline=sum(share * baseline for share, baseline, _ in means),
        candidate=sum(share * candidate for share, _, candidate in means),
        retention=overall.retention(),
        lower_bound=overall.retention_bound(overall.lower, confidence),
        upper_bound=overall.retention_bound(overall.upper, confidence),
    )
