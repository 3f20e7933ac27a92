"""The rows of the table of tasks as data, for the card, the report and the command alike."""

from typing import NamedTuple

from pipelines.gating.verdict import TaskVerdict
from pipelines.reporting.record import EvaluationRecord
from pipelines.reporting.sentences import bounds, retained


class TaskRow(NamedTuple):
    """A task of a suite in the tables of results: scores as text, counts as numbers."""

    task: str
    documents: int
    baseline: str
    artifact: str
    retention: str
    bounds: str
    lost: int
    gained: int


def task_row(task: TaskVerdict) -> TaskRow:
    """Return the row of `task`; each table takes the cells it has room for."""
    return TaskRow(
        task=task.task,
        documents=task.documents,
        baseline=f"{task.baseline:.4f}",
        artifact=f"{task.candidate:.4f}",
        retention=retained(task.retention),
        bounds=bounds(task),
        lost=task.lost,
        gained=task.gained,
    )


def metric(evaluation: EvaluationRecord, task: str) -> str:
    """Return the metric of `task` and its number of examples: `acc, 0-shot`."""
    return f"{evaluation.metrics.get(task, '')}, {evaluation.shots.get(task, 0)}-shot"
