"""The expected score, against lm-eval's softmax, scipy, scikit-learn and sums by hand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.utils import softmax
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from pipelines.core.errors import BadInput
from pipelines.evaluation.scores import Document
from pipelines.gating.expected import TEMPERATURES, Expected, expected_scores, fit_temperature, has_expected
from pipelines.gating.gate import judge
from pipelines.recipe.suite import Policy
from tests.helpers.evaluations import documents, suite

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
EXPECTED = Policy(decide="certified", statistic="expected", floor=None)


def offered(
    logprobs: Sequence[float], right: Sequence[int], lengths: Sequence[int] = (), place: int = 0, score: float = 1.0
) -> Document:
    (one,) = documents([score])
    fields: dict[str, Any] = {"logprobs": tuple(logprobs), "right": tuple(right), "lengths": tuple(lengths)}
    return one.model_copy(update={**fields, "id": place, "cluster": str(place)})


def expected(ours: Sequence[Document], theirs: Sequence[Document] | None = None) -> Expected:
    found = expected_scores(list(zip(ours, theirs or ours, strict=True)))
    assert found is not None
    return found


def scores(ours: Sequence[Document]) -> list[float]:
    return [one.baseline for one in expected(ours).scored]


# What it is


def test_of_several_answers_it_is_the_softmax_of_lm_eval() -> None:
    random = np.random.default_rng(1)
    logprobs = random.normal(-20, 5, (50, 4))
    right = random.integers(0, 4, 50)
    found = scores([offered(line.tolist(), (int(at),)) for line, at in zip(logprobs, right, strict=True)])
    assert found == pytest.approx([softmax(line)[at] for line, at in zip(logprobs, right, strict=True)], abs=1e-12)


def test_by_hand() -> None:
    thirds = [math.log(0.2), math.log(0.1), math.log(0.1)]
    assert scores([offered(thirds, (0,)), offered(thirds, (2,))]) == pytest.approx([0.5, 0.25])


def test_of_a_single_answer_it_is_its_own_probability() -> None:
    found = scores([offered((math.log(p),), (0,)) for p in (0.9, 0.25, 1e-12, 1.0)])
    assert found == pytest.approx([0.9, 0.25, 1e-12, 1.0], rel=1e-9)


def test_of_several_right_answers_it_is_the_sum() -> None:
    logprobs = [-3.0, -1.0, -2.0, -5.0]
    assert scores([offered(logprobs, (1, 3))]) == pytest.approx([sum(softmax(np.array(logprobs))[[1, 3]])])


def test_documents_may_offer_different_numbers_of_answers() -> None:
    found = scores([offered((-1.0, -2.0), (0,)), offered((-1.0, -1.0, -1.0, -1.0, -1.0), (4,))])
    assert found == pytest.approx([1 / (1 + math.exp(-1)), 0.2])


def test_of_drawn_answers_it_is_their_mean() -> None:
    drawn = [one.model_copy(update={"times": 4}) for one in documents([0.25, 1.0, 0.5])]
    assert scores(drawn) == [0.25, 1.0, 0.5]
    assert expected(drawn).temperature is None


def test_candidate_chance_and_cluster_are_kept() -> None:
    ours = [offered((-1.0, -1.0), (0,)).model_copy(update={"chance": 0.5, "cluster": "passage"})]
    (one,) = expected(ours, [offered((-1.0, -3.0), (0,))]).scored
    assert (one.baseline, one.chance, one.cluster) == (0.5, 0.5, "passage")
    assert one.candidate == pytest.approx(1 / (1 + math.exp(-2)))


lines = st.lists(st.floats(-800, 0), min_size=1, max_size=6)


@quick
@given(lines, st.integers(0, 5), st.floats(-50, 0))
def test_it_is_a_probability_and_only_differences_of_several_answers_count(
    logprobs: list[float], at: int, shift: float
) -> None:
    right = (at % len(logprobs),)
    (found,) = scores([offered(logprobs, right)])
    assert 0 <= found <= 1
    if len(logprobs) > 1:
        (moved,) = scores([offered([value + shift for value in logprobs], right)])
        assert moved == pytest.approx(found, abs=1e-9)


@quick
@given(st.lists(st.floats(-30, 0), min_size=2, max_size=5))
def test_all_answers_together_are_certain(logprobs: list[float]) -> None:
    each = [scores([offered(logprobs, (at,))])[0] for at in range(len(logprobs))]
    assert sum(each) == pytest.approx(1, abs=1e-9)
    assert each[logprobs.index(max(logprobs))] == max(each)


# Length-normalized answers, whose softmax takes a temperature


def normalized(count: int, answers: int, seed: int, temperature: float) -> list[Document]:
    """Documents whose right answers are drawn from the softmax of their normalized log-probabilities."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 60, (count, answers))
    quotients = random.normal(-1.0, 0.15, (count, answers))
    probabilities = special.softmax(quotients / temperature, axis=1)
    right = [int(random.choice(answers, p=line)) for line in probabilities]
    lines = zip((quotients * lengths).tolist(), right, lengths.tolist(), strict=True)
    return [offered(logprobs, (at,), length, place) for place, (logprobs, at, length) in enumerate(lines)]


