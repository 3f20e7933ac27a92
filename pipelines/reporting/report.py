"""The report of finished runs, for people who decide about a release: one HTML file, or Markdown for a CI job.

What it says is one page as data (`pages`), so that both say the same.
"""

from collections.abc import Iterable, Mapping, Sequence

from pipelines.core.bounds import level
from pipelines.core.text import duration, percent, size
from pipelines.gating.decision import SCORES
from pipelines.gating.measures import AT_LEAST, LABELS, Measure
from pipelines.recipe.load import as_yaml
from pipelines.reporting import charts
from pipelines.reporting.charts import Interval
from pipelines.reporting.frontier import MARKS, Point, frontier
from pipelines.reporting.heat import decibels, heat_map
from pipelines.reporting.history import Ranked, Ranking, compare
from pipelines.reporting.pages import (
    Banner,
    Block,
    Cell,
    Chart,
    Code,
    Facts,
    Group,
    Link,
    Mark,
    Note,
    Page,
    Section,
    Table,
    Tiles,
)
from pipelines.reporting.pages import html as as_html
from pipelines.reporting.pages import markdown as as_markdown
from pipelines.reporting.record import GateRecord, Manifest, StageRecord
from pipelines.reporting.sentences import (
    NO_LICENCE,
    SHORT,
    Retained,
    both,
    certified_name,
    changed,
    distance_words,
    kept_with_bounds,
    kept_words,
    no_expected_line,
    reader_line,
    retained,
    verdict_name,
)
from pipelines.reporting.speeds import Speed, bounded, measured_runs
from pipelines.reporting.task_table import TaskRow, metric, task_rows
from pipelines.verification.results import LayerError

WORST = 10
"""Number of layers that are named, the worst ones."""


def html(
    runs: Sequence[Manifest],
    failed: Mapping[str, str] = {},
    remedies: Mapping[str, str] = {},
    top: Sequence[Section] = (),
) -> str:
    """Return one self-contained file on finished `runs`, on those that `failed` (recipe → error text), and on what to
    try (`remedies`: digest of the artifact → another recipe as YAML); sections `top` come first."""
    return as_html(_page(runs, failed, remedies, top))


def markdown(
    runs: Sequence[Manifest],
    failed: Mapping[str, str] = {},
    remedies: Mapping[str, str] = {},
    top: Sequence[Section] = (),
) -> str:
    """Return what `html` says as Markdown, without its charts."""
    return as_markdown(_page(runs, failed, remedies, top))


def _page(
    runs: Sequence[Manifest], failed: Mapping[str, str], remedies: Mapping[str, str], top: Sequence[Section]
) -> Page:
    foot = f"Made by quantgate {runs[-1].quantgate}. " if runs else "Made by quantgate. "
    foot += "Retention is the share of the baseline's score above chance that is kept; bounds are one-sided. "
    foot += "The expected score is the mean probability of the right answer."
    if len(runs) == 1 and not failed and not top:
        (run,) = runs
        about = f"{run.recipe.summary} Judged on suite {run.evaluation.suite.name}, {run.created}."
        parts = (*_run_parts(run, remedies.get(run.artifact_digest)), *_speed_parts(runs, run.gate.target))
        group = Group("", "run-1", parts)
        return Page(f"{run.model.label}, {run.recipe.name}", about, (group,), foot)
    parts = (
        *top,
        *_failed_parts(failed),
        *(part for ranking in compare(runs) for part in _ranking_parts(ranking, runs)),
    )
    groups = [
        Group(f"{run.model.label}, {run.recipe.name}", _anchor(run, runs), tuple(_run_parts(run, remedy, titled=True)))
        for run in runs
        for remedy in (remedies.get(run.artifact_digest),)
    ]
    models = " and ".join(dict.fromkeys(run.model.label for run in runs))
    title = f"{len(runs) + len(failed)} recipes" + (f" on {models}" if models else "")
    return Page(title, _tally(runs, failed), (Group("", "comparison", parts), *groups), foot)


def _anchor(run: Manifest, runs: Sequence[Manifest]) -> str:
    return f"run-{1 + next(number for number, other in enumerate(runs) if other is run)}"


