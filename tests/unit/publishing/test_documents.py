"""The table of documents: what both statistics need comes back, and a proof of version 1 is judged as it was."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.core.cache import file_digest
from pipelines.core.errors import BadInput
from pipelines.evaluation.scores import Document, Evaluation, Scores
from pipelines.gating.gate import judge
from pipelines.publishing.documents import judge_again, read_documents, write_documents
from pipelines.publishing.statement import PROVENANCE, contradictions
from pipelines.recipe.suite import Policy
from pipelines.reporting.record import RECORD, Manifest
from pipelines.reporting.sentences import verdict_line
from tests.helpers.evaluations import documents, suite

OLD = Path(__file__).parent / "data" / "version-1"
"""Record, documents and statement of what version 1 published: a small model, 48 documents, of which none changed."""


class Answered(Evaluation):
    """An evaluation whose documents are given."""

    given: dict[str, tuple[Document, ...]]

    def scores(self) -> Scores:
        return self.given


def offered(seed: int, loss: float = 0.0) -> tuple[Document, ...]:
    """Documents with four answers each, by a metric that divides by lengths."""
    random = np.random.default_rng(seed)
    found = []
    for document in documents([0.0] * 200, chance=0.25):
        lengths, right = random.integers(4, 30, 4), int(random.integers(4))
        logprobs = -lengths * random.uniform(1, 2, 4)
        logprobs[right] *= 0.7 + loss
        best = int(np.argmax(logprobs / lengths))
        update = {"logprobs": tuple(map(float, logprobs)), "lengths": tuple(map(int, lengths)), "right": (right,)}
        found.append(document.model_copy(update={**update, "score": float(best == right)}))
    return tuple(found)


def drawn(score: float) -> tuple[Document, ...]:
    """Documents whose answers were written four times."""
    return tuple(one.model_copy(update={"times": 4}) for one in documents([score, 1.0] * 50))


def evaluation(**given: tuple[Document, ...]) -> Answered:
    about: dict[str, Any] = {"model": "m", "model_digest": "0", "runtime": "r", "device": "cpu", "dtype": None}
    return Answered(suite=suite(weights=dict.fromkeys(given, 1.0)), tasks=(), given=given, **about)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    once = tuple(one.model_copy(update={"margin": 0.25}) for one in documents([1.0, 0.0, 1.0]))
    sides = [evaluation(a=offered(1, loss), b=drawn(0.25 + loss), c=once) for loss in (0.0, 0.05)]
    write_documents(sides[0], sides[1], tmp_path / "documents.parquet")
    assert read_documents(tmp_path / "documents.parquet") == (sides[0].given, sides[1].given)


def test_both_statistics_are_given_again(tmp_path: Path) -> None:
    sides = [evaluation(a=offered(1, loss), b=drawn(0.25 + loss)) for loss in (0.0, 0.05)]
    write_documents(sides[0], sides[1], tmp_path / "documents.parquet")
    asked = suite(Policy(statistic="expected"), {"a": 1.0, "b": 1.0})
    ours, theirs = read_documents(tmp_path / "documents.parquet")
    before, after = judge(sides[0].given, sides[1].given, asked, 0.9), judge(ours, theirs, asked, 0.9)
    assert before == after
    assert after.accuracy and after.expected and after.accuracy != after.expected
    assert (after.retention, after.statistic) == (after.expected.retention, "expected")
    assert after.tasks[0].temperature and after.tasks[1].temperature is None


def test_a_proof_of_version_1_is_judged_by_its_own_rules() -> None:
    """By the accuracy alone, with all of α for it."""
    manifest = Manifest.model_validate_json((OLD / RECORD).read_text(encoding="utf-8"))
    assert (manifest.schema_version, manifest.gate.statistic, manifest.gate.accuracy) == (1, "accuracy", None)
    assert judge_again(manifest, OLD / "documents.parquet") == []
    statement = json.loads((OLD / PROVENANCE).read_text(encoding="utf-8"))
    files = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    assert all(files[name] == file_digest(OLD / name) for name in (RECORD, "documents.parquet"))
    assert contradictions(statement, manifest, files) == []
    assert verdict_line(manifest.gate) == (
        "PASS, not certified: 100.00% of accuracy kept, at least 53.12%; no expected score "
        "(bounds at 95.5%, which is 95% over all looks; target 95.00%)."
    )


@pytest.mark.parametrize("field", ["retention", "lower_bound", "upper_bound", "reasons", "certified", "tasks"])
def test_a_record_of_version_1_that_was_bettered_is_found(field: str) -> None:
    record = json.loads((OLD / RECORD).read_text(encoding="utf-8"))
    better = {"reasons": ["it is good"], "certified": True, "tasks": [{**record["gate"]["tasks"][0], "lost": 1}]}
    record["gate"][field] = better.get(field, 1.5)
    found = judge_again(Manifest.model_validate_json(json.dumps(record)), OLD / "documents.parquet")
    assert found == [f"the verdict's {field} is not what documents.parquet gives"]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_log_probabilities_that_are_no_numbers_are_kept_and_fail(value: float) -> None:
    sound = offered(1)
    broken = (sound[0].model_copy(update={"logprobs": (value, *sound[0].logprobs[1:])}), *sound[1:])
    again = Document.model_validate_json(broken[0].model_dump_json())
    assert np.array_equal(again.logprobs, broken[0].logprobs, equal_nan=True)
    said = judge({"a": sound}, {"a": broken}, suite(), 0.99)
    assert said.reasons == ("the artifact has scores that are not numbers on task a",)
    with pytest.raises(BadInput, match="the baseline has log-probabilities that are not numbers"):
        judge({"a": broken}, {"a": sound}, suite(), 0.99)
