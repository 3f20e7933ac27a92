"""The rows of the table of tasks as data, for the card, the report and the command alike."""

from typing import NamedTuple

from pipelines.gating.verdict import Kept, TaskVerdict, Verdict
from pipelines.recipe.suite import ScoreKind
from pipelines.reporting.record import EvaluationRecord, GateRecord
from pipelines.reporting.sentences import SHORT, bounds, retained


class TaskRow(NamedTuple):
    """A task by one of its scores in the tables of results: numbers as text, empty where they are not this score's."""

    task: TaskVerdict
    score: ScoreKind
    kept: TaskVerdict | Kept
    name: str
    """Name of the score."""
    documents: str
    baseline: str
    artifact: str
    retention: str
    bounds: str
    lost: str
    gained: str
    holds_floor: bool
    """Whether the floor is one of this score."""


def task_rows(gate: Verdict | GateRecord) -> list[TaskRow]:
    """Return a row for each score of each task; each table takes the cells it has room for."""
    scored: list[tuple[TaskVerdict, ScoreKind, TaskVerdict | Kept]] = []
    for task in gate.tasks:
        scored.append((task, "accuracy", task))
        scored += [(task, "expected", task.expected)] if task.expected else []
    return [_row(task, score, kept, score == gate.statistic) for task, score, kept in scored]


def _row(task: TaskVerdict, score: ScoreKind, kept: TaskVerdict | Kept, holds_floor: bool) -> TaskRow:
    counted = score == "accuracy"
    return TaskRow(
        task=task,
        score=score,
        kept=kept,
        name=SHORT[score],
        documents=f"{task.documents:,}",
        baseline=f"{kept.baseline:.4f}",
        artifact=f"{kept.candidate:.4f}",
        retention=retained(kept.retention),
        bounds=bounds(kept),
        lost=f"{task.lost:,}" if counted else "",
        gained=f"{task.gained:,}" if counted else "",
        holds_floor=holds_floor,
    )


def metric(evaluation: EvaluationRecord, row: TaskRow) -> str:
    """Return how a row's score was taken: `acc, 0-shot`; of an expected score, the temperature where it is not 1."""
    shots, name = f"{evaluation.shots.get(row.task.task, 0)}-shot", evaluation.metrics.get(row.task.task, "")
    if row.score == "accuracy":
        return f"{name}, {shots}"
    return shots + (f", temperature {row.task.temperature:.3g}" if row.task.temperature else "")
