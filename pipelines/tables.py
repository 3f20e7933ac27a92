"""What a person sees: plans and runs as tables, on standard error's neighbour, standard output."""

import re
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.flow import Run
from pipelines.gate import Sight, Verdict
from pipelines.package import GateRecord, StageRecord, bounds, serve_line, verdict_line
from pipelines.plan import Module, Plan

MANY_DOCUMENTS = 1_000_000


def console() -> Console:
    """Standard output; wide enough for our tables when it is not a terminal."""
    plain = Console(highlight=False, soft_wrap=False)
    return plain if plain.is_terminal else Console(highlight=False, width=140)


def size(count: float) -> str:
    """Bytes for people: `163.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def show_plan(plan: Plan, seen: Sight | None) -> None:
    """Every module and what becomes of it, equal ones on one line; size; needs."""
    out = console()
    table = Table(title=f"{plan.recipe.name} on {plan.checkpoint.label}", title_justify="left")
    for column in ("modules", "count", "shape", "becomes", "why"):
        table.add_column(column)
    for (pattern, shape, becomes, why), count in _grouped(plan).items():
        table.add_row(pattern, str(count), shape, becomes, why)
    out.print(table)
    before = plan.bytes_before * 8 / plan.checkpoint.parameters
    out.print(f"weights: {size(plan.bytes_before)} → {size(plan.bytes_after)}, bits per weight {before:.2f} → ", end="")
    out.print(f"{plan.bits_per_weight:.2f}")
    for need in plan.needs:
        out.print(
            f"{need.stage}: about {size(need.needed)} of {need.resource}, {size(need.available)} free {need.where}"
        )
    if plan.checkpoint.left_behind:
        out.print(f"not copied into the artifact: {', '.join(plan.checkpoint.left_behind)}")
    for note in plan.checkpoint.notes:
        out.print(note)
    if seen:
        out.print(seen.sentence(plan.recipe.gate.suite))


def _grouped(plan: Plan) -> dict[tuple[str, str, str, str], int]:
    counts: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for module in plan.modules:
        pattern = re.sub(r"\.\d+\.", ".*.", module.name)
        counts[(pattern, f"{module.shape[0]}×{module.shape[1]}", _becomes(plan, module), module.reason)] += 1
    return counts


def _becomes(plan: Plan, module: Module) -> str:
    if not module.quantized:
        return f"kept ({module.dtype})"
    group = f", group {module.group_size}" if module.group_size else ""
    return f"{plan.recipe.quantize.scheme}{group}"


def show_verdict(verdict: Verdict) -> None:
    """Per task baseline, artifact, retention with its bounds; then the verdict and its reasons."""
    out = console()
    table = Table(title=f"suite {verdict.suite}", title_justify="left")
    corrected = " above chance" if verdict.policy.chance_correction else ""
    columns = (
        "task",
        "documents",
        "baseline",
        "artifact",
        f"retention{corrected}",
        "bounds",
        "lost",
        "gained",
        "verdict",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "verdict") else "right")
    for task in verdict.tasks:
        kept = "–" if task.retention is None else f"{task.retention:.2%}"
        table.add_row(
            task.task, str(task.documents), f"{task.baseline:.4f}", f"{task.candidate:.4f}", kept, bounds(task),
            str(task.lost), str(task.gained), "below floor" if task.below_floor else "above floor",
        )  # fmt: skip
    out.print(table)
    record = GateRecord(**{name: getattr(verdict, name) for name in GateRecord.model_fields if name != "forced"})
    colour = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}[verdict.verdict]
    out.print(f"[bold {colour}]{verdict_line(record)}[/]")
    for reason in verdict.reasons:
        out.print(f"  {reason}")
    if verdict.more_documents is not None:
        many = verdict.more_documents > MANY_DOCUMENTS
        out.print(f"  about {verdict.more_documents:,} more documents like these would decide it", end="")
        out.print(": the estimate is too near the target to tell" if many else "")


def show_run(done: Run) -> None:
    """The end of a run: verdict, size, what each stage cost, and where everything lies."""
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
    for note in done.manifest.model.notes:
        out.print(f"note       {note}")
    if not done.manifest.model.licence:
        out.print("[yellow]licence    the base model declares none[/]")
    out.print(f"record     {done.record}")
    if done.published:
        out.print(f"published  {done.published}")
        out.print(f"serve      {serve_line(done.published)}")
    else:
        out.print(f"artifact   {done.artifact}")
        out.print("[bold]not published[/]")


def show_stages(stages: tuple[StageRecord, ...]) -> None:
    """Seconds and peak memory of each stage."""
    table = Table()
    for column in ("stage", "seconds", "peak memory", ""):
        table.add_column(column, justify="right" if column in ("seconds", "peak memory") else "left")
    for stage in stages:
        gpu = f" + {size(stage.peak_gpu_memory)} GPU" if stage.peak_gpu_memory else ""
        reused = "reused" if stage.reused else ""
        table.add_row(stage.stage, f"{stage.seconds:.1f}", f"{size(stage.peak_memory)}{gpu}", reused)
    console().print(table)


def show_list(rows: list[tuple[str, str]], title: str) -> None:
    """Names and summaries."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("summary")
    for name, summary in rows:
        table.add_row(name, summary)
    console().print(table)


def show_path(what: str, path: Path) -> None:
    """One labelled path on its own line, never wrapped."""
    print(f"{what:10} {path}")
