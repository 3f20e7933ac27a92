"""The model card, made from the record alone."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.core.bounds import level
from pipelines.core.text import size
from pipelines.recipe.methods import Gguf
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.hub_results import eval_results
from pipelines.reporting.record import GateRecord, Manifest, ModulesRecord
from pipelines.reporting.rendering import plain
from pipelines.reporting.sentences import (
    NO_LICENCE,
    changed,
    distance_line,
    measure_line,
    no_expected_line,
    reader_line,
    tasks_below_line,
    verdict_line,
)
from pipelines.reporting.serving import gguf_file, loader, manifest_formats, runtime_lines, serve_line
from pipelines.reporting.task_table import metric, task_rows
from pipelines.serving.published import FOLDER, NAMES

SAID_ELSEWHERE = {"method", "rules", "ignore", "kv_cache", "engine", "experimental_cpu"}
"""Settings of a method that the card says in words."""


PROOF = (
    "`quantgate.json` holds the whole record, `documents.parquet` each score that the verdict rests on, "
    "`provenance.json` what this was made from, `SHA256SUMS` the digest of every file. `quantgate verify` checks "
    "them all."
)


def card(manifest: Manifest, left_behind: tuple[str, ...] = ()) -> str:
    """Return the model card, a Hugging Face README.md with front matter.

    `left_behind` are the names of the source's files that were not copied.
    """
    not_copied = [f"- not copied from the source: {', '.join(map(plain, left_behind))}"] if left_behind else []
    lines = [
        *("---", *(f"{key}: {json.dumps(value)}" for key, value in _front_matter(manifest).items()), "---", ""),
        *_head(manifest),
        *("## Verdict", "", *_verdict(manifest)),
        *("## Size", "", *_size(manifest)),
        *("## Serve", "", *_serve(manifest)),
        *("## How it was made", "", *_made(manifest), *not_copied, ""),
        *(PROOF, ""),
    ]
    return "\n".join(lines)


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    """Return what the hub reads of a card: https://huggingface.co/docs/hub/model-cards."""
    model = manifest.model
    front: dict[str, Any] = {
        "base_model": model.hub_id or model.label,
        "base_model_relation": "quantized",
        "library_name": "gguf" if manifest.recipe.makes_gguf else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["quantgate", *_format_tags(manifest.recipe)],
    }
    if model.licence:
        front["license"] = model.licence
    if results := eval_results(manifest):
        from huggingface_hub.repocard_data import eval_results_to_model_index

        name = f"{model.label} {manifest.recipe.name}"
        front["model-index"] = eval_results_to_model_index(name, results)
    return front


def _format_tags(recipe: Recipe) -> list[str]:
    if isinstance(recipe.quantize, Gguf):
        return ["gguf", "llama.cpp", recipe.quantize.type]
    return [recipe.packing, *recipe.quantize.schemes]


def _head(manifest: Manifest) -> list[str]:
    """Return title and summary, and what a reader must know before the rest."""
    model, gate = manifest.model, manifest.gate
    warnings = [plain(note) for note in model.notes]
    if not model.spdx:
        warnings.append(NO_LICENCE)
    if gate.forced:
        warnings.append(f"**Published without a PASS** ({gate.verdict}). Reason given: {plain(gate.forced)}")
    title = f"# {plain(model.label)}, {manifest.recipe.name}"
    return [title, "", plain(manifest.recipe.summary), "", *(f"> {warning}\n" for warning in warnings)]


def _verdict(manifest: Manifest) -> list[str]:
    """Return the verdict with its reasons, and all that was measured for it."""
    gate = manifest.gate
    limits = [f"- {measure_line(measure)}" for measure in gate.measures if measure.limit is not None]
    return [
        *(
            f"**{verdict_line(gate)}**",
            "",
            *(f"- {plain(said)}" for said in (*gate.reasons, tasks_below_line(gate)) if said),
            "",
        ),
        *(*_task_table(manifest), ""),
        *(line for sentence in _sentences(manifest) for line in (sentence, "")),
        *([*limits, ""] if limits else []),
        *_flips(gate),
    ]


def _task_table(manifest: Manifest) -> list[str]:
    gate = manifest.gate
    corrected = ", above chance" if gate.policy.chance_correction else ""
    columns = ("task", "score", "metric", "documents", "baseline", "artifact", f"retention{corrected}")
    lines = [f"| {' | '.join(columns)} | {level(gate.confidence)} bounds |", "|" + "---|" * (len(columns) + 1)]
    for row in task_rows(gate):
        asked = metric(manifest.evaluation, row)
        scores = f"{row.baseline} | {row.artifact} | {row.retention} | {row.bounds}"
        lines.append(f"| {row.task.task} | {row.name} | {asked} | {row.documents} | {scores} |")
    return lines


def _sentences(manifest: Manifest) -> Iterator[str]:
    """Yield how the tasks were measured, and what else was."""
    gate, evaluation = manifest.gate, manifest.evaluation
    yield (
        f"Measured with lm-eval {manifest.versions['lm_eval']}, {evaluation.runtime} on {evaluation.device}, suite "
        f"`{evaluation.suite.name}`; the bounds are one-sided, each at {level(gate.confidence)}."
    )
    if lacking := no_expected_line(gate):
        yield f"There is {lacking}."
    if evaluation.source_in_transformers:
        means = (f"{task} {mean:.4f}" for task, mean in evaluation.source_in_transformers.items())
        yield f"The baseline is the F16 GGUF. The source itself, in transformers: {', '.join(means)}."
    if distance := manifest.verification.distance:
        yield f"Against the {'F16 GGUF' if manifest.recipe.makes_gguf else 'source'}: {distance_line(distance)}."
    if gate.spared:
        yield f"The evaluation was stopped: the verdict was shown without the last {gate.spared} documents."