def quotients(ours: Sequence[Document]) -> np.ndarray:
    return np.array([np.divide(one.logprobs, one.lengths) for one in ours])


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("answers", [2, 4])
def test_the_temperature_is_that_of_an_independent_search(answers: int, temperature: float) -> None:
    ours = normalized(800, answers, 2, temperature)
    right = [one.right[0] for one in ours]

    def surprise(tried: float) -> float:
        return -float(special.log_softmax(quotients(ours) / tried, axis=1)[range(800), right].mean())

    grid = np.geomspace(*TEMPERATURES, 400)
    near = int(np.argmin([surprise(tried) for tried in grid]))
    searched = optimize.brent(surprise, brack=(grid[near - 1], grid[near], grid[near + 1]), tol=1e-10)
    assert fit_temperature(ours) == pytest.approx(searched, rel=1e-4)
    assert fit_temperature(ours) == pytest.approx(temperature, rel=0.4)


def test_of_two_answers_the_temperature_is_that_of_a_logistic_regression() -> None:
    ours = normalized(2000, 2, 3, 0.1)
    first = quotients(ours)
    fitted = LogisticRegression(C=1e8, fit_intercept=False, tol=1e-8).fit(
        (first[:, :1] - first[:, 1:]), [one.right[0] == 0 for one in ours]
    )
    assert fit_temperature(ours) == pytest.approx(1 / float(fitted.coef_[0, 0]), rel=1e-3)


def test_scores_are_the_softmax_of_quotients_at_the_temperature_of_the_baseline() -> None:
    ours, theirs = normalized(300, 4, 4, 0.1), normalized(300, 4, 5, 0.5)
    theirs = [one.model_copy(update={"right": b.right}) for one, b in zip(theirs, ours, strict=True)]
    found = expected(ours, theirs)
    assert found.temperature == fit_temperature(ours) != pytest.approx(fit_temperature(theirs), rel=0.5)
    for side, given_ in (("baseline", ours), ("candidate", theirs)):
        by_hand = special.softmax(quotients(given_) / found.temperature, axis=1)
        wanted = [by_hand[place, one.right[0]] for place, one in enumerate(ours)]
        assert [getattr(one, side) for one in found.scored] == pytest.approx(wanted, abs=1e-12)


def test_without_a_temperature_normalized_scores_would_be_flat() -> None:
    ours = normalized(500, 4, 6, 0.05)
    flat = float(special.softmax(quotients(ours), axis=1)[range(500), [one.right[0] for one in ours]].mean())
    assert flat < 0.3
    assert np.mean(scores(ours)) > 0.6