def _tally(runs: Sequence[Manifest], failed: Mapping[str, str]) -> str:
    counts = {verdict_name(run.gate): 0 for run in runs}
    for run in runs:
        counts[verdict_name(run.gate)] += 1
    said = [f"{count} {name}" for name, count in sorted(counts.items(), reverse=True)]
    said += [f"{len(failed)} did not finish"] if failed else []
    return "; ".join(said) + "."


def _failed_parts(failed: Mapping[str, str]) -> Iterable[Section]:
    if failed:
        blocks = [block for name, error in failed.items() for block in (Note(f"Recipe {name}:"), Code(error))]
        yield Section("Did not finish", tuple(blocks))


def _ranking_parts(ranking: Ranking, runs: Sequence[Manifest]) -> Iterable[Section]:
    where = f"{ranking.model}, suite {ranking.suite}, {ranking.runtime} on {ranking.device}"
    manifests = [ranked.manifest for ranked in ranking.runs]
    target = max(run.gate.target for run in manifests)
    title = f"Size and retention of {SCORES[manifests[0].gate.statistic]}: {where}"
    points = [_point(ranked, number == ranking.recommended) for number, ranked in enumerate(ranking.runs)]
    recommended = None if ranking.recommended is None else manifests[ranking.recommended].recipe.name
    advice = f"Recommended: {recommended}, the smallest that passed." if recommended else "None passed."
    rows = tuple(_compared(ranked, number == ranking.recommended, runs) for number, ranked in enumerate(ranking.runs))
    columns = ("recipe", "weights", "bits per weight", *SHORT.values(), "changed", "verdict", "")
    chart = Chart(frontier(title, "weights, MB", points, target=target), wide=True)
    table = Table(title, columns, rows, ("verdict", ""))
    yield Section(title, (Note(advice), chart, table))
    yield from _speed_parts(manifests, target)


def _speed_parts(runs: Sequence[Manifest], target: float) -> Iterable[Section]:
    """Yield speed beside retention, where the speed of some artifacts was measured on this machine."""
    measured = measured_runs(runs)
    if not measured:
        return
    title = "Speed and retention"
    points = [_by_speed(run, speed) for run, speed in measured]
    rows = tuple(
        (run.recipe.name, retained(run.gate.retention), bounded(speed.ratio), speed.load, speed.runtime, speed.machine)
        for run, speed in measured
    )
    columns = ("recipe", "retention", "tokens/s of the baseline's", "load", "in", "on")
    chart = Chart(frontier(title, "tokens/s of the baseline's", points, target=target), wide=True)
    about = (
        f"By quantgate bench, {measured[-1][1].measured}. It holds for that machine and load; bounds are over prompts."
    )
    yield Section(title, (chart, Table(title, columns, rows, ("load", "in", "on")), Note(about, muted=True)))


def _by_speed(run: Manifest, speed: Speed) -> Point:
    kept = Interval(run.recipe.name, run.gate.retention, run.gate.lower_bound, run.gate.upper_bound)
    return Point(speed.ratio.value, kept, run.gate.verdict, efficient=False)


def _point(ranked: Ranked, recommended: bool) -> Point:
    run = ranked.manifest
    kept = _interval(run.recipe.name, run.gate)
    return Point(run.size.bytes_after / 1e6, kept, run.gate.verdict, ranked.efficient, recommended)


def _compared(ranked: Ranked, recommended: bool, runs: Sequence[Manifest]) -> tuple[Cell, ...]:
    run = ranked.manifest
    return (
        Link(run.recipe.name, _anchor(run, runs)),
        size(run.size.bytes_after),
        f"{run.size.bits_per_weight:.2f}",
        *map(kept_with_bounds, both(run.gate).values()),
        _share(changed(run.gate)),
        marked(run.gate),
        Mark("recommended", "good") if recommended else "" if ranked.efficient else "another beats it",
    )


def _run_parts(run: Manifest, remedy: str | None, titled: bool = False) -> Iterable[Block | Section]:
    if titled:
        yield Note(run.recipe.summary, muted=True)
    yield _banner(run)
    yield _tiles(run)
    yield from (Note(f"Note: {note}") for note in run.model.notes)
    if not run.model.spdx:
        yield Note(NO_LICENCE)
    yield from _answer_sections(run)
    yield _measures(run)
    yield from _layer_sections(run, remedy)
    yield from _cost_sections(run)
    yield _provenance(run)
    yield from _records(run)


