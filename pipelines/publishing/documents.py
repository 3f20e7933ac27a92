"""The scores that a verdict rests on, document by document, as one compressed table: whoever has it can judge again."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import QuantgateError
from pipelines.evaluation.scores import Document, Evaluation, Scores
from pipelines.gating.gate import judge
from pipelines.gating.measures import OF_TEXT
from pipelines.reporting.record import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENTS = "documents.parquet"
SIDES = ("baseline", "artifact")
JUDGED = (
    "verdict", "certified", "retention", "lower_bound", "upper_bound", "reasons", "tasks", "measures", "more_documents"
)  # fmt: skip
"""Fields of a verdict that judging again must give again."""
JUDGED_BY_BOTH = (*JUDGED, "statistic", "accuracy", "expected")
"""The same of records since version 2."""


def _columns() -> "tuple[dict[str, pa.DataType], dict[str, pa.DataType]]":
    """Return the columns, by the fields of a `Document`: those that are the document's own, and those of each side.

    Tables of records of version 1 have no `lengths`, `right`, `times` and `logprobs`: they are judged by the accuracy.
    """
    import pyarrow as pa

    own = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash", "cluster"), pa.string())
    own |= {"chance": pa.float64(), "lengths": pa.list_(pa.int64()), "right": pa.list_(pa.int64()), "times": pa.int64()}
    return own, {"score": pa.float64(), "margin": pa.float64(), "logprobs": pa.list_(pa.float64())}


def write_documents(baseline: Evaluation, candidate: Evaluation, path: Path) -> None:
    """Write the documents that both answered: a row for each task and place in its split, zstd-compressed Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    ours, theirs = baseline.scores(), candidate.scores()
    rows = [row for task in sorted(theirs) for row in _rows(task, ours.get(task, ()), theirs[task])]
    own, answered = _columns()
    columns = {"task": pa.string(), "id": pa.int64(), **own}
    columns |= {f"{side}_{name}": kind for side in SIDES for name, kind in answered.items()}
    parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns.items())), path, compression="zstd")


def _rows(task: str, ours: tuple[Document, ...], theirs: tuple[Document, ...]) -> list[dict[str, Any]]:
    own, answered = _columns()
    known = {document.id: document for document in ours}
    rows = []
    for document in theirs:
        row = {"task": task, "id": document.id, **{name: getattr(document, name) for name in own}}
        for side, found in zip(SIDES, (known.get(document.id), document), strict=True):
            row |= {f"{side}_{name}": getattr(found, name, None) for name in answered}
        rows.append(row)
    return rows


def read_documents(path: Path) -> tuple[Scores, Scores]:
    """Return the scores of baseline and artifact from the table in `path`, as they were judged."""
    from pyarrow import parquet

    own, answered = _columns()
    sides: tuple[dict[str, list[Document]], dict[str, list[Document]]] = ({}, {})
    for row in parquet.read_table(path).to_pylist():
        for scores, side in zip(sides, SIDES, strict=True):
            if row[f"{side}_score"] is not None:
                fields = {name: row[name] for name in ("id", *own) if name in row}
                fields |= {name: row[f"{side}_{name}"] for name in answered if f"{side}_{name}" in row}
                scores.setdefault(row["task"], []).append(Document(**fields))
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
        for name in (JUDGED if manifest.schema_version == 1 else JUDGED_BY_BOTH)
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
