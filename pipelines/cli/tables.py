"""What a person sees: plans and runs as tables, on standard error's neighbour, standard output."""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pipelines.checkpoint.dtypes import fits
from pipelines.cli.columns import Cell, Column, console, show_table
from pipelines.core.errors import QuantgateError
from pipelines.core.secrets import redact
from pipelines.core.text import duration, size
from pipelines.flow.estimate import Expected, in_all
from pipelines.flow.release import Foreseen, Outcome
from pipelines.flow.run import Run
from pipelines.gating.gate import TaskVerdict, Verdict
from pipelines.gating.power import Sight
from pipelines.planning.gguf import GgufTensor
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Module, Plan
from pipelines.publishing.bundle import Checked
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.card import (
    bounds,
    changed,
    distance_line,
    measure_line,
    reader_line,
    serve_line,
    verdict_line,
    verdict_name,
)
from pipelines.reporting.history import Ranking
from pipelines.reporting.record import GateRecord, Manifest, StageRecord
from pipelines.verification.results import Verification

if TYPE_CHECKING:
    from pipelines.runtimes.vllm import Comparison  # it needs lm-eval

MANY_DOCUMENTS = 1_000_000
FAMILIES = ("FP8", "FP4", "NF4", "INT8", "INT4", "GGUF", "mixed")
"""In the order that recipes are listed."""


def show_plan(plan: Plan, seen: Sight | None, times: Sequence[Expected]) -> None:
    """Every module and what becomes of it, equal ones on one line; size; needs; time."""
    out = console()
    columns = (
        Column("tensors" if isinstance(plan, GgufPlan) else "modules", text=True),
        Column("count"),
        Column("shape"),
        Column("becomes", text=True),
        Column("why", text=True),
    )
    grouped = _grouped(plan).items()
    rows = [(pattern, str(count), shape, becomes, why) for (pattern, shape, becomes, why), count in grouped]
    show_table(f"{plan.recipe.name} on {plan.checkpoint.label}", columns, rows)
    before = plan.bytes_before * 8 / plan.checkpoint.parameters
    out.print(f"weights: {size(plan.bytes_before)} → {size(plan.bytes_after)}, bits per weight {before:.2f} → ", end="")
    out.print(f"{plan.bits_per_weight:.2f}")
    if isinstance(plan, CheckpointPlan) and plan.attentions:
        out.print(f"keys and values of {len(plan.attentions)} attention modules are cached in FP8")
    for need in plan.needs:
        out.print(
            f"{need.stage}: about {size(need.needed)} of {need.resource}, {size(need.available)} free {need.where}"
        )
    narrow = ", because float32 would not fit this machine's memory" if _is_narrow(plan) else ""
    out.print(f"models compute in {plan.dtype}{narrow}")
    for line in time_lines(times):
        out.print(line)
    if plan.checkpoint.left_behind:
        out.print(f"not copied into the artifact: {', '.join(plan.checkpoint.left_behind)}")
    for note in plan.checkpoint.notes:
        out.print(note)
    if seen:
        out.print(seen.sentence(plan.recipe.gate.suite))


def time_lines(times: Sequence[Expected]) -> list[str]:
    """What each stage is expected to take, by what that rests on; what is finished; and all together."""
    lines = []
    for basis in dict.fromkeys(one.basis for one in times):
        if basis == "kept results":
            lines.append(f"finished already: {', '.join(one.stage for one in times if one.done)}")
        else:
            said = [f"{one.stage} {one.left}" for one in times if one.basis == basis]
            lines.append(f"expected time, by {basis}: {', '.join(said)}")
    return [*lines, f"a run now: {in_all(times)}"]


def _is_narrow(plan: Plan) -> bool:
    """Whether the type was chosen for want of memory."""
    return plan.dtype != "float32" and not fits(plan.checkpoint, "float32")


def _grouped(plan: Plan) -> dict[tuple[str, str, str, str], int]:
    counts: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for part in plan.parts:
        pattern = re.sub(r"\.\d+\.", ".*.", part.name)
        becomes = part.type if isinstance(part, GgufTensor) else _becomes(part)
        counts[(pattern, "×".join(map(str, part.shape)), becomes, part.reason)] += 1
    return counts


def _becomes(module: Module) -> str:
    if module.scheme is None:
        return f"kept ({module.dtype})"
    group = f", group {module.group_size}" if module.group_size else ""
    return f"{module.scheme}{group}"


COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def show_verdict(verdict: Verdict) -> None:
    """Per task baseline, artifact, retention with its bounds; then the verdict and its reasons."""
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
    record = GateRecord(**{name: getattr(verdict, name) for name in GateRecord.model_fields if name != "forced"})
    out.print(verdict_line(record), style=f"bold {COLOURS[verdict.verdict]}")
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
    kept = "–" if task.retention is None else f"{task.retention:.2%}"
    scores = (f"{task.baseline:.4f}", f"{task.candidate:.4f}", kept, bounds(task))
    floor = "below floor" if task.below_floor else "above floor"
    return (task.task, str(task.documents), *scores, str(task.lost), str(task.gained), floor)


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
    """The end of several runs of one model: a line for each recipe, then where the artifacts were published."""
    runs = [done for done in outcomes.values() if isinstance(done, Run)]
    models = dict.fromkeys(f"{done.manifest.model.label}, suite {done.verdict.suite}" for done in runs)
    error = ("–", "–", "–", "–", "–", "error", "no")
    rows = [(name, *(_compared(done) if isinstance(done, Run) else error)) for name, done in outcomes.items()]
    show_table("; ".join(models), _comparison(Column("published", left=True, spare=1)), rows)
    for done in runs:
        for target in done.published:
            show_path("published", target)


def _comparison(last: Column) -> tuple[Column, ...]:
    """For rows of a recipe, its size and quality, and one thing more."""
    return (
        Column("recipe", text=True),
        Column("weights"),
        Column("bits per weight", spare=3),
        Column("retention"),
        Column("bounds"),
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
        "–" if run.gate.retention is None else f"{run.gate.retention:.2%}",
        bounds(run.gate),
        "–" if share is None else f"{share:.1%}",
        Text(verdict_name(run.gate), style=COLOURS[run.gate.verdict]),
    )


def show_ranking(ranking: Ranking) -> None:
    """Finished runs that share a baseline, the smallest first."""
    computed = f" in {ranking.dtype}" if ranking.dtype else ""
    title = f"{ranking.model}, suite {ranking.suite}, {ranking.runtime}{computed} on {ranking.device}"
    rows: list[tuple[Cell, ...]] = []
    for number, run in enumerate(ranking.runs):
        mark = "recommended" if number == ranking.recommended else "" if run.efficient else "another beats it"
        rows.append((run.manifest.recipe.name, *_size_and_quality(run.manifest), mark))
    show_table(title, _comparison(Column("", text=True)), rows)


def show_verification(checked: Verification) -> None:
    """What the verify stage measured."""
    worst = min(checked.layers, key=lambda layer: layer.sqnr)
    show_facts(
        "verified",
        {
            "layers": f"{checked.quantized} quantized, {checked.kept} tensors kept",
            "weights": f"{size(checked.bytes_before)} → {size(checked.bytes_after)}",
            "bits per weight": f"{checked.bits_per_weight:.2f}",
            "worst layer": f"{worst.module}, {worst.sqnr:.1f} dB signal to noise",
            "loss": f"{checked.loss_before:.3f} → {checked.loss_after:.3f} nats per token",
            "agreement": f"{checked.agreement:.1%} of the next tokens",
            "continuation": checked.continuation,
            "distance": distance_line(checked.distance),
            "reader": reader_line(checked.reader),
        },
    )


def show_agreement(compared: "Comparison") -> None:
    """What vLLM computed, against what transformers did."""
    show_facts(
        f"vLLM {compared.version} against transformers, {compared.tokens} tokens",
        {
            "difference": f"{compared.mean_difference:.3f} nats in the mean, {compared.max_difference:.3f} at most; "
            f"a mean of {compared.tolerance} is tolerated",
            "perplexity": f"{compared.perplexity_vllm:.3f} against {compared.perplexity_transformers:.3f}",
            "continuation": f"{compared.same_tokens} tokens alike",
            "vLLM writes": compared.continuation_vllm.strip(),
            "transformers writes": compared.continuation_transformers.strip(),
            "agrees": "yes" if compared.agrees else "NO",
        },
    )