def _banner(run: Manifest) -> Banner:
    gate = run.gate
    kept = "No retention measured" if gate.retention is None else kept_words(gate)
    about = f"Target {retained(gate.target)}, one-sided {level(gate.confidence)} bounds, suite {_suite(run)}."
    reasons = [*gate.reasons]
    if gate.more_documents is not None:
        reasons.append(f"about {gate.more_documents:,} more documents like these would decide it")
    if gate.spared:
        reasons.append(f"stopped early: {gate.spared:,} documents were spared, the verdict was shown without them")
    if gate.forced:
        reasons.append(f"published without a PASS; reason given: {gate.forced}")
    decided = gate.certified or gate.verdict == "FAIL"
    return Banner(_colour(gate), decided, certified_name(gate), kept, about, tuple(reasons))


def _suite(run: Manifest) -> str:
    documents = sum(task.documents for task in run.gate.tasks)
    return f"{run.evaluation.suite.name} with {documents:,} documents"


def _tiles(run: Manifest) -> Tiles:
    before, after = run.size.bytes_before, run.size.bytes_after
    lost, gained = sum(task.lost for task in run.gate.tasks), sum(task.gained for task in run.gate.tasks)
    spent, memory = sum(stage.seconds for stage in run.stages), max((s.peak_memory for s in run.stages), default=0)
    share = f"{after / before:.1%} of {size(before)}" if before else ""
    full = before * 8 / run.model.parameters if run.model.parameters else 0.0
    return Tiles(
        (
            ("weights", size(after), share),
            ("bits per weight", f"{run.size.bits_per_weight:.2f}", f"{full:.2f} before"),
            ("answers changed", _share(changed(run.gate)), f"{lost:,} lost, {gained:,} gained"),
            ("time of all stages", duration(spent), f"peak memory {size(memory)}"),
        )
    )


def _answer_sections(run: Manifest) -> Iterable[Section]:
    gate, name = run.gate, run.recipe.name
    if not gate.tasks:
        return
    rows = [_interval(f"all tasks, {SHORT[kind]}", kept, True) for kind, kept in both(gate).items() if kept]
    rows += [_interval(f"{row.task.task}, {row.name}", row.kept) for row in task_rows(gate)]
    kept = charts.intervals(f"Retention of {name} by task", rows, target=gate.target, floor=gate.policy.floor)
    changes = {task.task: (task.lost, task.gained) for task in gate.tasks}
    yield Section("Retention by task", (Chart(kept),), half=True)
    yield Section("Answers that changed", (Chart(charts.flips(f"Answers that {name} changed", changes)),), half=True)
    yield Section("Tasks", tuple(_task_blocks(run)))


def _task_blocks(run: Manifest) -> Iterable[Block]:
    gate, judged = run.gate, run.evaluation
    about = ("task", "score", "metric", "documents")
    columns = (*about, "baseline", "artifact", "retention", "bounds", "lost", "gained", "floor")
    rows: list[tuple[Cell, ...]] = [
        (
            *(row.task.task, row.name, metric(judged, row), row.documents),
            *(row.baseline, row.artifact, row.retention, row.bounds, row.lost, row.gained),
            _floor(gate, row),
        )
        for row in task_rows(gate)
    ]
    yield Table("Tasks", columns, tuple(rows), ("score", "metric", "floor"))
    if lacking := no_expected_line(gate):
        yield Note(f"There is {lacking}.", muted=True)
    if judged.source_in_transformers:
        means = ", ".join(f"{task} {mean:.4f}" for task, mean in judged.source_in_transformers.items())
        yield Note(f"The baseline is the F16 GGUF. The source itself, in transformers: {means}.", muted=True)


def _floor(gate: GateRecord, row: TaskRow) -> Cell:
    if not row.holds_floor:
        return ""
    return Mark("below", "bad") if row.task.below_floor else "not below" if gate.policy.floor else "none"


def _interval(label: str, kept: Retained, strong: bool = False) -> Interval:
    return Interval(label, kept.retention, kept.lower_bound, kept.upper_bound, strong)


