"""Finished runs, one or several side by side."""

from collections.abc import Mapping, Sequence

from rich.text import Text

from pipelines.cli.columns import Cell, Column, console, show_table
from pipelines.cli.tables.lists import show_path
from pipelines.cli.tables.verdict import COLOURS, show_verdict
from pipelines.core.errors import QuantgateError
from pipelines.core.text import size
from pipelines.flow.journal import Run
from pipelines.reporting.history import Ranking
from pipelines.reporting.record import Manifest, StageRecord
from pipelines.reporting.sentences import (
    SHORT,
    both,
    bounds,
    changed,
    distance_line,
    kept_with_bounds,
    retained,
    verdict_name,
)
from pipelines.reporting.serving import serve_line
from pipelines.reporting.speeds import bounded, measured_runs


def show_run(done: Run) -> None:
    """Print the end of a run: verdict, size, what each stage cost, and where everything lies."""
    out = console()
    show_verdict(done.verdict)
    show_stages(done.stages)
    before, after = done.manifest.size.bytes_before, done.manifest.size.bytes_after
    bits = before * 8 / done.manifest.model.parameters
    out.print(f"weights    {size(before)} → {size(after)} ({after / before:.1%})")
    out.print(f"bits       {bits:.2f} → {done.manifest.size.bits_per_weight:.2f} per weight")
    if calibration := done.manifest.calibration:
        overlapping = calibration.gate_documents_overlapping
        out.print(
            f"overlap    {overlapping} of {calibration.gate_documents} gate documents are in the calibration text"
        )
    if distance := done.manifest.verification.distance:
        out.print(f"distance   {distance_line(distance)}")
    for note in done.manifest.model.notes:
        out.print(f"note       {note}")
    if not done.manifest.model.spdx:
        out.print("licence    the base model declares none that is known", style="yellow")
    out.print(f"record     {done.record}")
    out.print(f"report     {done.report}")
    if done.published:
        for target in done.published:
            out.print(f"published  {target}")
        out.print(f"serve      {serve_line(done.published[0], done.manifest)}")
    else:
        out.print(f"artifact   {done.artifact}")
        out.print("not published", style="bold")


def show_comparison(outcomes: Mapping[str, Run | QuantgateError]) -> None:
    """Print the end of several runs of one model: a line for each recipe, then where the artifacts were published."""
    runs = [done for done in outcomes.values() if isinstance(done, Run)]
    models = dict.fromkeys(f"{done.manifest.model.label}, suite {done.verdict.suite}" for done in runs)
    error = ("–", "–", "–", "–", "–", "error", "no")
    rows = [(name, *(_compared(done) if isinstance(done, Run) else error)) for name, done in outcomes.items()]
    show_table("; ".join(models), _comparison(Column("published", left=True, spare=1)), rows)
    for done in runs:
        for target in done.published:
            show_path("published", target)


def _comparison(last: Column) -> tuple[Column, ...]:
    """Return the columns for rows of a recipe, its size and quality, and the one thing that `last` is."""
    return (
        Column("recipe", text=True),
        Column("weights"),
        Column("bits per weight", spare=3),
        *map(Column, SHORT.values()),
        Column("changed", spare=2),
        Column("verdict", left=True),
        last,
    )


def _compared(done: Run) -> tuple[Cell, ...]:
    return (*_size_and_quality(done.manifest), "yes" if done.published else "no")


def _size_and_quality(run: Manifest) -> tuple[Cell, ...]:
    share = changed(run.gate)
    return (
        f"{size(run.size.bytes_before)} → {size(run.size.bytes_after)}",
        f"{run.size.bits_per_weight:.2f}",
        *map(kept_with_bounds, both(run.gate).values()),
        "–" if share is None else f"{share:.1%}",
        Text(verdict_name(run.gate), style=COLOURS[run.gate.verdict]),
    )


def show_ranking(ranking: Ranking) -> None:
    """Print finished runs that share a baseline, the smallest first."""
    computed = f" in {ranking.dtype}" if ranking.dtype else ""
    title = f"{ranking.model}, suite {ranking.suite}, {ranking.runtime}{computed} on {ranking.device}"
    rows: list[tuple[Cell, ...]] = []
    for number, run in enumerate(ranking.runs):
        mark = "recommended" if number == ranking.recommended else "" if run.efficient else "another beats it"
        rows.append((run.manifest.recipe.name, *_size_and_quality(run.manifest), mark))
    show_table(title, _comparison(Column("", text=True)), rows)


def show_speeds(runs: Sequence[Manifest]) -> None:
    """Print speed beside retention, of the runs whose speed was measured here."""
    rows = [
        (
            run.recipe.name,
            retained(run.gate.retention),
            bounds(run.gate),
            bounded(speed.ratio),
            speed.load,
            speed.runtime,
        )
        for run, speed in measured_runs(runs)
    ]
    if rows:
        show_table("tokens/s of the baseline's, measured on this machine", _SPEEDS, rows)


_SPEEDS = (
    Column("recipe", text=True),
    Column("retention"),
    Column("bounds", spare=2),
    Column("tokens/s"),
    Column("load", left=True, spare=1),
    Column("in", text=True),
)


def show_stages(stages: tuple[StageRecord, ...]) -> None:
    """Print seconds and peak memory of each stage."""
    rows = []
    for stage in stages:
        gpu = f" + {size(stage.peak_gpu_memory)} GPU" if stage.peak_gpu_memory else ""
        reused = "reused" if stage.reused else ""
        rows.append((stage.stage, f"{stage.seconds:.1f}", f"{size(stage.peak_memory)}{gpu}", reused))
    columns = (Column("stage", text=True), Column("seconds"), Column("peak memory"), Column("", left=True))
    show_table("", columns, rows)