def show_facts(title: str, facts: Mapping[str, str]) -> None:
    """Names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console().print(table)


def show_stages(stages: tuple[StageRecord, ...]) -> None:
    """Seconds and peak memory of each stage."""
    rows = []
    for stage in stages:
        gpu = f" + {size(stage.peak_gpu_memory)} GPU" if stage.peak_gpu_memory else ""
        reused = "reused" if stage.reused else ""
        rows.append((stage.stage, f"{stage.seconds:.1f}", f"{size(stage.peak_memory)}{gpu}", reused))
    columns = (Column("stage", text=True), Column("seconds"), Column("peak memory"), Column("", left=True))
    show_table("", columns, rows)


def show_list(rows: list[tuple[str, str]], title: str) -> None:
    """Names and summaries."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("summary", overflow="fold")
    for name, summary in rows:
        table.add_row(name, summary)
    console().print(table)


def by_family(recipes: Iterable[Recipe]) -> dict[str, list[Recipe]]:
    """The families that have recipes, in their order."""
    grouped: dict[str, list[Recipe]] = {name: [] for name in FAMILIES}
    for recipe in recipes:
        grouped[recipe.family].append(recipe)
    return {name: found for name, found in grouped.items() if found}


def show_recipes(recipes: Iterable[Recipe]) -> None:
    """Names and summaries, a section for each family."""
    table = Table(title="recipes", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("summary", overflow="fold")
    for name, found in by_family(recipes).items():
        table.add_section()
        table.add_row(Text(name, style="bold"), "")
        for recipe in found:
            table.add_row(recipe.name, recipe.summary)
    console().print(table)


def show_checked(checked: Checked) -> None:
    """A published artifact in which nothing was found wrong."""
    gate = checked.manifest.gate
    out = console()
    out.print(f"files      {checked.files}, {size(checked.bytes)}: every digest as published")
    out.print(f"verdict    {verdict_line(gate)} Judged again from its documents: the same.", soft_wrap=True)
    if gate.forced:
        out.print(f"forced     published without a PASS: {gate.forced}", style="yellow")
    out.print(f"source     {checked.manifest.model.label}, recipe {checked.manifest.recipe.name}")
    out.print(f"signature  {checked.signature}")


def show_foreseen(foreseen: Iterable[Foreseen]) -> None:
    """What each run of a release is going to take, and all together."""
    rows = list(foreseen)
    columns = (
        Column("model", text=True),
        Column("recipe", text=True),
        Column("weights"),
        Column("bits per weight", spare=1),
        Column("memory"),
        Column("disk"),
        Column("time", text=True),
    )
    show_table("nothing is computed: this is what it would take", columns, map(_foreseen, rows))
    out = console()
    out.print("memory is that of the stage that takes the most; disk is that of cache and folders")
    unknown = tuple(dict.fromkeys(stage for row in rows for stage in row.unknown))
    together = _expected(sum(row.seconds for row in rows), unknown)
    out.print(f"time       {together}, by finished runs of the same kind; what is finished takes none")
    for row in rows:
        for target in row.targets:
            show_path("publishes", target)


def _foreseen(row: Foreseen) -> tuple[str, ...]:
    weights = f"{size(row.bytes_before)} → {size(row.bytes_after)}"
    needs = (size(row.memory), size(row.disk), _expected(row.seconds, row.unknown))
    return (row.model, row.recipe, weights, f"{row.bits_per_weight:.2f}", *needs)


def _expected(seconds: float, unknown: tuple[str, ...]) -> str:
    if not seconds:
        return "unknown"
    return " + ".join([f"about {duration(seconds)}", *unknown])


def show_release(outcome: Outcome) -> None:
    """The end of a release: a line for each run, and where everything was published, or why not."""
    rows: list[tuple[Cell, ...]] = []
    for item in outcome.items:
        said = Text(item.verdict or "error", style=COLOURS[item.verdict] if item.verdict else "red")
        places = f"{len(item.published)} of {len(item.targets)}"
        rows.append((item.model, item.recipe, said, places, duration(item.seconds)))
    texts = (Column("model", text=True), Column("recipe", text=True))
    places_and_time = (Column("verdict", left=True), Column("published", left=True, spare=1), Column("time"))
    show_table(f"release {outcome.release.name}", (*texts, *places_and_time), rows)
    for item in outcome.items:
        for target in item.published:
            show_path("published", target)
    for item in outcome.items:
        for reason in (item.error, *item.unpublished.values()):
            if reason:
                print(redact(f"error: {item.recipe} on {item.model}: {reason}"), file=sys.stderr)


def show_path(what: str, path: Path | str) -> None:
    """One labelled path on its own line, never wrapped."""
    print(f"{what:10} {path}")
