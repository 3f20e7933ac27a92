"""Scores and verdicts."""

from pipelines.cli.columns import Column, console, show_table
from pipelines.cli.tables.lists import show_list
from pipelines.evaluation.scores import Evaluation
from pipelines.gating.verdict import Verdict
from pipelines.reporting.sentences import measure_line, tasks_below_line, verdict_line
from pipelines.reporting.task_table import TaskRow, task_rows

MANY_DOCUMENTS = 1_000_000
"""More documents than an estimate near the target can speak of."""
COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
"""Verdict → its colour."""


def show_verdict(verdict: Verdict) -> None:
    """Print for each task and score baseline, artifact and retention with bounds; then the verdict and its reasons."""
    out = console()
    corrected = " above chance" if verdict.policy.chance_correction else ""
    columns = (
        Column("task", text=True),
        Column("score", text=True),
        Column("documents", spare=1),
        Column("baseline"),
        Column("artifact"),
        Column(f"retention{corrected}"),
        Column("lost", spare=2),
        Column("gained", spare=2),
        Column("verdict", text=True),
    )
    show_table(f"suite {verdict.suite}", columns, map(_judged, task_rows(verdict)))
    out.print(verdict_line(verdict), style=f"bold {COLOURS[verdict.verdict]}")
    for reason in verdict.reasons:
        out.print(f"  {reason}")
    if below := tasks_below_line(verdict):
        out.print(f"  {below}")
    if verdict.spared:
        out.print(f"  {verdict.spared:,} documents were spared: the verdict was shown without them")
    for measure in verdict.measures:
        out.print(f"  {measure_line(measure)}")
    if verdict.more_documents is not None:
        many = verdict.more_documents > MANY_DOCUMENTS
        out.print(f"  about {verdict.more_documents:,} more documents like these would decide it", end="")
        out.print(": the estimate is too near the target to tell" if many else "")


def _judged(row: TaskRow) -> tuple[str, ...]:
    numbers = (row.documents, row.baseline, row.artifact, f"{row.retention} ({row.bounds})", row.lost, row.gained)
    floor = "below floor" if row.task.below_floor else "above floor"
    return row.task.task, row.name, *numbers, floor if row.holds_floor else ""


def show_evaluation(done: Evaluation) -> None:
    """Print each task's mean score, and the number of its documents."""
    rows = [
        (task.about.task, f"{task.about.metric} {task.mean:.4f} on {task.documents} documents") for task in done.tasks
    ]
    show_list(rows, f"{done.model} on {done.suite.name}")