def _measures(run: Manifest) -> Section:
    blocks: list[Block] = []
    if run.gate.measures:
        columns = ("measure", "value", "bounds", "limit", "shown of the limit")
        rows = tuple(_measure_row(measure) for measure in run.gate.measures)
        blocks.append(Table("Measures", columns, rows, ("limit", "shown of the limit")))
        about = f"Bounds are one-sided, each at {level(run.gate.confidence)}; "
        about += "answers changed and margin are over the suite."
        blocks.append(Note(about, muted=True))
    if distance := run.verification.distance:
        against = "the F16 GGUF" if run.recipe.makes_gguf else "the source"
        text = f"Against {against} on {distance.tokens:,} held-out tokens: perplexity {distance.perplexity_before:.3f} "
        said = distance_words(distance)
        text += f"→ {distance.perplexity_after:.3f} (ratio {said.perplexity_ratio}), KL divergence {said.divergence}, "
        text += f"its 99th percentile {distance.divergence_99:.4f}, same likeliest token {said.same_top}."
        blocks.append(Note(text))
    if run.verification.continuation.strip():
        blocks.append(Note(f"After a text on the water cycle it writes: “{run.verification.continuation.strip()}”"))
    return Section("More sensitive than accuracy", tuple(blocks or [Note("Nothing was measured.")]))


def _measure_row(measure: Measure) -> tuple[Cell, ...]:
    limit, says = "none", Mark("–", "")
    if measure.limit is not None and measure.says is not None:
        limit = f"{'at least' if measure.name in AT_LEAST else 'at most'} {_number(measure, measure.limit)}"
        says = Mark(measure.says, {"within": "good", "beyond": "bad", "undecided": "warn"}[measure.says])
    between = f"{_number(measure, measure.lower)} … {_number(measure, measure.upper)}"
    return LABELS[measure.name], _number(measure, measure.value), between, limit, says


def _number(measure: Measure, value: float) -> str:
    return percent(round(value, 4)) if measure.name in ("same_top", "flips") else f"{value:.4f}"


def _layer_sections(run: Manifest, remedy: str | None) -> Iterable[Section]:
    layers = run.verification.layers
    tried = remedy if run.gate.verdict != "PASS" else None
    if layers:
        chart = heat_map(f"Error of each layer of {run.recipe.name}", {each.module: each.sqnr for each in layers})
        about = "Signal to quantization noise of the weights; 6 dB less is twice the error."
        yield Section("Layers", (Note(about, muted=True), Chart(chart, wide=True)))
        yield Section("Layers that lost most", (_worst(layers),), half=tried is not None)
    if tried is not None:
        yield Section("What to try", tuple(_try(run, tried)), half=bool(layers))


def _worst(layers: Sequence[LayerError]) -> Table:
    worst = sorted(layers, key=lambda layer: layer.sqnr)[:WORST]
    rows = tuple((layer.module, decibels(layer.sqnr), _noise(layer.sqnr)) for layer in worst)
    return Table("Layers that lost most", ("layer", "signal to noise", "error"), rows)


def _noise(sqnr: float) -> str:
    """Return the noise's share of the signal (root mean square) in percent, for `sqnr` in decibels."""
    return percent(float(f"{10 ** (-min(sqnr, 200.0) / 20):.2g}"))


def _try(run: Manifest, remedy: str) -> Iterable[Block]:
    file = f"{run.recipe.name}-next.yaml"
    yield Note(f"More bits where they help most. Save this as {file}:")
    yield Code(remedy, "yaml")
    yield Note("and run it on the same model:")
    yield Code(f"quantgate run {file}", "sh")


def _cost_sections(run: Manifest) -> Iterable[Section]:
    stages = [(stage.stage, stage.seconds, _memory(stage)) for stage in run.stages]
    chart = charts.durations(f"Stages of {run.recipe.name}", stages)
    yield Section("Time", (Chart(chart),), half=True)
    yield Section("Calibration", (_calibration(run),), half=True)
    columns = ("stage", "time", "peak memory", "expected", "")
    rows = tuple(
        (stage.stage, duration(stage.seconds), _memory(stage), _expected(run, stage), "reused" if stage.reused else "")
        for stage in run.stages
    )
    yield Section("Stages", (Table("Stages", columns, rows, ("",)), *_unmeasured(run)))


def _memory(stage: StageRecord) -> str:
    return size(stage.peak_memory) + (f" + {size(stage.peak_gpu_memory)} GPU" if stage.peak_gpu_memory else "")


