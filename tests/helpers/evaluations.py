"""Evaluations with documents of chosen scores, and suites to judge them by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipelines.evaluation.scores import Document
from pipelines.gating.gate import judge
from pipelines.gating.statistic import PairedMoments, Statistic, combine
from pipelines.gating.verdict import Verdict
from pipelines.recipe.suite import Policy, Suite, SuiteTask

ALPHA = 0.05
TARGET = 0.99
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
CERTIFIED = Policy(decide="certified", floor=None)


def documents(
    scores: Iterable[float], chance: float = 0.0, clusters: Sequence[object] | None = None
) -> tuple[Document, ...]:
    return tuple(
        Document.model_construct(
            id=i,
            doc_hash=f"doc{i}",
            prompt_hash=f"prompt{i}",
            target_hash=f"target{i}",
            cluster=str(clusters[i] if clusters is not None else i),
            chance=chance,
            score=float(score),
        )
        for i, score in enumerate(scores)
    )


def suite(policy: Policy = CERTIFIED, weights: Mapping[str, float] = MappingProxyType({"a": 1.0})) -> Suite:
    tasks = tuple(SuiteTask(task=name, weight=weight) for name, weight in weights.items())
    return Suite(version=1, name="simulated", summary="", tasks=tasks, policy=policy)


def judged(
    baseline: Iterable[float],
    candidate: Iterable[float],
    policy: Policy = CERTIFIED,
    target: float = TARGET,
    chance: float = 0.0,
    clusters: Sequence[object] | None = None,
) -> Verdict:
    """The verdict over one task."""
    ours, theirs = documents(baseline, chance, clusters), documents(candidate, chance, clusters)
    return judge({"a": ours}, {"a": theirs}, suite(policy), target)


def expanded(table: Sequence[int]) -> tuple[list[float], list[float]]:
    """Scores of both sides, from counts of documents right in both, lost, gained and wrong in both."""
    both, lost, gained, neither = (int(count) for count in table)
    baseline = [1.0] * (both + lost) + [0.0] * (gained + neither)
    candidate = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return baseline, candidate


@dataclass(frozen=True)
class Truth:
    """A task of right-or-wrong documents whose true retention is known."""

    documents: int
    baseline: float
    discordance: float
    chance: float = 0.0
    retention: float = TARGET
    weight: float = 1.0

    def shares(self) -> list[float]:
        """Probabilities that a document is right in both, lost, gained, or wrong in both."""
        fall = (1 - self.retention) * (self.baseline - self.chance)
        changed = max(self.discordance, abs(fall))
        lost, gained = (changed + fall) / 2, (changed - fall) / 2
        shares = [self.baseline - lost, lost, gained, 1 - self.baseline - gained]
        assert min(shares) >= 0
        return shares

    def draw(self, random: np.random.Generator, times: int) -> Ints:
        return random.multinomial(self.documents, self.shares(), size=times)


def table_moments(table: Sequence[float], chance: float) -> PairedMoments:
    """What the gate's `_moments` gives for these counts (shown below), without a loop over documents."""
    both, lost, gained, _ = (float(count) for count in table)
    count = float(sum(table))
    b, c = (both + lost) / count, (both + gained) / count
    return PairedMoments.model_construct(
        documents=round(count),
        clusters=round(count),
        baseline=b - chance,
        candidate=c - chance,
        baseline_variance=b * (1 - b) / (count - 1),
        covariance=(both / count - b * c) / (count - 1),
        candidate_variance=c * (1 - c) / (count - 1),
        leverage=1 / count,
        loss=1 / count,
        gain=1 / count,
        unseen=1 / count,
    )


def statistic(moments: Sequence[PairedMoments], weights: Sequence[float] = (1.0,)) -> Statistic:
    total = sum(weights)
    names = [f"task{i}" for i in range(len(moments))]
    shares = [weight / total for weight in weights]
    return combine(dict(zip(names, moments, strict=True)), dict(zip(names, shares, strict=True)))


def within_alpha(rate: float, times: int, alpha: float = ALPHA) -> bool:
    """Whether a true error rate of `alpha` gives this one, or a higher one, at least once in a thousand."""
    return bool(rate * times <= stats.binom.ppf(0.999, times, alpha))


@dataclass(frozen=True)
class Data:
    """Random scores of a task, fractional and clustered."""

    baseline: Floats
    candidate: Floats
    chance: float
    clusters: Ints
    weight: float


def random_data(seed: int, equal: bool = False) -> Data:
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(60), 5) if equal else np.sort(random.integers(0, 80, size=300))
    chance = float(random.choice([0.0, 0.2, 0.25]))
    baseline = random.choice([0.0, 0.5, 1.0], size=300, p=[0.2, 0.1, 0.7])
    candidate = np.where(random.random(300) < 0.1, random.random(300), baseline)
    return Data(baseline, candidate, chance, clusters, float(random.choice([1.0, 2.0, 3.5])))


def differences(data: Data, target: float) -> Floats:
    result: Floats = (data.candidate - data.chance) - target * (data.baseline - data.chance)
    return result
