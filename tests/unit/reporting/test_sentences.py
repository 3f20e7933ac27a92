"""What card, report and console say of a verdict, in one sentence."""

import math

import pytest

from pipelines.evaluation.scores import Document
from pipelines.gating.gate import judge
from pipelines.gating.verdict import Verdict
from pipelines.recipe.suite import Policy, ScoreKind
from pipelines.reporting.sentences import kept_words, no_expected_line, tasks_below_line, verdict_line
from pipelines.reporting.task_table import task_rows
from tests.helpers.evaluations import documents, suite
from tests.helpers.records import kept


def answered(probability: float, wrong: int = 0) -> tuple[Document, ...]:
    """A thousand documents with a single answer of this probability, of which the first are `wrong`."""
    scored = documents([0.0] * wrong + [1.0] * (1000 - wrong))
    return tuple(one.model_copy(update={"logprobs": (math.log(probability),), "right": (0,)}) for one in scored)


def verdict(statistic: ScoreKind, probability: float, wrong: int = 0) -> Verdict:
    policy = Policy(statistic=statistic, floor=None)
    return judge({"a": answered(0.5)}, {"a": answered(probability, wrong)}, suite(policy), 0.95)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            verdict("expected", 0.5),
            "PASS, certified on the expected score and on accuracy: 100.00% of the expected score kept, "
            "at least 99.70%; 100.00% of accuracy kept, at least 99.70% (bounds at 95%, target 95.00%).",
        ),
        (
            verdict("accuracy", 0.45),
            "FAIL: 100.00% of accuracy kept, at least 99.70%; 90.00% of the expected score kept, at least 89.70% "
            "(bounds at 95%, target 95.00%).",
        ),
    ],
)
def test_both_statistics_are_named_with_their_bounds(said: Verdict, line: str) -> None:
    assert verdict_line(said) == line


def test_a_task_that_alone_is_below_the_target_is_named() -> None:
    assert tasks_below_line(verdict("accuracy", 0.45)) == (
        "by itself shown to be below the target: a (90.00% of the expected score)"
    )
    assert tasks_below_line(verdict("expected", 0.5)) == ""


def test_at_a_look_the_confidence_over_all_of_them_is_told() -> None:
    policy = Policy(statistic="expected", floor=None)
    scored = {"a": answered(0.5)}
    said = judge(scored, scored, suite(policy), 0.95, confidence=0.99)
    assert verdict_line(said).endswith("(bounds at 99%, which is 95% over all looks; target 95.00%).")


def test_what_is_kept_so_far_is_said_of_both() -> None:
    said = kept_words(verdict("accuracy", 0.45))
    assert said == "100.00% (99.7% … 100.3%) of accuracy and 90.00% (89.7% … 90.3%) of the expected score kept"


def test_a_pass_names_accuracy_only_where_that_is_shown() -> None:
    assert verdict_line(verdict("expected", 0.5, 48)).startswith(
        "PASS, certified on the expected score: 100.00% of the expected score kept, at least 99.70%; 95.20% of accuracy"
    )
    assert verdict_line(verdict("accuracy", 0.4755)).startswith("PASS, certified on accuracy: 100.00% of accuracy")


def test_a_suite_with_a_task_that_has_no_expected_score_says_so() -> None:
    given = {"drawn": answered(0.5), "written": documents([1.0, 0.0] * 500)}
    said = judge(given, given, suite(Policy(), {"drawn": 1.0, "written": 1.0}), 0.95)
    assert no_expected_line(said) == "no expected score of written"
    assert "; no expected score of written (" in verdict_line(said)
    assert said.expected is None and said.tasks[0].expected is not None
    assert [(row.task.task, row.name) for row in task_rows(said)] == [
        ("drawn", "accuracy"), ("drawn", "expected score"), ("written", "accuracy")
    ]  # fmt: skip


def test_without_a_retention_there_is_none_to_tell() -> None:
    said = judge({"a": answered(0.5)}, {}, suite(), 0.95)
    assert verdict_line(said) == "FAIL: no retention measured (bounds at 95%, target 95.00%)."


def test_a_bound_that_the_data_does_not_give_is_left_out() -> None:
    update = {"accuracy": kept(0.97), "expected": kept(0.96, 0.9)}
    line = verdict_line(verdict("accuracy", 0.5, 100).model_copy(update=update))
    assert line.startswith("FAIL: 97.00% of accuracy kept; 96.00% of the expected score kept, at least 90.00% (")