def _expected(run: Manifest, stage: StageRecord) -> str:
    """Return the memory that the plan expected a stage to take, by its name or by the word that this begins with:
    `evaluate` is of baseline and artifact."""
    expected = run.expected_memory.get(stage.stage, run.expected_memory.get(stage.stage.split(" ", 1)[0]))
    return "–" if expected is None else size(expected)


def _unmeasured(run: Manifest) -> Iterable[Note]:
    known = {stage.stage for stage in run.stages} | {stage.stage.split(" ", 1)[0] for stage in run.stages}
    for name, expected in run.expected_memory.items():
        if name not in known:
            yield Note(f"Expected of {name}: {size(expected)}; it was not measured.", muted=True)


def _calibration(run: Manifest) -> Block:
    calibration = run.calibration
    if calibration is None:
        return Note("None: this method looks at the weights alone.")
    overlap = f"{calibration.gate_documents_overlapping:,} of {calibration.gate_documents:,}"
    return Facts(
        (
            ("set", calibration.set),
            ("source", ", ".join(f"{key} {value}" for key, value in calibration.source.items())),
            ("revision", calibration.revision),
            ("samples", f"{calibration.samples:,}, {calibration.tokens:,} tokens"),
            ("digest", calibration.digest),
            ("gate documents in it", overlap),
        )
    )


def _provenance(run: Manifest) -> Section:
    model = run.model
    facts = {
        "source": model.label if model.hub_id in (None, model.label) else f"{model.label} ({model.hub_id})",
        "revision": model.revision,
        "licence": model.spdx or "none that is known",
        "source digest": model.digest,
        "parameters": f"{model.parameters:,}",
        "recipe": run.recipe.name,
        "engine": run.engine or run.recipe.engine,
        "quantgate": run.quantgate + (f", commit {run.commit}" if run.commit else ""),
        "made": run.created,
        "evaluated in": f"{run.evaluation.runtime} on {run.evaluation.device}",
        "decided by": _policy(run.gate),
        **run.hardware,
    }
    return Section("Provenance", (Facts(tuple((name, value) for name, value in facts.items() if value)),))


def _policy(gate: GateRecord) -> str:
    rules = (
        "the bounds alone" if gate.policy.decide == "certified" else "the bounds, and the point estimate between them"
    )
    floor = f", no task below {percent(gate.policy.floor)}" if gate.policy.floor else ""
    return f"{rules}, at {level(gate.confidence)}, of {SCORES[gate.statistic]}{floor}"


def _records(run: Manifest) -> Iterable[Section]:
    formats = [
        *((same.scheme or "kept", str(same.group_size or "–"), f"{same.count:,}", same.reason) for same in run.modules),
        *((same.type, "–", f"{same.count:,}", same.reason) for same in run.tensors),
    ]
    tensors = f"{run.verification.quantized:,} layers were quantized, {run.verification.kept:,} tensors kept."
    if reader := run.verification.reader:
        tensors += f" The artifact was {reader_line(reader)}."
    columns = ("format", "group size", "count", "reason")
    table = [Table("Formats", columns, tuple(formats), ("reason",))] if formats else []
    yield Section("Formats", (Note(tensors), *table), folded=True)
    yield Section("Recipe", (Code(as_yaml(run.recipe), "yaml"),), folded=True)
    yield Section("Suite and its data", (_data(run),), folded=True)
    yield Section("Files of the artifact, SHA-256", (Facts(tuple(run.files.items())),), folded=True)
    yield Section("Files of the source, SHA-256", (Facts(tuple(run.model.files.items())),), folded=True)
    yield Section("Versions", (Facts(tuple(run.versions.items())),), folded=True)


def _data(run: Manifest) -> Table:
    judged, shares = run.evaluation, run.evaluation.suite.shares
    rows = tuple(
        (task, judged.task_versions.get(task, "–"), percent(round(share, 4)), judged.data.get(task, "–"))
        for task, share in shares.items()
    )
    return Table("Suite and its data", ("task", "version", "weight", "data"), rows, ("data",))


def _colour(gate: GateRecord) -> str:
    return MARKS[gate.verdict][0]


def marked(gate: GateRecord) -> Mark:
    """Return the verdict in its colour."""
    return Mark(verdict_name(gate), _colour(gate))


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
