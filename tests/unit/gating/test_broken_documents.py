"""Documents that cannot be, or were scored otherwise on one side, are refused; none becomes a verdict."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.core.errors import BadInput
from pipelines.evaluation.scores import Document
from pipelines.gating.expected import expected_scores
from pipelines.gating.gate import judge
from pipelines.recipe.suite import Policy, SuiteTask
from tests.helpers.evaluations import suite

SOUND: dict[str, Any] = {"chance": 0.25, "logprobs": (-1.0, -2.0, -3.0, -4.0), "right": (0,)}


def documents(**fields: Any) -> tuple[Document, ...]:
    hashes: dict[str, Any] = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "same")
    return tuple(Document(id=i, cluster=str(i), score=1.0, **hashes, **(SOUND | fields)) for i in range(40))


@pytest.mark.parametrize(
    "fields",
    [
        {"lengths": (1, 2)},
        {"lengths": (0, 1, 2, 3)},
        {"lengths": (-1, 1, 2, 3)},
        {"right": (4,)},
        {"right": (-1,)},
        {"chance": math.nan},
        {"chance": -3.0},
    ],
)
def test_answers_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    broken = documents(**fields)
    with pytest.raises(BadInput, match="the baseline has answers whose lengths, right ones or chance cannot be"):
        judge({"a": broken}, {"a": broken}, suite(), 0.99)


@pytest.mark.parametrize(
    "fields",
    [
        {"lengths": (1, 2, 3, 4)},
        {"right": (1,)},
        {"logprobs": (-1.0, -2.0)},
        {"logprobs": (), "right": ()},
        {"times": 2},
        {"chance": 0.0},
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_both_sides_are_scored_alike(fields: dict[str, Any], swapped: bool) -> None:
    ours, theirs = documents(), documents(**fields)
    if swapped:
        ours, theirs = theirs, ours
    with pytest.raises(BadInput, match="80 documents, prompts or answers to choose from are on one side only"):
        judge({"a": ours}, {"a": theirs}, suite(), 0.99)


def test_answers_of_two_kinds_have_no_expected_score() -> None:
    chosen, written = documents(), documents(logprobs=(), right=(), times=2)
    mixed = [*chosen[:20], *written[20:]]
    assert expected_scores([(document, document) for document in mixed]) is None


@pytest.mark.parametrize("weight", [1e308, math.inf, math.nan])
def test_weights_have_a_sum(weight: float) -> None:
    with pytest.raises(ValidationError):
        SuiteTask(task="a", weight=weight)


def test_a_confidence_leaves_an_error_to_share() -> None:
    judge({"a": documents()}, {"a": documents()}, suite(Policy(confidence=0.9999)), 0.99)
    with pytest.raises(ValidationError):
        Policy(confidence=math.nextafter(1, 0))
