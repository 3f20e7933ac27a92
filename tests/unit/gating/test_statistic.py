"""The bounds of the expected score: a second computation of the margin, and what it is at its ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from pipelines.gating.gate import judge
from pipelines.gating.statistic import RIGHT_OR_WRONG, Scored, Statistic, combine, documents_to_decide, paired_moments
from pipelines.recipe.suite import Policy
from tests.helpers.evaluations import ALPHA, TARGET, documents, judged, suite

Floats = npt.NDArray[np.float64]
EXPECTED = Policy(decide="certified", statistic="expected", floor=None)
quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Drawn:
    """Scores of answers that were drawn several times: between 0 and 1, in clusters of other sizes."""

    baseline: Floats
    candidate: Floats
    clusters: npt.NDArray[np.int64]
    chance: float
    weight: float

    def d(self, target: float) -> Floats:
        result: Floats = (self.candidate - self.chance) - target * (self.baseline - self.chance)
        return result


def drawn(seed: int, count: int = 300) -> Drawn:
    random = np.random.default_rng(seed)
    logits = random.normal(1, 2, count)
    moved = logits + random.normal(-0.05, 0.3, count)
    broken = random.random(count) < 0.02
    candidate = np.where(broken, 0.1, 1 / (1 + np.exp(-moved)))
    clusters = np.sort(random.integers(0, 80, count))
    chance = float(random.choice([0.0, 0.2, 0.25]))
    return Drawn(1 / (1 + np.exp(-logits)), candidate, clusters, chance, float(random.choice([1.0, 2.0, 3.5])))


def second_bound(tasks: Sequence[Drawn], target: float, side: int) -> float:
    """The bound of the mean of d: below for `side` -1, above for +1. Its root is searched, and not solved for."""
    weights = np.array([task.weight for task in tasks])
    weights /= weights.sum()
    mean = variance = 0.0
    changes, unseen = [], []
    for w, task in zip(weights, tasks, strict=True):
        d, count = task.d(target), len(task.baseline)
        mean += w * d.mean()
        names, sizes = np.unique(task.clusters, return_counts=True)
        sums = np.array([(d - d.mean())[task.clusters == name].sum() for name in names])
        variance += w**2 * len(names) / (len(names) - 1) * (sums @ sums) / count**2
        change = side * (task.candidate - task.baseline)
        moved = change[change > 0]
        heaviest = w * sizes.max() / count
        changes.append(heaviest * stats.moment(moved, 3, center=0) / stats.moment(moved, 2, center=0))
        head = task.baseline - task.chance
        something = np.clip(head, 0, None)
        participation = something.mean() ** 2 / (something**2).mean()
        unseen.append(heaviest * head.mean() / participation)
    z2, k = stats.norm.isf(ALPHA) ** 2, -math.log(ALPHA)
    margin = optimize.brentq(lambda x: x * x - z2 * variance - k * max(changes) * x, 1e-12, 10, xtol=1e-15)
    return float(mean + side * max(margin, math.sqrt((k * max(unseen)) ** 2 + z2 * variance)))


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_equal_those_of_a_second_computation(seed: int, tasks: int) -> None:
    data = {f"task{i}": drawn(100 * seed + i) for i in range(tasks)}
    ours, theirs = (
        {
            name: tuple(
                one.model_copy(update={"times": 8})
                for one in documents(getattr(task, side).tolist(), task.chance, task.clusters.tolist())
            )
            for name, task in data.items()
        }
        for side in ("baseline", "candidate")
    )
    verdict = judge(ours, theirs, suite(EXPECTED, {name: task.weight for name, task in data.items()}), TARGET)
    every = list(data.values())
    lower = optimize.brentq(lambda target: second_bound(every, target, -1), 0.0, 10.0, xtol=1e-13)
    upper = optimize.brentq(lambda target: second_bound(every, target, +1), 0.0, 10.0, xtol=1e-13)
    assert verdict.lower_bound == pytest.approx(lower, abs=1e-9)
    assert verdict.upper_bound == pytest.approx(upper, abs=1e-9)
    assert verdict.expected is not None
    assert (verdict.expected.lower_bound, verdict.expected.upper_bound) == (verdict.lower_bound, verdict.upper_bound)


def seen(baseline: Sequence[float], candidate: Sequence[float], chance: float = 0.0) -> Statistic:
    rows = zip(baseline, candidate, strict=True)
    scored = [Scored(b, c, chance, str(place)) for place, (b, c) in enumerate(rows)]
    return combine({"a": paired_moments(scored, EXPECTED)}, {"a": 1.0})


def test_the_size_of_a_change_is_the_third_moment_over_the_second() -> None:
    """Of one loss its size; of one large and many small ones near that of the large."""
    base = [0.8] * 100
    assert seen(base, [0.5] + [0.8] * 99).loss == pytest.approx(0.3 / 100)
    many = seen(base, [0.5] + [0.79] * 99)
    assert many.loss == pytest.approx((0.3**3 + 99 * 0.01**3) / (0.3**2 + 99 * 0.01**2) / 100)
    assert (many.gain, seen(base, [0.9] * 100).loss) == (0, 0)
    assert seen(base, [0.9] * 100).gain == pytest.approx(0.1 / 100)


@pytest.mark.parametrize("count", [50, 300, 2000])
def test_what_did_not_change_at_all_is_bounded_by_a_break_that_was_not_seen(count: int) -> None:
    """A share p of breaks to chance shows in none of n documents with probability (1 - p v)^n; p of the head-room is
    lost. Where all documents have the same score, v is 1, and the bound that of the exact binomial test."""
    alike = seen([0.6] * count, [0.6] * count, 0.25)
    assert alike.margin(TARGET, 0.95, alike.loss) / alike.baseline == pytest.approx(-math.log(ALPHA) / count)
    exact = stats.binomtest(0, count).proportion_ci(0.90, method="exact").high
    assert exact <= alike.margin(TARGET, 0.95, alike.loss) / alike.baseline < exact * (1 + 6 / count)
    half = seen([0.65, 0.25] * (count // 2), [0.65, 0.25] * (count // 2), 0.25)
    assert half.margin(1.0, 0.95, half.loss) / half.baseline == pytest.approx(2 * -math.log(ALPHA) / count)


def test_of_right_and_wrong_answers_the_bound_is_the_one_of_accuracy() -> None:
    """Where something was lost and something gained, sizes that are measured are those that are known."""
    random = np.random.default_rng(1)
    baseline = (random.random(500) < 0.7).astype(float)
    candidate = np.where(random.random(500) < 0.05, 1 - baseline, baseline)
    rows = zip(baseline.tolist(), candidate.tolist(), strict=True)
    scored = [Scored(b, c, 0.0, str(place)) for place, (b, c) in enumerate(rows)]
    measured, known = (paired_moments(scored, EXPECTED, sizes) for sizes in (None, RIGHT_OR_WRONG))
    assert (measured.loss, measured.gain) == pytest.approx((known.loss, known.gain))
    assert measured.unseen == pytest.approx(known.unseen), "head-room h, on a share h of the documents"
    verdict = judged(baseline, candidate)
    bound = combine({"a": measured}, {"a": 1.0})
    assert verdict.lower_bound == pytest.approx(bound.retention_bound(bound.lower, 0.95))


pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=40)


@quick
@given(pairs, st.floats(0.5, 1.0), st.sampled_from([0.9, 0.95, 0.99]))
def test_no_margin_is_narrower_than_the_normal_one_or_wider_than_that_of_right_or_wrong(
    scores: list[tuple[float, float]], target: float, confidence: float
) -> None:
    found = seen([b for b, _ in scores], [c for _, c in scores])
    normal = stats.norm.ppf(confidence) * math.sqrt(found.variance(target))
    widest = found.model_copy(update={"loss": found.leverage, "unseen": 0.0})
    for change in (found.loss, found.gain):
        assert 0 <= change <= found.leverage * (1 + 1e-12)
        margin = found.model_copy(update={"unseen": 0.0}).margin(target, confidence, change)
        assert normal - 1e-12 <= margin <= widest.margin(target, confidence, widest.loss) + 1e-12


@pytest.mark.parametrize("unseen", [0.0, 1e-4, 2e-3])
@pytest.mark.parametrize("deviation", [1e-5, 1e-3, 4e-3])
def test_so_many_more_documents_put_the_bound_on_the_target(unseen: float, deviation: float) -> None:
    def with_times(factor: float) -> Statistic:
        return Statistic(
            baseline=0.5,
            candidate=0.4975,
            baseline_variance=0.0,
            covariance=0.0,
            candidate_variance=deviation**2 / factor,
            leverage=1e-3 / factor,
            loss=1e-4 / factor,
            gain=5e-5 / factor,
            unseen=unseen / factor,
        )

    more = documents_to_decide(with_times(1), TARGET, 0.95, 10**6)
    assert more is not None
    if more > 1:
        enough = with_times(1 + more / 10**6)
        assert enough.lower(TARGET, 0.95) == pytest.approx(0, abs=1e-8)


@quick
@given(pairs, st.floats(0.5, 1.0))
def test_more_confidence_is_never_a_narrower_margin(scores: list[tuple[float, float]], target: float) -> None:
    found = seen([b for b, _ in scores], [c for _, c in scores])
    margins = [found.margin(target, confidence, found.loss) for confidence in (0.8, 0.95, 0.999)]
    assert margins == sorted(margins)
