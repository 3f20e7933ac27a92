"""What a suite can see, against evaluations that are drawn document by document and looked at as they grow."""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from scipy import special

from pipelines.evaluation.looks import LOOKS, documents_at_look
from pipelines.evaluation.scores import Document
from pipelines.formats.description import Changes
from pipelines.gating.decision import sides
from pipelines.gating.power import (
    LARGEST,
    TYPICAL_HEADROOM,
    Headroom,
    PowerAnalysis,
    Sight,
    analyze_power,
    analyze_recipe_power,
    headroom_of,
    typical_changes,
)
from pipelines.gating.spending import look_confidence
from pipelines.gating.statistic import Statistic
from pipelines.recipe.library import names
from pipelines.recipe.load import load_recipe, load_suite
from pipelines.recipe.suite import Policy, ScoreKind, Suite, SuiteTask
from tests.helpers.evaluations import CERTIFIED, TARGET, Floats, documents, suite
from tests.helpers.paths import ROOT

RUNS = 1000
CHANGES = Changes(discordance=0.04, deviation=0.05)
UNSEEN = 0.25
HEADROOM = Headroom(accuracy=0.6, expected=0.25, unseen={"a": UNSEEN})


class Shown(NamedTuple):
    """How often the drawn evaluations showed what, and after how many documents."""

    certified: float
    refused: float
    median: float


def changes_of_answers(random: np.random.Generator, size: tuple[int, int]) -> Floats:
    """-1, 0 or 1, as often as answers change."""
    half = CHANGES.discordance / 2
    return random.choice([-1.0, 0.0, 1.0], size, p=[half, 1 - 2 * half, half])


