"""The table of a verdict's tasks as data, for card, report and console to render."""

from collections.abc import Iterable
from typing import NamedTuple

from pipelines.gating.gate import TaskVerdict
from pipelines.reporting.record import EvaluationRecord
from pipelines.reporting.sentences import bounds, retained


class TaskRow(NamedTuple):
    """One task of a verdict, its numbers as people read them. Counts are numbers, which each renders in its way."""

    task: str
    documents: int
    baseline: str
    artifact: str
    """Mean score, four digits after the point."""
    retention: str
    bounds: str
    lost: int
    gained: int
    below_floor: bool


def task_rows(tasks: Iterable[TaskVerdict]) -> tuple[TaskRow, ...]:
    """Return a row for each task, in order."""
    return tuple(
        TaskRow(
            task=task.task,
            documents=task.documents,
            baseline=f"{task.baseline:.4f}",
            artifact=f"{task.candidate:.4f}",
            retention=retained(task.retention),
            bounds=bounds(task),
            lost=task.lost,
            gained=task.gained,
            below_floor=task.below_floor,
        )
        for task in tasks
    )


def metric(evaluation: EvaluationRecord, task: str) -> str:
    """Return what `task` measured and after how many examples: `acc, 0-shot`."""
    return f"{evaluation.metrics.get(task, '')}, {evaluation.shots.get(task, 0)}-shot"