def _flips(gate: GateRecord) -> list[str]:
    """Return how many answers changed; nothing where none were compared."""
    share = changed(gate)
    if share is None:
        return []
    lost, gained = sum(task.lost for task in gate.tasks), sum(task.gained for task in gate.tasks)
    return [f"{share:.1%} of the answers changed: {lost} were lost and {gained} gained.", ""]


def _size(manifest: Manifest) -> list[str]:
    before, after = manifest.size.bytes_before, manifest.size.bytes_after
    return [
        "| | before | after |",
        "|---|---|---|",
        f"| weights | {size(before)} | {size(after)} |",
        f"| bits per weight | {manifest.bits_per_weight_before:.2f} | {manifest.size.bits_per_weight:.2f} |",
        "",
    ]


def _serve(manifest: Manifest) -> list[str]:
    lines = ["```", serve_line("FOLDER", manifest), "```", ""]
    told = (
        f"`{FOLDER}/` has a config for each runtime that is known to serve it; `quantgate serve-config` writes others."
    )
    if file := gguf_file(manifest):
        name = Path(file).stem.lower()
        return [
            *lines,
            *("With Ollama, in the folder:", ""),
            *("```", f"ollama create {name} --file {NAMES['ollama']}", "```", ""),
            *("Runs wherever llama.cpp does, LM Studio among them: CPUs, and GPUs of all makers.", "", told, ""),
        ]
    runtimes = [f"- {line}" for line in runtime_lines(manifest.recipe.packing, manifest_formats(manifest))]
    return [*lines, *runtimes, "", loader(manifest.recipe), "", told, ""]


def _made(manifest: Manifest) -> list[str]:
    """Return the list of what went into the artifact."""
    return [f"- {item}" for part in (_method, _formats, _evidence) for item in part(manifest)]


def _method(manifest: Manifest) -> Iterator[str]:
    """Yield the source, and what the recipe asked for."""
    model, recipe, quantize = manifest.model, manifest.recipe, manifest.recipe.quantize
    origin = f"{model.hub_id or model.label}" + (f" at {model.revision}" if model.revision else "")
    yield f"source: {plain(origin)}, digest `{model.digest}`"
    settings = quantize.model_dump(exclude_none=True, exclude=SAID_ELSEWHERE)
    yield f"method: {quantize.method}, {', '.join(f'{key} {value}' for key, value in settings.items() if value != {})}"
    if manifest.engine:
        yield f"engine: {manifest.engine}"
    if recipe.repacked:
        yield f"stored as {recipe.packing}: the same numbers in another order, exactly"
    for rule in () if recipe.makes_gguf else recipe.method.rules:
        group = f", group_size {rule.group_size}" if rule.group_size else ""
        yield f"rule: {rule.scheme}{group} for {listed(rule.match)}"
    if recipe.kv_cache:
        yield f"KV cache: {recipe.kv_cache}, measured scales for each layer's keys and values"


def _formats(manifest: Manifest) -> Iterator[str]:
    """Yield lines on what became of the tensors, and why."""
    if manifest.recipe.makes_gguf:
        for same in manifest.tensors:
            yield f"{same.count} tensors of type {same.type}{same.reason and ': ' + same.reason}"
        return
    yield f"kept in the source's precision: {listed(manifest.recipe.method.ignore) or 'nothing'}"
    yield f"{manifest.verification.quantized} layers quantized, {manifest.verification.kept} tensors kept"
    yield from _reasons(manifest.modules)


def _evidence(manifest: Manifest) -> Iterator[str]:
    """Yield who loaded the artifact, on which text it was calibrated, and its digest and version."""
    if manifest.verification.reader:
        yield reader_line(manifest.verification.reader)
    if calibration := manifest.calibration:
        yield (
            f"calibration: {calibration.samples} samples, {calibration.tokens} tokens of set `{calibration.set}` "
            f"({calibration.revision}); {calibration.gate_documents_overlapping} of the gate's "
            f"{calibration.gate_documents} documents overlap with it"
        )
    yield f"artifact: digest `{manifest.artifact_digest}`"
    yield f"quantgate {manifest.quantgate}" + (f", commit {manifest.commit}" if manifest.commit else "")


def listed(patterns: tuple[str, ...]) -> str:
    """Return patterns of a recipe as Markdown."""
    return ", ".join(plain(pattern) if "`" in pattern else f"`{pattern}`" for pattern in patterns)


def _reasons(modules: tuple[ModulesRecord, ...]) -> Iterator[str]:
    """Yield `group size 64: 128 does not divide 576 (210 layers)`, for each reason."""
    counts: Counter[str] = Counter()
    for same in modules:
        counts[same.reason] += same.count
    for reason, count in counts.items():
        if reason:
            yield f"{plain(reason)} ({count} {'layer' if count == 1 else 'layers'})"