def changes_of_probabilities(random: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Long-tailed: the third moment of their sizes over the second is 3.6 standard deviations."""
    tail = random.exponential(size=size) ** 1.5 * random.choice([-1.0, 1.0], size)
    scaled: Floats = tail * CHANGES.deviation / math.sqrt(math.gamma(4))
    return scaled


def test_the_tail_of_the_drawn_changes_is_the_one_that_is_assumed() -> None:
    assert math.gamma(5.5) / math.gamma(4) ** 1.5 == pytest.approx(LARGEST, abs=0.1)


def drawn(kind: ScoreKind, count: int, retention: float, policy: Policy) -> Shown:
    """What the gate's own rule says of `RUNS` evaluations of one task, whose true retention is `retention`."""
    random, size = np.random.default_rng(5), (RUNS, count)
    changes = changes_of_probabilities(random, size) if kind == "expected" else changes_of_answers(random, size)
    headroom = HEADROOM.expected if kind == "expected" else HEADROOM.accuracy
    assert headroom is not None
    changes += headroom * (retention - 1)
    ends = [documents_at_look(look, count) for look in range(len(LOOKS))]
    said = [_said(kind, headroom, changes[:, :end], policy, look) for look, end in enumerate(ends)]
    runs = zip(*said, strict=True)
    first = [next(((side, end) for side, end in zip(run, ends, strict=True) if side), (None, 0)) for run in runs]
    took = [end if side == "above" else math.inf for side, end in first]
    return Shown(
        certified=sum(side == "above" for side, _ in first) / RUNS,
        refused=sum(side == "below" for side, _ in first) / RUNS,
        median=float(np.median(took)),
    )


def _said(kind: ScoreKind, headroom: float, changes: Floats, policy: Policy, look: int) -> list[str | None]:
    """Side of the target that each run (row) is shown to be on at a look; the other statistic shows nothing."""
    count = changes.shape[1]
    policy = policy.model_copy(update={"confidence": look_confidence(look, policy.confidence)})
    sizes = [_size(np.minimum(changes, 0)), _size(np.maximum(changes, 0))]
    if kind == "accuracy":
        sizes = [np.ones(RUNS), np.ones(RUNS)]
    unseen = UNSEEN if kind == "expected" else 1.0
    silent = _statistic(0.5, 0.5, 1.0, 1.0, 1.0, 1.0)
    other: ScoreKind = "accuracy" if kind == "expected" else "expected"
    rows = zip(changes.mean(axis=1), changes.var(axis=1) / (count - 1), *sizes, strict=True)
    return [
        sides(
            {kind: _statistic(headroom, headroom + mean, variance, loss / count, gain / count, unseen / count)}
            | {other: silent},
            policy,
            TARGET,
        )[kind]
        for mean, variance, loss, gain in rows
    ]


def _size(changes: Floats) -> Floats:
    largest: Floats = (np.abs(changes) ** 3).sum(axis=1) / np.maximum((changes**2).sum(axis=1), 1e-12)
    return largest


def _statistic(
    baseline: float, candidate: float, variance: float, loss: float, gain: float, unseen: float
) -> Statistic:
    return Statistic(
        baseline=baseline,
        candidate=float(candidate),
        baseline_variance=0.0,
        covariance=0.0,
        candidate_variance=float(variance),
        leverage=unseen,
        loss=float(loss),
        gain=float(gain),
        unseen=unseen,
    )


@cache
def foreseen(kind: ScoreKind, count: int, statistic: ScoreKind) -> Sight:
    policy = CERTIFIED.model_copy(update={"statistic": statistic})
    seen = analyze_power({"a": count}, suite(policy), TARGET, CHANGES, HEADROOM)
    sight = seen.expected if kind == "expected" else seen.accuracy
    assert sight is not None
    return sight


CASES: list[tuple[ScoreKind, int, ScoreKind]] = [
    ("expected", 4000, "expected"),
    ("expected", 1000, "accuracy"),
    ("accuracy", 8000, "accuracy"),
    ("accuracy", 2000, "expected"),
]


@pytest.mark.parametrize(("kind", "count", "statistic"), CASES)
def test_sight_is_right_eight_times_in_ten(kind: ScoreKind, count: int, statistic: ScoreKind) -> None:
    seen, policy = foreseen(kind, count, statistic), CERTIFIED.model_copy(update={"statistic": statistic})
    assert 0.76 < drawn(kind, count, seen.certifies_above, policy).certified < 0.84
    assert 0.76 < drawn(kind, count, seen.fails_below, policy).refused < 0.84


@pytest.mark.parametrize(("kind", "count"), [("expected", 4000), ("accuracy", 8000)])
def test_an_equal_artifact_is_certified_as_often_and_as_early_as_sight_says(kind: ScoreKind, count: int) -> None:
    seen, policy = foreseen(kind, count, kind), CERTIFIED.model_copy(update={"statistic": kind})
    here = drawn(kind, count, 1.0, policy)
    assert here.certified == pytest.approx(seen.certifies_equal, abs=0.04)
    assert here.median == (seen.median_documents or math.inf)
    assert seen.documents_to_certify is not None
    assert 0.76 < drawn(kind, seen.documents_to_certify, 1.0, policy).certified < 0.84


def test_the_statistic_that_is_asked_for_refuses_sooner() -> None:
    chosen, other = (foreseen("expected", 4000, statistic) for statistic in ("expected", "accuracy"))
    assert chosen.fails_below > other.fails_below
    assert chosen.certifies_equal <= other.certifies_equal, "what is refused first is not certified"


def test_a_task_whose_scores_hardly_move_needs_few_documents() -> None:
    """As HellaSwag, by its task's file: the same documents show more with it than with a task that is like others."""
    steady, usual = (
        analyze_power({"a": 3000, name: 200}, suite(CERTIFIED, {"a": 1.0, name: 1.0}), TARGET, CHANGES).expected
        for name in ("hellaswag", "arc_easy")
    )
    assert steady is not None and usual is not None
    assert steady.fails_below > usual.fails_below + 0.005


def test_nothing_certifies_an_equal_artifact_at_a_target_of_100_percent() -> None:
    seen = analyze_power({"a": 5000}, suite(), 1.0, CHANGES)
    for sight in filter(None, (seen.accuracy, seen.expected)):
        assert (sight.documents_to_certify, sight.median_documents) == (None, None)
        assert sight.certifies_equal < 0.05


def offered(logprobs: Sequence[Sequence[float]], right: Sequence[int], chance: float, seeds: int = 1) -> list[Document]:
    scores = [float(np.argmax(line) == place) for line, place in zip(logprobs, right, strict=True)]
    return [
        document.model_copy(update={"logprobs": tuple(line), "right": (place,), "times": seeds})
        for document, line, place in zip(documents(scores, chance), logprobs, right, strict=True)
    ]


def test_the_headroom_is_the_baseline_s_own() -> None:
    random = np.random.default_rng(2)
    lines = random.normal(-10, 2, (300, 4)) + np.array([2.0, 0.0, 0.0, 0.0])
    task = offered(lines.tolist(), [0] * 300, 0.25)
    above = special.softmax(lines, axis=1)[:, 0] - 0.25
    seen = headroom_of({"a": tuple(task)}, suite())
    assert seen.accuracy == pytest.approx((lines.argmax(axis=1) == 0).mean() - 0.25)
    assert seen.expected == pytest.approx(above.mean())
    unseen = above.mean() * (above.clip(0) ** 2).mean() / above.clip(0).mean() ** 2
    assert seen.unseen is not None and seen.unseen["a"] == pytest.approx(unseen)
    assert headroom_of({"a": tuple(task[:1])}, suite()) == TYPICAL_HEADROOM


def test_answers_that_are_written_once_have_no_expected_score() -> None:
    assert headroom_of({"a": documents([0.0, 1.0, 1.0])}, suite()).expected is None
    written, drawn_often = SuiteTask(task="gsm8k_cot"), SuiteTask(task="gsm8k_cot", temperature=0.7, seeds=4)
    for task, has in ((written, False), (drawn_often, True), (SuiteTask(task="sciq"), True)):
        own = Suite(version=1, name="own", summary="", tasks=(task,))
        seen = analyze_recipe_power(load_recipe("fp8"), own, CHANGES)
        assert seen is not None and (seen.expected is not None) == has
        assert ("the expected score" in seen.sentence("own")) == has


def test_both_statistics_are_told_the_one_that_is_asked_for_first() -> None:
    smoke = load_suite("smoke")
    for statistic, order in (
        ("expected", r"on the expected score.*; on accuracy"),
        ("accuracy", r"on accuracy.*; on the"),
    ):
        own = smoke.model_copy(update={"policy": smoke.policy.model_copy(update={"statistic": statistic})})
        seen = analyze_recipe_power(load_recipe("int8-weight-only"), own, typical_changes("W8A16"))
        assert seen is not None and seen.expected is not None
        told = seen.sentence("smoke")
        assert re.search(rf"suite smoke, {seen.documents} documents, {order}", told)
        assert f"in the median after {seen.expected.median_documents} documents" in told
        assert f"(80% on {seen.accuracy.documents_to_certify} documents)" in told


def test_every_recipe_has_what_is_typical_of_it() -> None:
    for name in names("recipe"):
        typical = typical_changes(load_recipe(name).loss_class)
        assert 0 < typical.discordance < 1 and 0 < typical.deviation < 1 and typical.runs == 0


def test_the_table_in_the_documentation_is_what_sight_says() -> None:
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    section = page.split("## What a suite can see\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\d,]+) \|(.*)\|$", section, re.MULTILINE)
    assert len(rows) >= 4
    policy = CERTIFIED.model_copy(update={"statistic": "expected"})
    for size, cells in rows:
        seen = analyze_power({"a": int(size.replace(",", ""))}, suite(policy), TARGET, typical_changes("FP8_DYNAMIC"))
        assert [cell.strip() for cell in cells.split("|")] == table_cells(seen)


def table_cells(seen: PowerAnalysis) -> list[str]:
    assert seen.expected is not None
    shares = [
        f"{value:{form}}"
        for sight in (seen.expected, seen.accuracy)
        for value, form in ((sight.fails_below, ".1%"), (sight.certifies_above, ".1%"), (sight.certifies_equal, ".0%"))
    ]
    median = seen.expected.median_documents
    return [*shares[:3], f"{median:,}" if median else "–", *shares[3:]]
