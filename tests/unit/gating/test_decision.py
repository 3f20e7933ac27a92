"""The decision over two statistics: which of them must be shown, which refuses, and how often a refusal is wrong."""

from typing import Literal

import numpy as np
import pytest
from scipy import stats

from pipelines.gating.decision import AT_CHANCE, decide, sides
from pipelines.gating.statistic import Statistic
from pipelines.gating.verdict import Decision
from pipelines.recipe.suite import Policy, ScoreKind
from tests.helpers.evaluations import ALPHA, TARGET, within_alpha

TINY = 1e-9


def kept(retention: float, error: float, baseline: float = 0.5) -> Statistic:
    """What so many documents show that nothing is left unseen: a retention, and its standard error."""
    return Statistic(
        baseline=baseline,
        candidate=retention * baseline,
        baseline_variance=0.0,
        covariance=0.0,
        candidate_variance=(error * baseline) ** 2,
        leverage=TINY,
        loss=TINY,
        gain=TINY,
        unseen=TINY,
    )


ABOVE, NEITHER, BELOW = kept(1.0, 0.002), kept(0.995, 0.02), kept(0.97, 0.002)


def decided(
    expected: Statistic | None,
    accuracy: Statistic,
    statistic: ScoreKind = "expected",
    decide_: Literal["point", "certified"] = "certified",
) -> Decision:
    overall: dict[ScoreKind, Statistic] = {"accuracy": accuracy}
    if expected:
        overall["expected"] = expected
    return decide(overall, (), (), Policy(decide=decide_, statistic=statistic, floor=None), TARGET, 1000)


@pytest.mark.parametrize(
    ("expected", "accuracy", "statistic", "verdict", "on"),
    [
        (ABOVE, NEITHER, "expected", "PASS", "above 99.00% on the expected score ("),
        (ABOVE, ABOVE, "expected", "PASS", "above 99.00% on the expected score and on accuracy ("),
        (ABOVE, BELOW, "expected", "FAIL", "below 99.00% on accuracy ("),
        (BELOW, ABOVE, "expected", "FAIL", "below 99.00% on the expected score ("),
        (BELOW, BELOW, "expected", "FAIL", "below 99.00% on the expected score and on accuracy ("),
        (NEITHER, BELOW, "expected", "FAIL", "below 99.00% on accuracy ("),
        (NEITHER, ABOVE, "expected", "INCONCLUSIVE", ""),
        (NEITHER, NEITHER, "expected", "INCONCLUSIVE", ""),
        (NEITHER, ABOVE, "accuracy", "PASS", "above 99.00% on accuracy ("),
        (ABOVE, NEITHER, "accuracy", "INCONCLUSIVE", ""),
        (BELOW, ABOVE, "accuracy", "FAIL", "below 99.00% on the expected score ("),
        (None, ABOVE, "accuracy", "PASS", "above 99.00% ("),
        (None, BELOW, "accuracy", "FAIL", "below 99.00% ("),
        (None, NEITHER, "accuracy", "INCONCLUSIVE", ""),
    ],
)
@pytest.mark.parametrize("decide_", ["certified", "point"])
def test_either_refuses_and_the_chosen_one_must_be_shown(
    expected: Statistic | None,
    accuracy: Statistic,
    statistic: ScoreKind,
    verdict: str,
    on: str,
    decide_: Literal["point", "certified"],
) -> None:
    said = decided(expected, accuracy, statistic, decide_)
    if verdict == "INCONCLUSIVE":
        assert not said.shown
        assert said.more is not None and said.more > 0
        assert said.verdict == "INCONCLUSIVE" or decide_ == "point"
    else:
        assert (said.verdict, said.shown, said.more) == (verdict, True, None)
        assert len(said.reasons) == 1
        assert on in said.reasons[0] and said.reasons[0].endswith("(95% confidence)")


@pytest.mark.parametrize(
    ("expected", "accuracy", "verdict", "named"),
    [
        (kept(0.993, 0.01), kept(0.97, 0.04), "PASS", "the expected score"),
        (kept(0.985, 0.01), kept(1.01, 0.04), "FAIL", "the expected score"),
        (kept(0.993, 0.04), kept(0.985, 0.01), "FAIL", "accuracy"),
        (kept(0.985, 0.04), kept(0.993, 0.01), "PASS", "accuracy"),
        (kept(TARGET, 0.01), kept(0.9, 0.2), "PASS", "the expected score"),
    ],
)
@pytest.mark.parametrize("statistic", ["expected", "accuracy"])
def test_where_nothing_is_shown_the_estimate_with_the_smaller_error_rules(
    expected: Statistic, accuracy: Statistic, verdict: str, named: str, statistic: ScoreKind
) -> None:
    said = decided(expected, accuracy, statistic, "point")
    assert (said.verdict, said.shown) == (verdict, False)
    assert f"the point estimate of {named} is" in said.reasons[0]
    assert decided(expected, accuracy, statistic, "certified").verdict == "INCONCLUSIVE"


def test_errors_are_those_of_the_retention_and_not_of_the_mean() -> None:
    """A statistic far above chance has the larger error of the mean, and the smaller one of the retention."""
    said = decided(kept(0.993, 0.01, baseline=0.8), kept(0.985, 0.02, baseline=0.1), "expected", "point")
    assert said.verdict == "PASS"


def test_a_baseline_at_chance_is_not_judged_by_the_chosen_statistic_and_ignored_by_the_other() -> None:
    nothing = kept(1.0, 0.002).model_copy(update={"baseline": 0.01, "baseline_variance": 1.0})
    assert decided(nothing, ABOVE).reasons == decided(nothing, BELOW).reasons == (AT_CHANCE,)
    assert decided(ABOVE, nothing).verdict == "PASS"


@pytest.mark.parametrize(
    ("kind", "statistics", "share"),
    [("expected", 2, 0.774), ("accuracy", 2, 0.157), ("accuracy", 1, 1.0)],
)
def test_two_statistics_split_the_error_of_a_refusal_and_one_keeps_all_of_it(
    kind: ScoreKind, statistics: int, share: float
) -> None:
    """Each begins to refuse at its level; the expected score is the one that must be shown."""
    for factor, said in ((0.95, "below"), (1.05, None)):
        deviations = float(stats.norm.isf(share * ALPHA * factor))
        overall: dict[ScoreKind, Statistic] = {"accuracy": NEITHER}
        if statistics == 2:
            overall["expected"] = NEITHER
        overall[kind] = kept(TARGET - deviations * 0.001, 0.001)
        policy = Policy(statistic="expected" if statistics == 2 else "accuracy")
        assert sides(overall, policy, TARGET)[kind] == said


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.5, 0.9, 1.0])
def test_a_refusal_is_wrong_in_at_most_one_run_in_twenty_however_the_statistics_depend(correlation: float) -> None:
    """Both exactly at the target: every FAIL is an error, and so is every certified PASS."""
    times = 4000
    covariance = [[1.0, correlation], [correlation, 1.0]]
    drawn = np.random.default_rng(1).multivariate_normal([0, 0], covariance, times, method="svd")
    said = [decided(kept(TARGET + 0.004 * e, 0.004), kept(TARGET + 0.01 * a, 0.01)) for e, a in drawn.tolist()]
    failed = sum(one.verdict == "FAIL" for one in said) / times
    certified = sum(one.verdict == "PASS" for one in said) / times
    assert within_alpha(failed, times)
    assert within_alpha(certified, times)
    assert failed > 0.03, "nor is it held by hardly refusing at all"