@pytest.mark.parametrize(("right", "wanted"), [(0, 1.0), (1, 0.5)])
def test_where_the_likeliest_answer_is_always_right_or_never_scores_are_certain_or_those_of_guessing(
    right: int, wanted: float
) -> None:
    ours = [offered((-5.0 - place / 10, -9.0), (right,), (5, 5), place) for place in range(20)]
    assert TEMPERATURES[0] < fit_temperature(ours) < TEMPERATURES[1]
    assert scores(ours) == pytest.approx([wanted] * 20, abs=1e-3)


# Tasks that have none


def test_a_document_without_answers_offered_or_drawn_has_none() -> None:
    (written,) = documents([1.0])
    assert not has_expected(written)
    assert not has_expected(offered((-1.0, -2.0), ())), "its own code decides what is right"
    assert has_expected(offered((-1.0,), (0,)))
    assert has_expected(written.model_copy(update={"times": 2}))
    one = offered((-1.0, -2.0), (0,))
    assert expected_scores([(one, one), (written, written)]) is None
    assert expected_scores([(one, one), (one, written)]) is None


def sides(with_none: Sequence[str], names: Sequence[str]) -> dict[str, tuple[Document, ...]]:
    random = np.random.default_rng(7)
    offers = {
        name: tuple(offered(line, (0,), (), place) for place, line in enumerate(random.normal(-2, 1, (40, 2)).tolist()))
        for name in names
    }
    return offers | {name: documents([1.0] * 40) for name in with_none}


def test_a_policy_that_asks_for_it_is_refused_with_every_task_that_has_none() -> None:
    given_ = sides(("b", "c"), ("a", "b", "c"))
    with pytest.raises(BadInput) as refused:
        judge(given_, given_, suite(EXPECTED, dict.fromkeys(given_, 1.0)), 0.99)
    told = str(refused.value)
    assert "task b: has no expected score" in told and "task c: has no expected score" in told
    assert "task a" not in told
    assert "set policy.statistic to accuracy" in told and "temperature, seeds" in told


def test_a_policy_that_asks_for_accuracy_says_none_where_a_task_has_none() -> None:
    given_ = sides(("b",), ("a", "b"))
    accuracy = EXPECTED.model_copy(update={"statistic": "accuracy"})
    verdict = judge(given_, given_, suite(accuracy, dict.fromkeys(given_, 1.0)), 0.99)
    assert verdict.expected is None
    assert verdict.accuracy is not None and verdict.accuracy.retention == 1.0
    assert {task.task for task in verdict.tasks if task.expected} == {"a"}


def test_both_are_told_of_the_suite_and_of_each_task() -> None:
    ours = sides((), ("a", "b"))
    theirs = {
        name: tuple(one.model_copy(update={"logprobs": (one.logprobs[0] - 0.2, one.logprobs[1])}) for one in documents_)
        for name, documents_ in ours.items()
    }
    verdict = judge(ours, theirs, suite(EXPECTED, {"a": 1.0, "b": 3.0}), 0.99)
    assert verdict.accuracy is not None and verdict.expected is not None
    assert verdict.statistic == "expected"
    assert (verdict.retention, verdict.lower_bound) == (verdict.expected.retention, verdict.expected.lower_bound)
    for name, share in (("a", 0.25), ("b", 0.75)):
        (task,) = (task for task in verdict.tasks if task.task == name)
        assert task.weight == share and task.expected is not None
        assert task.expected.baseline == pytest.approx(np.mean(scores(ours[name])))
        assert task.expected.candidate == pytest.approx(np.mean(scores(theirs[name])))
    means = [np.mean(scores(side["a"])) + 3 * np.mean(scores(side["b"])) for side in (ours, theirs)]
    assert verdict.expected.baseline == pytest.approx(means[0] / 4)
    assert verdict.expected.retention == pytest.approx(means[1] / means[0])
    assert verdict.expected.retention is not None and verdict.expected.retention < 1 == verdict.accuracy.retention
