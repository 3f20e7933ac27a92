"""The scores that a verdict rests on, document by document, as one compressed table: whoever has it can judge again."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.core.errors import QuantgateError
from pipelines.evaluation.scores import Document, Evaluation, Scores
from pipelines.gating.gate import judge
from pipelines.gating.measures import OF_TEXT
from pipelines.reporting.record import Manifest

DOCUMENTS = "documents.parquet"
SAME = ("doc_hash", "prompt_hash", "target_hash", "cluster", "chance")
"""Fields that are one document's own; score and margin are the model's."""
SIDES = ("baseline", "artifact")
JUDGED = (
    "verdict", "certified", "retention", "lower_bound", "upper_bound", "reasons", "tasks", "measures", "more_documents"
)  # fmt: skip
"""Fields of a verdict that judging again must give again."""


def write_documents(baseline: Evaluation, candidate: Evaluation, path: Path) -> None:
    """Write the documents that both answered: a row for each task and place in its split, zstd-compressed Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    ours, theirs = baseline.scores(), candidate.scores()
    rows = [row for task in sorted(theirs) for row in _rows(task, ours.get(task, ()), theirs[task])]
    schema = pa.schema(
        [("task", pa.string()), ("id", pa.int64())]
        + [(name, pa.float64() if name == "chance" else pa.string()) for name in SAME]
        + [(f"{side}_{what}", pa.float64()) for side in SIDES for what in ("score", "margin")]
    )
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _rows(task: str, ours: tuple[Document, ...], theirs: tuple[Document, ...]) -> list[dict[str, Any]]:
    known = {document.id: document for document in ours}
    rows = []
    for document in theirs:
        row = {"task": task, "id": document.id, **{name: getattr(document, name) for name in SAME}}
        for side, answered in zip(SIDES, (known.get(document.id), document), strict=True):
            row[f"{side}_score"] = answered.score if answered else None
            row[f"{side}_margin"] = answered.margin if answered else None
        rows.append(row)
    return rows


def read_documents(path: Path) -> tuple[Scores, Scores]:
    """Return the scores of baseline and artifact from the table in `path`, as they were judged."""
    from pyarrow import parquet

    sides: tuple[dict[str, list[Document]], dict[str, list[Document]]] = ({}, {})
    for row in parquet.read_table(path).to_pylist():
        for scores, side in zip(sides, SIDES, strict=True):
            own = {what: row[f"{side}_{what}"] for what in ("score", "margin")}
            if own["score"] is not None:
                document = Document(id=row["id"], **{name: row[name] for name in SAME}, **own)
                scores.setdefault(row["task"], []).append(document)
    baseline, artifact = ({task: tuple(found) for task, found in scores.items()} for scores in sides)
    return baseline, artifact


def judge_again(manifest: Manifest, path: Path) -> list[str]:
    """Return sentences on the differences between the recorded verdict and the one that the documents in `path` give;
    none, if it is theirs."""
    try:
        baseline, artifact = read_documents(path)
        suite, gate = manifest.evaluation.suite, manifest.gate
        measured = {measure.name for measure in gate.measures}  # a gate by itself knows no distance
        distance = manifest.verification.distance if measured & {*OF_TEXT} else None
        verdict = judge(baseline, artifact, suite, gate.target, distance, gate.confidence)
    except (QuantgateError, OSError, ValueError, KeyError, TypeError) as error:
        return [f"{DOCUMENTS} cannot be judged: {error}"]
    return [
        f"the verdict's {name} is not what {DOCUMENTS} gives"
        for name in JUDGED
        if not _alike(_plain(getattr(gate, name)), _plain(getattr(verdict, name)))
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.model_dump() if hasattr(value, "model_dump") else value


def _alike(one: Any, other: Any) -> bool:
    """Tell whether two values are equal; floats to 1e-9: another processor may add in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-9 or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
