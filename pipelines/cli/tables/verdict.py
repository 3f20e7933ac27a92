"""Scores and verdicts."""

from pipelines.cli.columns import Column, console, show_table
from pipelines.cli.tables.lists import show_list
from pipelines.evaluation.scores import Evaluation
from pipelines.gating.verdict import TaskVerdict, Verdict
from pipelines.reporting.sentences import measure_line, verdict_line
from pipelines.reporting.task_table import task_row

MANY_DOCUMENTS = 1_000_000
"""More documents than an estimate near the target can speak of."""
COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
"""Verdict → its colour."""


def show_verdict(verdict: Verdict) -> None:
    """Print for each task baseline, artifact and retention with its bounds; then the verdict and its reasons."""
    out = console()
    corrected = " above chance" if verdict.policy.chance_correction else ""
    columns = (
        Column("task", text=True),
        Column("documents", spare=1),
        Column("baseline"),
        Column("artifact"),
        Column(f"retention{corrected}"),
        Column("bounds"),
        Column("lost", spare=2),
        Column("gained", spare=2),
        Column("verdict", text=True),
    )
    show_table(f"suite {verdict.suite}", columns, map(_judged, verdict.tasks))
    out.print(verdict_line(verdict), style=f"bold {COLOURS[verdict.verdict]}")
    for reason in verdict.reasons:
        out.print(f"  {reason}")
    if verdict.spared:
        out.print(f"  {verdict.spared:,} documents were spared: the verdict was shown without them")
    for measure in verdict.measures:
        out.print(f"  {measure_line(measure)}")
    if verdict.more_documents is not None:
        many = verdict.more_documents > MANY_DOCUMENTS
        out.print(f"  about {verdict.more_documents:,} more documents like these would decide it", end="")
        out.print(": the estimate is too near the target to tell" if many else "")


def _judged(task: TaskVerdict) -> tuple[str, ...]:
    return (*map(str, task_row(task)), "below floor" if task.below_floor else "above floor")


def show_evaluation(done: Evaluation) -> None:
    """Print each task's mean score, and the number of its documents."""
    rows = [
        (task.about.task, f"{task.about.metric} {task.mean:.4f} on {task.documents} documents") for task in done.tasks
    ]
    show_list(rows, f"{done.model} on {done.suite.name}")
