"""The figures of a verdict as text, for the card, the report and the command alike."""

from typing import NamedTuple

from pipelines.gating.gate import TaskVerdict, Verdict
from pipelines.reporting.record import GateRecord


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


def bounds(kept: TaskVerdict | Verdict | GateRecord) -> str:
    """Return `98.1% … 101.3%`, with a dash for each bound that the data does not give."""
    low = "–" if kept.lower_bound is None else f"{kept.lower_bound:.1%}"
    high = "–" if kept.upper_bound is None else f"{kept.upper_bound:.1%}"
    return f"{low} … {high}"


def changed(gate: GateRecord) -> float | None:
    """Return the share of documents whose score changed; None when nothing was compared."""
    documents = sum(task.documents for task in gate.tasks)
    return sum(task.lost + task.gained for task in gate.tasks) / documents if documents else None


def retained(retention: float | None) -> str:
    """Return a retention as `99.12%`, or a dash where none was measured."""
    return "–" if retention is None else f"{retention:.2%}"
