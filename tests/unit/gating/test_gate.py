"""The gate, against simulations whose truth is known, against a second computation, and case by case."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from random import Random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from pipelines.core.errors import BadInput
from pipelines.evaluation.scores import Document, Evaluation
from pipelines.gating.decision import decide
from pipelines.gating.gate import gate, judge
from pipelines.gating.statistic import PairedMoments, tasks_below_floor
from pipelines.gating.verdict import Verdict
from pipelines.recipe.suite import Policy
from tests.helpers.evaluations import (
    ALPHA,
    CERTIFIED,
    TARGET,
    Data,
    Ints,
    Truth,
    differences,
    documents,
    expanded,
    judged,
    random_data,
    statistic,
    suite,
    table_moments,
    within_alpha,
)

SIMULATIONS = 4000
POINT = Policy(decide="point", floor=None)
quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Clusters:
    """A task whose flips come in clusters: few clusters are hit at all, and in those many documents flip."""

    sizes: tuple[int, ...]
    baseline: float
    hit: float
    gained: float
    """Share of the wrong documents of a hit cluster that become right."""
    chance: float = 0.0
    retention: float = TARGET

    def draw(self, random: np.random.Generator, times: int) -> tuple[Ints, Ints]:
        """Scores of both sides, simulations by documents; right answers cluster too."""
        fall = (1 - self.retention) * (self.baseline - self.chance)
        lost = (fall + self.hit * (1 - self.baseline) * self.gained) / (self.hit * self.baseline)
        assert 0 <= lost <= 1
        member, shape = self.members(), (times, sum(self.sizes))
        ease = random.beta(2 * self.baseline, 2 * (1 - self.baseline), (times, len(self.sizes)))
        baseline = random.random(shape) < ease[:, member]
        hit = (random.random((times, len(self.sizes))) < self.hit)[:, member]
        flips = hit & (random.random(shape) < np.where(baseline, lost, self.gained))
        return baseline.astype(np.int64), (baseline ^ flips).astype(np.int64)

    def members(self) -> Ints:
        """The cluster of each document."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


def cluster_moments(baseline: Ints, candidate: Ints, sizes: Sequence[int], chance: float) -> list[PairedMoments]:
    """The same for clustered documents: one `PairedMoments` for each simulation (row)."""
    count, clusters = sum(sizes), len(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    b, c = baseline.mean(axis=1), candidate.mean(axis=1)
    rest_b = np.add.reduceat(baseline, starts, axis=1) - np.outer(b, sizes)
    rest_c = np.add.reduceat(candidate, starts, axis=1) - np.outer(c, sizes)
    scale = clusters / (clusters - 1) / count**2
    columns = [b - chance, c - chance]
    columns += [scale * (x * y).sum(axis=1) for x, y in ((rest_b, rest_b), (rest_b, rest_c), (rest_c, rest_c))]
    return [
        PairedMoments.model_construct(
            documents=count,
            clusters=clusters,
            baseline=row[0],
            candidate=row[1],
            baseline_variance=row[2],
            covariance=row[3],
            candidate_variance=row[4],
            leverage=max(sizes) / count,
            loss=max(sizes) / count,
            gain=max(sizes) / count,
            unseen=max(sizes) / count,
        )
        for row in np.stack(columns, axis=1).tolist()
    ]


def decided(
    moments: Sequence[PairedMoments],
    weights: Sequence[float] = (1.0,),
    policy: Policy = CERTIFIED,
    target: float = TARGET,
) -> str:
    """The gate's word on these moments: PASS only where it is certified."""
    count = sum(m.documents for m in moments)
    decision = decide({"accuracy": statistic(moments, weights)}, (), (), policy, target, count)
    return "certified" if decision.verdict == "PASS" and decision.shown else decision.verdict


def rates(said: Sequence[str]) -> tuple[float, float]:
    """Shares of certified passes and of FAILs."""
    return said.count("certified") / len(said), said.count("FAIL") / len(said)


def simulated(truths: Sequence[Truth], seed: int = 1, times: int = SIMULATIONS, target: float = TARGET) -> list[str]:
    random = np.random.default_rng(seed)
    draws = [truth.draw(random, times).tolist() for truth in truths]
    weights = [truth.weight for truth in truths]
    return [
        decided(
            [table_moments(t, truth.chance) for t, truth in zip(tables, truths, strict=True)], weights, target=target
        )
        for tables in zip(*draws, strict=True)
    ]


def simulated_clusters(truth: Clusters, ignore: bool = False, times: int = 2000) -> list[str]:
    """`ignore`: as if every document were a cluster of its own."""
    random = np.random.default_rng(2)
    sizes = (1,) * sum(truth.sizes) if ignore else truth.sizes
    said: list[str] = []
    for _ in range(times // 500):
        said += [decided([m]) for m in cluster_moments(*truth.draw(random, 500), sizes, truth.chance)]
    return said


GRID = [
    Truth(count, baseline, discordance, chance)
    for count, baseline, discordance, chance in product(
        (200, 600, 2000), (0.3, 0.5, 0.8), (0.01, 0.03, 0.1), (0, 0.25, 0.5)
    )
    if baseline > chance
]
"""Everything at the boundary: true retention is the target, so that any certified PASS and any FAIL is an error."""


def falling_in_one(truths: Sequence[Truth], which: int) -> list[Truth]:
    """The same suite at the same retention, with all of the loss in one task."""
    worth = [truth.weight * (truth.baseline - truth.chance) for truth in truths]
    share = 1 - (1 - TARGET) * sum(worth) / worth[which]
    return [replace(truth, retention=share if i == which else 1.0) for i, truth in enumerate(truths)]


UNEQUAL = [
    Truth(300, 0.8, 0.02, 0.25, weight=2),
    Truth(2000, 0.5, 0.1, 0.0, weight=1),
    Truth(1000, 0.6, 0.05, 0.5, weight=1),
]
SMALL_AND_HEAVY = [Truth(200, 0.9, 0.01, weight=5), Truth(2000, 0.5, 0.05, weight=1)]
FOUR = [
    Truth(2000, 0.5, 0.1, 0.25, weight=1),
    Truth(1500, 0.8, 0.1, 0.5, weight=2),
    Truth(2000, 0.3, 0.05, weight=1),
    Truth(1000, 0.6, 0.1, weight=1.5),
]
SUITES = [
    UNEQUAL,
    *(falling_in_one(UNEQUAL, i) for i in range(3)),
    *(falling_in_one(SMALL_AND_HEAVY, i) for i in range(2)),
    FOUR,
    *(falling_in_one(FOUR, i) for i in range(4)),
]
CLUSTERED = [
    Clusters((4,) * 50, 0.5, hit=0.05, gained=0.2),
    Clusters((5,) * 200, 0.8, hit=0.02, gained=0.3, chance=0.25),
    Clusters((5,) * 400, 0.5, hit=0.02, gained=0.2),
    Clusters((5,) * 400, 0.8, hit=0.1, gained=0.9, chance=0.5),
    Clusters((5,) * 400, 0.5, hit=0.9, gained=0.4),
    Clusters((2,) * 1000, 0.8, hit=0.3, gained=0.9),
    Clusters((1, 2, 3, 4, 6, 8) * 100, 0.5, hit=0.5, gained=0.3, chance=0.25),
    Clusters((20,) * 100, 0.5, hit=0.1, gained=0.1),
]


@pytest.mark.parametrize("truth", GRID, ids=str)
def test_at_the_boundary_errors_stay_within_alpha(truth: Truth) -> None:
    certified, failed = rates(simulated([truth]))
    assert within_alpha(certified, SIMULATIONS)
    assert within_alpha(failed, SIMULATIONS)


@pytest.mark.parametrize("truths", SUITES, ids=range(len(SUITES)))
def test_errors_of_several_unequal_tasks_stay_within_alpha(truths: list[Truth]) -> None:
    certified, failed = rates(simulated(truths))
    assert within_alpha(certified, SIMULATIONS)
    assert within_alpha(failed, SIMULATIONS)


@pytest.mark.parametrize("truth", CLUSTERED, ids=range(len(CLUSTERED)))
def test_errors_with_clusters_stay_within_alpha(truth: Clusters) -> None:
    said = simulated_clusters(truth)
    certified, failed = rates(said)
    assert within_alpha(certified, len(said))
    assert within_alpha(failed, len(said))


def test_ignoring_clusters_would_break_the_promise() -> None:
    said = simulated_clusters(CLUSTERED[2], ignore=True)
    assert rates(said)[0] > 2 * ALPHA


@pytest.mark.parametrize("target", [0.9, 0.95, 0.975])
def test_errors_at_other_targets_stay_within_alpha(target: float) -> None:
    for truth in (Truth(500, 0.8, 0.0, retention=target), Truth(2000, 0.5, 0.1, 0.25, retention=target)):
        certified, failed = rates(simulated([truth], target=target))
        assert within_alpha(certified, SIMULATIONS)
        assert within_alpha(failed, SIMULATIONS)


def test_the_bound_is_not_needlessly_wide() -> None:
    certified, failed = rates(simulated([Truth(20_000, 0.8, 0.1)]))
    assert certified > 0.04
    assert failed > 0.04


def test_an_equal_artifact_and_enough_documents_are_usually_certified() -> None:
    assert rates(simulated([Truth(20_000, 0.8, 0.02, retention=1.0)], times=1000))[0] > 0.99
    assert rates(simulated([Truth(14_042, 0.7, 0.045, 0.25, retention=1.0)], times=1000))[0] > 0.7


@pytest.mark.parametrize("count", [500, 2000])
def test_a_clearly_worse_artifact_nearly_always_fails(count: int) -> None:
    assert rates(simulated([Truth(count, 0.8, 0.1, retention=0.88)], times=1000))[1] > 0.98


def test_floors_refuse_a_good_task_no_more_often_than_alpha() -> None:
    policy = Policy(floor=0.9)
    random = np.random.default_rng(3)
    truths = [
        Truth(n, b, 0.1, g, retention=0.9)
        for n, b, g in ((300, 0.8, 0), (1000, 0.5, 0.25), (2000, 0.6, 0), (500, 0.3, 0))
    ]
    times, refused = 1500, 0
    for tables in zip(*(truth.draw(random, times).tolist() for truth in truths), strict=True):
        moments = {str(i): table_moments(t, truths[i].chance) for i, t in enumerate(tables)}
        refused += bool(tasks_below_floor(moments, policy))
    assert within_alpha(refused / times, times)


@pytest.mark.parametrize("policy", [CERTIFIED, POINT, Policy()], ids=lambda policy: f"{policy.decide}-{policy.floor}")
def test_the_moments_of_the_simulations_are_those_of_the_gate(policy: Policy) -> None:
    random = np.random.default_rng(4)
    for truth in GRID[::6]:
        for table in truth.draw(random, 2).tolist():
            verdict = judged(*expanded(table), policy, chance=truth.chance)
            moments = statistic([table_moments(table, truth.chance)])
            said = decide({"accuracy": moments}, verdict.tasks, verdict.measures, policy, TARGET, truth.documents)
            assert (verdict.verdict, verdict.shown, verdict.reasons) == (said.verdict, said.shown, said.reasons)
            assert verdict.certified == (said.verdict == "PASS" and said.shown)
            assert verdict.more_documents == pytest.approx(said.more, rel=1e-9, abs=1)
            assert verdict.retention == pytest.approx(moments.retention(), abs=1e-12)
            assert verdict.lower_bound == pytest.approx(moments.retention_bound(moments.lower, 0.95), abs=1e-9)
            assert verdict.upper_bound == pytest.approx(moments.retention_bound(moments.upper, 0.95), abs=1e-9)


def test_the_clustered_moments_of_the_simulations_are_those_of_the_gate() -> None:
    random = np.random.default_rng(5)
    for truth in CLUSTERED:
        baseline, candidate = truth.draw(random, 3)
        for i, m in enumerate(cluster_moments(baseline, candidate, truth.sizes, truth.chance)):
            members = truth.members().tolist()
            verdict = judged(baseline[i], candidate[i], chance=truth.chance, clusters=members)
            ours = statistic([m])
            assert decided([m]) == ("certified" if verdict.certified else verdict.verdict)
            assert verdict.tasks[0].clusters == m.clusters
            assert verdict.lower_bound == pytest.approx(ours.retention_bound(ours.lower, 0.95), abs=1e-9)
            assert verdict.upper_bound == pytest.approx(ours.retention_bound(ours.upper, 0.95), abs=1e-9)


@pytest.mark.parametrize("count", [50, 300, 1000, 10_000])
def test_no_loss_in_n_bounds_the_loss_rate_by_three_over_n(count: int) -> None:
    bound = judged([1.0] * count, [1.0] * count).lower_bound
    assert bound is not None
    exact = stats.binomtest(0, count).proportion_ci(0.90, method="exact").high
    assert 1 - bound == pytest.approx(-np.log(ALPHA) / count, abs=1e-12)
    assert exact <= 1 - bound <= exact * (1 + 2 * 3 / count)


@pytest.mark.parametrize(("count", "certified"), [(50, False), (299, False), (300, True), (5000, True)])
def test_unchanged_documents_certify_from_three_hundred_on(count: int, certified: bool) -> None:
    verdict = judged([1.0] * count, [1.0] * count)
    assert verdict.retention == 1.0
    assert verdict.certified is certified
    assert verdict.verdict == ("PASS" if certified else "INCONCLUSIVE")


def test_fifty_unchanged_documents_never_certify() -> None:
    for right in range(1, 51):
        for chance in (0.0, 0.25, 0.5):
            scores = [1.0] * right + [0.0] * (50 - right)
            assert not judged(scores, scores, chance=chance).certified
            assert not judged(scores, scores, POINT, chance=chance).certified


@pytest.mark.parametrize("lost", [1, 2, 5, 10, 30])
def test_few_losses_are_bounded_as_the_exact_binomial_test_bounds_them(lost: int) -> None:
    count = 2000
    bound = judged(*expanded([count - lost, lost, 0, 0]), target=0.9).lower_bound
    assert bound is not None
    assert 1 - bound == pytest.approx(stats.binomtest(lost, count).proportion_ci(0.90, method="exact").high, rel=0.01)


def test_the_worst_case_of_rare_losses_is_five_point_two_percent() -> None:
    """Losses and nothing else, at the loss rate where just one loss fewer than expected decides: the exact error."""
    for lost in range(0, 200):
        ours = statistic([table_moments([20_000 - lost, lost, 0, 0], 0.0)])
        bound = ours.retention_bound(ours.lower, 0.95)
        assert bound is not None
        assert stats.binom.cdf(lost, 20_000, 1 - bound) < 0.052


def variance_by_dummies(data: Data, target: float) -> float:
    """OLS on a constant, errors clustered (CR1): the sandwich with a matrix of cluster dummies."""
    residuals = differences(data, target) - differences(data, target).mean()
    names = np.unique(data.clusters)
    dummies = (data.clusters[:, None] == names).astype(float)
    meat = residuals @ dummies @ dummies.T @ residuals
    return float(meat / len(residuals) ** 2 * len(names) / (len(names) - 1))


def variance_by_leaving_out(data: Data, target: float) -> float:
    """The jackknife over clusters; equal to the above where clusters have equal sizes."""
    d, names = differences(data, target), np.unique(data.clusters)
    left = np.array([d[data.clusters != name].mean() for name in names])
    return float((len(names) - 1) / len(names) * ((left - left.mean()) ** 2).sum())


def second_bound(tasks: Sequence[Data], target: float, variance: Callable[[Data, float], float], side: int) -> float:
    """The bound of the mean of d: below for `side` -1, above for +1."""
    weights = np.array([data.weight for data in tasks]) / sum(data.weight for data in tasks)
    mean = sum(w * differences(data, target).mean() for w, data in zip(weights, tasks, strict=True))
    total = sum(w**2 * variance(data, target) for w, data in zip(weights, tasks, strict=True))
    heaviest = max(
        w * np.unique(data.clusters, return_counts=True)[1].max() / 300 for w, data in zip(weights, tasks, strict=True)
    )
    roots = np.roots([1.0, np.log(ALPHA) * heaviest, -(stats.norm.isf(ALPHA) ** 2) * total])
    return float(mean + side * roots.max())


def first_verdict(tasks: Sequence[Data], target: float) -> Verdict:
    names = [f"task{i}" for i in range(len(tasks))]
    pairs = list(zip(names, tasks, strict=True))
    ours = {name: documents(d.baseline, d.chance, d.clusters.tolist()) for name, d in pairs}
    theirs = {name: documents(d.candidate, d.chance, d.clusters.tolist()) for name, d in pairs}
    return judge(ours, theirs, suite(CERTIFIED, {name: d.weight for name, d in pairs}), target)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("variance", [variance_by_dummies, variance_by_leaving_out])
def test_bounds_equal_those_of_a_second_computation(
    seed: int, tasks: int, variance: Callable[[Data, float], float]
) -> None:
    data = [random_data(100 * seed + i, equal=variance is variance_by_leaving_out) for i in range(tasks)]
    verdict = first_verdict(data, TARGET)
    lower = optimize.brentq(lambda target: second_bound(data, target, variance, -1), 0.0, 10.0, xtol=1e-13)
    upper = optimize.brentq(lambda target: second_bound(data, target, variance, +1), 0.0, 10.0, xtol=1e-13)
    assert verdict.lower_bound == pytest.approx(lower, abs=1e-9)
    assert verdict.upper_bound == pytest.approx(upper, abs=1e-9)
    if second_bound(data, TARGET, variance, -1) > 0:
        assert verdict.certified
    elif second_bound(data, TARGET, variance, +1) < 0:
        assert verdict.verdict == "FAIL"
    else:
        assert verdict.verdict == "INCONCLUSIVE"


def test_the_retention_is_the_ratio_of_weighted_means_above_chance() -> None:
    data = [random_data(i) for i in range(3)]
    kept = sum(d.weight * float(d.candidate.mean() - d.chance) for d in data)
    had = sum(d.weight * float(d.baseline.mean() - d.chance) for d in data)
    assert first_verdict(data, TARGET).retention == pytest.approx(kept / had, abs=1e-12)


def test_with_many_documents_the_bound_is_that_of_the_paired_t_test() -> None:
    table = Truth(20_000, 0.7, 0.1).draw(np.random.default_rng(6), 1)[0]
    baseline, candidate = (np.array(scores) for scores in expanded(table))
    test = stats.ttest_rel(candidate, TARGET * baseline, alternative="greater")
    ours = statistic([table_moments(table, 0.0)])
    variance = ours.candidate_variance - 2 * TARGET * ours.covariance + TARGET**2 * ours.baseline_variance
    assert ours.mean(TARGET) / variance**0.5 == pytest.approx(test.statistic, abs=1e-9)
    bound = test.confidence_interval(0.95).low
    assert 0 < bound - ours.lower(TARGET, 0.95) < 1.1 * -np.log(ALPHA) / 2 / 20_000


def test_chance_correction_measures_the_score_above_chance() -> None:
    baseline, candidate = expanded([270, 30, 0, 200])
    assert judged(baseline, candidate, chance=0.25).retention == pytest.approx((0.54 - 0.25) / (0.60 - 0.25))
    plain = Policy(chance_correction=False, floor=None)
    assert judged(baseline, candidate, plain, chance=0.25).retention == pytest.approx(0.54 / 0.60)


EQUAL_BUT_NOISY = [760, 40, 40, 160]
SLIGHTLY_WORSE = [750, 50, 40, 160]
CLEARLY_WORSE = [640, 160, 10, 190]
UNCHANGED = [800, 0, 0, 200]


@pytest.mark.parametrize(
    ("table", "decide", "verdict", "certified"),
    [
        (UNCHANGED, "point", "PASS", True),
        (UNCHANGED, "certified", "PASS", True),
        (EQUAL_BUT_NOISY, "point", "PASS", False),
        (EQUAL_BUT_NOISY, "certified", "INCONCLUSIVE", False),
        (SLIGHTLY_WORSE, "point", "FAIL", False),
        (SLIGHTLY_WORSE, "certified", "INCONCLUSIVE", False),
        (CLEARLY_WORSE, "point", "FAIL", False),
        (CLEARLY_WORSE, "certified", "FAIL", False),
    ],
)
def test_the_policy_rules_only_where_the_data_does_not(
    table: list[int], decide: Literal["point", "certified"], verdict: str, certified: bool
) -> None:
    said = judged(*expanded(table), Policy(decide=decide))
    assert (said.verdict, said.certified) == (verdict, certified)
    undecided = table in (EQUAL_BUT_NOISY, SLIGHTLY_WORSE)
    assert (said.more_documents is not None) is undecided
    assert ("does not decide" in said.reasons[0]) is undecided


def test_a_verdict_counts_what_changed() -> None:
    task = judged(*expanded([700, 30, 20, 250]), chance=0.25).tasks[0]
    assert (task.documents, task.clusters, task.lost, task.gained) == (1000, 1000, 30, 20)
    assert (task.baseline, task.candidate, task.chance, task.weight) == (0.73, 0.72, 0.25, 1.0)


def two_tasks(policy: Policy, bad: list[int], good: list[int]) -> Verdict:
    scores = {"bad": expanded(bad), "good": expanded(good)}
    ours, theirs = ({name: documents(sides[i]) for name, sides in scores.items()} for i in (0, 1))
    return judge(ours, theirs, suite(policy, {"bad": 1, "good": 20}), TARGET)


def test_a_task_shown_to_be_below_its_floor_fails_the_suite() -> None:
    said = two_tasks(Policy(floor=0.9), [120, 60, 0, 20], [4000, 0, 100, 900])
    assert said.verdict == "FAIL"
    assert said.reasons == ("task bad is shown to keep less than 90%",)
    assert [task.below_floor for task in said.tasks] == [True, False]


def test_without_a_floor_the_same_suite_passes() -> None:
    assert two_tasks(Policy(floor=None), [120, 60, 0, 20], [4000, 0, 100, 900]).certified


def test_a_task_that_only_seems_to_be_below_its_floor_does_not_fail_the_suite() -> None:
    said = two_tasks(Policy(floor=0.9), [150, 25, 3, 22], [4000, 0, 100, 900])
    retention = said.tasks[0].retention
    assert retention is not None and retention < 0.9
    assert said.certified


def test_a_floor_is_harder_to_break_the_more_tasks_there_are() -> None:
    policy = Policy(floor=0.9)
    moments = {"a": table_moments([696, 104, 2, 198], 0.0)}
    others = {name: table_moments(UNCHANGED, 0.0) for name in "bcdefghij"}
    assert tasks_below_floor(moments, policy) == {"a"}
    assert tasks_below_floor(moments | others, policy) == set()


def test_what_is_found_below_its_floor_leaves_more_for_the_rest() -> None:
    moments = {"a": table_moments([696, 104, 2, 198], 0.0), "ruined": table_moments([400, 400, 0, 200], 0.0)}
    fine = {"fine": table_moments(UNCHANGED, 0.0)}
    assert tasks_below_floor({"a": moments["a"], **fine, "fine too": fine["fine"]}, Policy(floor=0.9)) == set()
    assert tasks_below_floor({**moments, **fine}, Policy(floor=0.9)) == {"a", "ruined"}


def test_nothing_is_rounded_up_to_the_target() -> None:
    said = judged([1.0] * 500, [0.98999999] * 500, POINT)
    assert said.retention == pytest.approx(0.98999999, abs=1e-12)
    assert said.verdict == "FAIL"
    assert said.more_documents is not None


def test_exactly_the_target_is_not_below_it() -> None:
    assert judged([1.0] * 100, [1.0] * 99 + [0.0], POINT).verdict == "PASS"


def exact_ties() -> list[tuple[list[int], float, float]]:
    """Counts whose retention is exactly the target, in whole numbers."""
    ties = []
    for target, count, chance in product((0.99, 0.98, 0.95, 0.9), (200, 600, 1000, 1200), (0.0, 0.25, 0.5)):
        for right in range(100, count + 1, 100):
            above = Fraction(right) - count * Fraction(chance)
            kept = Fraction(str(target)) * above + count * Fraction(chance)
            if above > count // 10 and kept.denominator == 1:
                ties.append(([int(kept), right - int(kept), 0, count - right], chance, target))
    return ties


def test_every_exact_tie_is_a_pass_by_the_point_estimate() -> None:
    ties = exact_ties()
    assert len(ties) > 100
    said = [judged(*expanded(table), POINT, target, chance) for table, chance, target in ties]
    assert [tie for tie, verdict in zip(ties, said, strict=True) if verdict.verdict != "PASS"] == []
    assert max(verdict.more_documents or 0 for verdict in said) < 10**9


@pytest.mark.parametrize("policy", [CERTIFIED, POINT])
def test_a_task_without_scores_fails_with_its_reason(policy: Policy) -> None:
    scores = documents([1.0] * 500)
    for candidate in ({"a": scores}, {"a": scores, "b": ()}):
        said = judge({"a": scores, "b": scores}, candidate, suite(policy, {"a": 1, "b": 1}), TARGET)
        assert said.verdict == "FAIL"
        assert said.reasons == ("the artifact has no score for task b",)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_fails_with_its_reason(score: float) -> None:
    said = judged([1.0] * 500, [1.0] * 499 + [score], POINT)
    assert said.verdict == "FAIL"
    assert said.reasons == ("the artifact has scores that are not numbers on task a",)


def refusal(baseline: tuple[Document, ...], candidate: tuple[Document, ...]) -> str:
    with pytest.raises(BadInput) as refused:
        judge({"a": baseline}, {"a": candidate}, suite(), TARGET)
    return str(refused.value)


FEW = documents([1.0, 0.0] * 5)


def test_missing_documents_are_refused() -> None:
    assert "task a: 1 documents, prompts or answers to choose from are on one side only" in refusal(FEW, FEW[:-1])
    assert "task a: 1 documents, prompts or answers to choose from are on one side only" in refusal(FEW[1:], FEW)
    assert "on one side only" in refusal((), FEW)


def test_documents_given_twice_are_refused() -> None:
    assert "task a: the candidate has documents twice" in refusal(FEW, (*FEW, FEW[0]))
    assert "task a: the baseline has documents twice" in refusal((*FEW, FEW[0]), FEW)
    assert "twice" in refusal((*FEW, FEW[0]), (*FEW, FEW[0]))
    assert "twice" in refusal(FEW, (*FEW[:-1], FEW[0]))


@pytest.mark.parametrize("what", ["id", "doc_hash", "prompt_hash", "target_hash"])
def test_different_documents_are_refused(what: str) -> None:
    other = FEW[0].model_copy(update={what: 99 if what == "id" else "other"})
    assert "2 documents, prompts or answers to choose from are on one side only" in refusal(FEW, (other, *FEW[1:]))


@pytest.mark.parametrize("score", [-0.1, 1.1, 100.0])
def test_scores_outside_zero_and_one_are_refused(score: float) -> None:
    other = (FEW[0].model_copy(update={"score": score}), *FEW[1:])
    assert "the candidate has scores outside [0, 1]" in refusal(FEW, other)
    assert "the baseline has scores outside [0, 1]" in refusal(other, FEW)


def test_a_baseline_that_is_no_number_is_refused() -> None:
    assert "the baseline has scores outside [0, 1]" in refusal(
        (FEW[0].model_copy(update={"score": float("nan")}), *FEW[1:]), FEW
    )


def test_one_cluster_is_refused() -> None:
    with pytest.raises(BadInput, match="fewer than two independent documents"):
        judged([1.0] * 10, [1.0] * 10, clusters=[0] * 10)


def test_every_problem_of_a_task_is_told_at_once() -> None:
    told = refusal(FEW, (*FEW[:-2], FEW[0].model_copy(update={"score": 7.0})))
    assert "twice" in told and "outside [0, 1]" in told and "one side only" in told


def test_a_document_that_the_data_set_holds_twice_is_one_cluster() -> None:
    def held_twice(scores: list[float]) -> tuple[Document, ...]:
        once = documents(scores)
        return tuple(
            d
            for one in once
            for d in (one.model_copy(update={"id": 2 * one.id}), one.model_copy(update={"id": 2 * one.id + 1}))
        )

    scores = expanded(EQUAL_BUT_NOISY)
    said = judge({"a": held_twice(scores[0])}, {"a": held_twice(scores[1])}, suite(), TARGET)
    once = judged(*scores)
    assert (said.tasks[0].documents, said.tasks[0].clusters) == (2000, 1000)
    assert said.lower_bound == pytest.approx(once.lower_bound, abs=1e-9)
    assert said.upper_bound == pytest.approx(once.upper_bound, abs=1e-9)


@pytest.mark.parametrize("policy", [CERTIFIED, POINT, Policy()])
@pytest.mark.parametrize("right", [0, 200, 250, 255])
def test_a_baseline_that_does_not_score_above_chance_is_inconclusive(policy: Policy, right: int) -> None:
    for candidate in ([1.0] * 1000, [0.0] * 1000):
        said = judged([1.0] * right + [0.0] * (1000 - right), candidate, policy, chance=0.25)
        assert said.verdict == "INCONCLUSIVE"
        assert (said.retention, said.lower_bound, said.upper_bound, said.more_documents) == (None, None, None, None)
        assert "chance" in said.reasons[0]


@pytest.mark.parametrize("share", [1.5, 1.0, 0.5, 0.0, -1.0, math.nan, math.inf])
def test_a_share_that_nothing_or_everything_keeps_is_refused(share: float) -> None:
    with pytest.raises(BadInput, match=rf"^retention {share:g}: is no share between 0\.5 and 1\n    give 0\.99$"):
        gate(Evaluation.model_construct(), Evaluation.model_construct(), share)


def test_a_baseline_that_only_guesses_is_rarely_judged() -> None:
    random = np.random.default_rng(7)
    tables = random.multinomial(1000, [0.225, 0.025, 0.025, 0.725], size=1000).tolist()
    said = [decided([table_moments(table, 0.25)], policy=POINT) for table in tables]
    assert within_alpha(1 - said.count("INCONCLUSIVE") / 1000, 1000)


def test_no_pass_is_certified_where_the_ratio_has_no_bound() -> None:
    said = judged(*expanded([2510, 0, 26, 2464]), chance=0.5)
    assert not said.certified or (said.lower_bound or 0) > TARGET


@pytest.mark.parametrize("table", [EQUAL_BUT_NOISY, SLIGHTLY_WORSE, [750, 60, 40, 150], [796, 4, 0, 200]])
def test_more_documents_of_the_same_kind_decide(table: list[int]) -> None:
    more = judged(*expanded(table)).more_documents
    assert more is not None

    def at(share: float) -> str:
        size = 1 + share * more / sum(table)
        return decided([table_moments([size * count for count in table], 0.0)])

    assert at(0.98) == "INCONCLUSIVE"
    assert at(1.02) in ("certified", "FAIL")


@pytest.mark.parametrize(("table", "verdict"), [(EQUAL_BUT_NOISY, "certified"), ([750, 60, 40, 150], "FAIL")])
def test_so_many_more_documents_decide_about_every_other_time(table: list[int], verdict: str) -> None:
    more = judged(*expanded(table)).more_documents
    assert more is not None
    tables = np.random.default_rng(8).multinomial(1000 + more, [count / 1000 for count in table], size=1000)
    said = [decided([table_moments(t, 0.0)]) for t in tables.tolist()]
    assert 0.45 < said.count(verdict) / 1000 < 0.6


counts = st.tuples(*(st.integers(0, 300) for _ in range(4))).filter(lambda table: table[0] + table[1] > 20)
pairs = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=4, max_size=60)
targets = st.floats(0.51, 0.999)


@quick
@given(pairs, st.randoms(use_true_random=False), targets)
def test_the_order_of_documents_changes_nothing(
    scores: list[tuple[float, float]], random: Random, target: float
) -> None:
    members = [i // 2 for i in range(len(scores))]
    ours = list(documents([b for b, _ in scores], 0.25, members))
    theirs = list(documents([c for _, c in scores], 0.25, members))
    before = judge({"a": tuple(ours)}, {"a": tuple(theirs)}, suite(POINT), target)
    random.shuffle(ours)
    random.shuffle(theirs)
    after = judge({"a": tuple(ours)}, {"a": tuple(theirs)}, suite(POINT), target)
    assert after.verdict == before.verdict
    assert after.retention == pytest.approx(before.retention, abs=1e-12)
    assert after.lower_bound == pytest.approx(before.lower_bound, abs=1e-9)


@quick
@given(pairs, st.integers(0, 59), targets)
def test_a_better_artifact_never_turns_pass_into_fail(
    scores: list[tuple[float, float]], which: int, target: float
) -> None:
    baseline, candidate = [b for b, _ in scores], [c for _, c in scores]
    before = judged(baseline, candidate, POINT, target, chance=0.25)
    candidate[which % len(scores)] = 1.0
    after = judged(baseline, candidate, POINT, target, chance=0.25)
    assert not (before.verdict == "PASS" and after.verdict == "FAIL")


@quick
@given(counts, st.sampled_from([1, 2]), targets)
def test_one_loss_less_never_turns_pass_into_fail_at_a_floor(table: tuple[int, ...], cell: int, target: float) -> None:
    both, lost, gained, neither = table
    better = (both + 1, lost - 1, gained, neither) if cell == 1 else (both, lost, gained + 1, neither - 1)
    if min(better) >= 0 and judged(*expanded(table), Policy(), target).verdict == "PASS":
        assert judged(*expanded(better), Policy(), target).verdict == "PASS"


@quick
@given(counts, targets)
def test_bounds_and_verdict_agree(table: tuple[int, ...], target: float) -> None:
    said = judged(*expanded(table), target=target)
    if said.lower_bound is None or said.upper_bound is None or said.retention is None:
        return
    assert said.lower_bound <= said.retention + 1e-12
    assert said.retention <= said.upper_bound + 1e-12
    if min(abs(said.lower_bound - target), abs(said.upper_bound - target)) > 1e-9:
        assert said.certified == (said.lower_bound > target)
        assert (said.verdict == "FAIL") == (said.upper_bound < target)


@quick
@given(counts, targets)
def test_the_two_policies_differ_only_where_nothing_is_shown(table: tuple[int, ...], target: float) -> None:
    certified, point = (judged(*expanded(table), policy, target) for policy in (CERTIFIED, POINT))
    assert certified.certified == point.certified
    if certified.verdict != "INCONCLUSIVE":
        assert point.verdict == certified.verdict


@quick
@given(st.floats(0.01, 100), st.integers(1, 9))
def test_only_the_proportions_of_weights_matter(factor: float, ratio: int) -> None:
    scores = {"a": expanded(SLIGHTLY_WORSE), "b": expanded(EQUAL_BUT_NOISY)}
    ours, theirs = ({name: documents(sides[i]) for name, sides in scores.items()} for i in (0, 1))
    one = judge(ours, theirs, suite(CERTIFIED, {"a": 1, "b": ratio}), TARGET)
    other = judge(ours, theirs, suite(CERTIFIED, {"a": factor, "b": ratio * factor}), TARGET)
    assert other.verdict == one.verdict
    assert other.lower_bound == pytest.approx(one.lower_bound, abs=1e-9)
