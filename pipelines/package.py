"""The package stage: the record of a run (`quantgate.json`) and the model card, for any verdict.

The record's schema is docs/quantgate.schema.json; a change that breaks its readers raises `SCHEMA_VERSION`.
"""

import datetime
import json
import os
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field

from pipelines.bounds import level
from pipelines.gate import TaskVerdict, Verdict
from pipelines.gguf_plan import IMATRIX
from pipelines.gguf_types import TensorType
from pipelines.measures import AT_LEAST, LABELS, Measure
from pipelines.overlap import Overlap, measure_overlap
from pipelines.packings import Packing
from pipelines.plan import Plan, expected_memory
from pipelines.quantize import Artifact
from pipelines.recipe import Gguf, Policy, Recipe, Suite
from pipelines.schema import Frozen
from pipelines.schemes import SCHEMES, SchemeName
from pipelines.scores import Distance, Evaluation
from pipelines.store import Result, package_versions
from pipelines.verify import LayerError, Verification, verify

SCHEMA_VERSION = 1
RECORD = "quantgate.json"
"""What the record of a published artifact is called."""
REPORT = "report.html"


class ModelRecord(Frozen):
    """The source checkpoint."""

    label: str
    hub_id: str | None
    revision: str | None
    licence: str | None
    digest: str
    files: dict[str, str]
    parameters: int
    notes: tuple[str, ...]


class SizeRecord(Frozen):
    """Of all tensors."""

    bytes_before: int
    bytes_after: int
    bits_per_weight: float


class ModulesRecord(Frozen):
    """Linear modules that became the same, for the same reason."""

    scheme: SchemeName | None
    """None: kept in the source's precision."""
    group_size: int | None
    reason: str
    """Why they are kept, or what was changed to quantize them; mostly empty."""
    count: int


class TensorsRecord(Frozen):
    """Tensors of a GGUF that became the same, for the same reason."""

    type: TensorType
    reason: str
    """Why they are not of the type that the file type gives them; mostly empty."""
    count: int


class CalibrationRecord(Frozen):
    """Which text the method saw."""

    set: str
    source: dict[str, Any]
    revision: str
    rows: tuple[str, ...]
    samples: int
    tokens: int
    digest: str
    gate_documents: int
    gate_documents_overlapping: int
    """Documents of the gate's suite that share 13 consecutive words with the calibration text."""


class GateRecord(Frozen):
    """The verdict; `verdict`, `certified`, `retention` and `lower_bound` are what other programs read."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    certified: bool
    retention: float | None
    lower_bound: float | None
    upper_bound: float | None
    target: float
    reasons: tuple[str, ...]
    more_documents: int | None
    confidence: float = 0.95
    """Of each one-sided bound."""
    spared: int = 0
    """Documents of the suite that were not evaluated, because the verdict was shown without them."""
    measures: tuple[Measure, ...] = ()
    """Measures more sensitive than accuracy, with their bounds and the policy's limits."""
    forced: str | None = None
    """Why the artifact was published without a PASS."""
    policy: Policy
    tasks: tuple[TaskVerdict, ...]


class EvaluationRecord(Frozen):
    """What the verdict rests on."""

    suite: Suite
    runtime: str
    device: str
    task_versions: dict[str, str]
    metrics: dict[str, str]
    shots: dict[str, int]
    data: dict[str, str]
    source_in_transformers: dict[str, float] = Field(default={})
    """Mean score of the source for each task, where baseline and artifact ran in llama.cpp."""


class VerificationRecord(Frozen):
    """What was measured on the artifact's files."""

    quantized: int
    kept: int
    dropped: tuple[str, ...]
    loss_before: float
    loss_after: float
    agreement: float
    continuation: str
    layers: tuple[LayerError, ...]
    distance: Distance | None = None
    """From the source, on held-out text; of a GGUF, from the unquantized one."""


class StageRecord(Frozen):
    """What a stage cost when it ran."""

    stage: str
    seconds: float
    peak_memory: int
    peak_gpu_memory: int = 0
    reused: bool


class Manifest(Frozen):
    """`quantgate.json`: everything that went into an artifact, and what came of it."""

    schema_version: Literal[1] = 1
    created: str
    quantgate: str
    commit: str | None
    model: ModelRecord
    recipe: Recipe
    size: SizeRecord
    modules: tuple[ModulesRecord, ...] = ()
    tensors: tuple[TensorsRecord, ...] = ()
    gate: GateRecord
    evaluation: EvaluationRecord
    calibration: CalibrationRecord | None
    verification: VerificationRecord
    files: dict[str, str]
    """SHA-256 of each file of the artifact but this one, the card and SHA256SUMS."""
    stages: tuple[StageRecord, ...]
    expected_memory: dict[str, int] = Field(default={})
    """Stage → the bytes of memory that the plan expected it to take."""
    versions: dict[str, str]
    engine: str = ""
    """Name and version of the engine, if it is another project's."""
    hardware: dict[str, str]


class Bundle(Frozen):
    """What is published beside the artifact's own files."""

    manifest: Manifest
    card: str


def package(
    artifact: Artifact, verdict: Verdict, forced: str | None = None, verification: Verification | None = None
) -> Bundle:
    """The record and the card of `artifact`, whatever its verdict.

    `forced` is the reason to publish without a PASS. `verification` is what the verify stage returned; without it the
    stage is asked again, and says that it reused what it had.
    """
    candidate = verdict.evaluations[1]
    verification = verification or verify(artifact, candidate.device)
    overlap = None
    if artifact.calibration:
        overlap = measure_overlap(artifact.calibration, artifact.source, candidate.suite)
    manifest = _manifest(artifact, verdict, verification, overlap, forced)
    return Bundle(manifest=manifest, card=card(manifest, artifact.source.left_behind))


def stage_record(name: str, results: tuple[Result, ...]) -> StageRecord:
    """One line for one or several results (an evaluation is a result for each block of documents)."""
    return StageRecord(
        stage=name,
        seconds=sum(result.seconds for result in results),
        peak_memory=max(result.peak_memory for result in results),
        peak_gpu_memory=max(result.peak_gpu_memory for result in results),
        reused=all(result.reused for result in results),
    )


def _manifest(
    artifact: Artifact, verdict: Verdict, verification: Verification, overlap: Overlap | None, forced: str | None
) -> Manifest:
    source = artifact.source
    baseline, candidate, *others = verdict.evaluations
    costs: list[tuple[str, tuple[Result, ...]]] = [("quantize", (artifact,)), ("verify", (verification,))]
    if artifact.calibration:
        costs.insert(0, ("calibrate", (artifact.calibration,)))
    costs += [("evaluate baseline", baseline.results), ("evaluate artifact", candidate.results)]
    costs += [("evaluate source in transformers", source.results) for source in others]
    return Manifest(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        quantgate=package_versions()["quantgate"],
        commit=_commit(),
        model=ModelRecord(
            label=source.label,
            hub_id=source.hub_id,
            revision=source.revision,
            licence=source.licence,
            digest=source.digest,
            files=source.digests,
            parameters=source.parameters,
            notes=source.notes,
        ),
        recipe=artifact.recipe,
        size=SizeRecord(
            bytes_before=verification.bytes_before,
            bytes_after=verification.bytes_after,
            bits_per_weight=verification.bits_per_weight,
        ),
        modules=_modules(artifact.plan),
        tensors=_tensors(artifact.plan),
        gate=GateRecord(forced=forced, **{name: getattr(verdict, name) for name in _GATE_FIELDS}),
        evaluation=_evaluation(candidate, others),
        calibration=_calibration(artifact, overlap),
        verification=VerificationRecord(
            **{name: getattr(verification, name) for name in VerificationRecord.model_fields}
        ),
        files=artifact.files,
        stages=tuple(stage_record(name, results) for name, results in costs),
        expected_memory=expected_memory(artifact.plan),
        versions=package_versions(),
        engine=artifact.written.engine,
        hardware=_hardware(),
    )


_GATE_FIELDS = [name for name in GateRecord.model_fields if name != "forced"]


def _modules(plan: Plan) -> tuple[ModulesRecord, ...]:
    counts = Counter((module.scheme, module.group_size, module.reason) for module in plan.modules)
    return tuple(
        ModulesRecord(scheme=scheme, group_size=group_size, reason=reason, count=count)
        for (scheme, group_size, reason), count in counts.most_common()
    )


def _tensors(plan: Plan) -> tuple[TensorsRecord, ...]:
    counts = Counter((tensor.type, tensor.reason) for tensor in plan.tensors)
    return tuple(TensorsRecord(type=kind, reason=reason, count=count) for (kind, reason), count in counts.most_common())


def _evaluation(candidate: Evaluation, others: Sequence[Evaluation]) -> EvaluationRecord:
    blocks = [task.about for task in candidate.tasks]
    return EvaluationRecord(
        suite=candidate.suite,
        runtime=candidate.runtime,
        device=candidate.device,
        task_versions={block.task: block.task_version for block in blocks},
        metrics={block.task: block.metric for block in blocks},
        shots={block.task: block.shots for block in blocks},
        data={block.task: block.data for block in blocks},
        source_in_transformers={task.about.task: task.mean for source in others for task in source.tasks},
    )


def _calibration(artifact: Artifact, overlap: Overlap | None) -> CalibrationRecord | None:
    tokens = artifact.calibration
    if tokens is None or overlap is None:
        return None
    return CalibrationRecord(
        set=tokens.set,
        source=tokens.source,
        revision=tokens.revision,
        rows=tokens.rows,
        samples=tokens.samples,
        tokens=tokens.tokens,
        digest=tokens.digest,
        gate_documents=overlap.documents,
        gate_documents_overlapping=overlap.overlapping,
    )


def _commit() -> str | None:
    """The commit of a quantgate that runs from a checkout, with `+dirty` when it was edited."""
    here = Path(__file__).parent
    try:
        options: dict[str, Any] = {"cwd": here, "capture_output": True, "text": True, "timeout": 10}
        top = subprocess.run(["git", "rev-parse", "--show-toplevel"], check=False, **options)
        if top.returncode != 0 or Path(top.stdout.strip()).resolve() != here.parent.resolve():
            return None
        commit = subprocess.run(["git", "rev-parse", "HEAD"], check=False, **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "--", str(here)], check=False, **options).stdout.strip()
        return f"{commit}+dirty" if dirty else commit or None
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, str]:
    import torch

    hardware = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def serve_line(path: str | Path, manifest: Manifest) -> str:
    """The command that serves an artifact published in `path`."""
    if file := gguf_file(manifest):
        return f"llama-server --model {shlex.quote(str(Path(path) / file))}"
    return vllm_line(path, manifest.recipe)


def vllm_line(path: str | Path, recipe: Recipe) -> str:
    """The command that serves an artifact that is no GGUF."""
    cache = " --kv-cache-dtype fp8" if recipe.quantize.kv_cache else ""
    return f"vllm serve {shlex.quote(str(path))}{cache}"


def gguf_file(manifest: Manifest) -> str | None:
    """The name of the file that llama.cpp loads, if the artifact is one."""
    return next((name for name in manifest.files if name.endswith(".gguf") and name != IMATRIX), None)


def distance_line(distance: Distance) -> str:
    """Perplexity ratio, divergence and agreement, each with its standard error."""
    ratio = f"perplexity x {distance.perplexity_ratio:.4f} ± {distance.perplexity_ratio_error:.4f}"
    divergence = f"KL divergence {distance.divergence:.4f} ± {distance.divergence_error:.4f} nats per token"
    same = f"same likeliest token {distance.same_top:.1%} ± {distance.same_top_error:.1%}"
    return f"{ratio}, {divergence}, {same} ({distance.tokens} held-out tokens)"


def measure_line(measure: Measure) -> str:
    """A measure with its bounds, and what the policy's limit makes of it."""
    limit = ""
    if measure.limit is not None:
        asked = "at least" if measure.name in AT_LEAST else "at most"
        limit = f"; {asked} {measure.limit:g}: {measure.says}"
    return f"{LABELS[measure.name]} {measure.value:.4g} ({measure.lower:.4g} … {measure.upper:.4g}){limit}"


def card(manifest: Manifest, left_behind: tuple[str, ...] = ()) -> str:
    """The model card: a Hugging Face README.md with front matter."""
    model, gate, size, recipe = manifest.model, manifest.gate, manifest.size, manifest.recipe
    front: dict[str, Any] = {
        "base_model": model.hub_id or model.label,
        "base_model_relation": "quantized",
        "library_name": "gguf" if manifest.tensors else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["quantgate", *_format_tags(recipe)],
    }
    if model.licence:
        front["license"] = model.licence
    body = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    body += [f"# {model.label}, {recipe.name}", "", recipe.summary, ""]
    body += [f"> {note}\n" for note in model.notes]
    if not model.licence:
        body += ["> The base model declares no licence: find out what you may do with this before you use it.\n"]
    if gate.forced:
        body += [f"> **Published without a PASS** ({gate.verdict}). Reason given: {gate.forced}\n"]
    body += ["## Verdict", "", f"**{verdict_line(gate)}**", "", *(f"- {reason}" for reason in gate.reasons), ""]
    body += _results(manifest)
    body += _flips(gate)
    body += ["## Size", "", "| | before | after |", "|---|---|---|"]
    body += [f"| weights | {size.bytes_before / 1e6:.1f} MB | {size.bytes_after / 1e6:.1f} MB |"]
    before = size.bytes_before * 8 / model.parameters
    body += [f"| bits per weight | {before:.2f} | {size.bits_per_weight:.2f} |", ""]
    body += ["## Serve", "", *_serve(manifest)]
    body += ["## How it was made", "", *_made(manifest)]
    if left_behind:
        body += [f"- not copied from the source: {', '.join(left_behind)}"]
    body += ["", "`quantgate.json` holds the whole record, `SHA256SUMS` the digest of every file.", ""]
    return "\n".join(body)


def _format_tags(recipe: Recipe) -> list[str]:
    if isinstance(recipe.quantize, Gguf):
        return ["gguf", "llama.cpp", recipe.quantize.type]
    return [recipe.packing, *recipe.quantize.schemes]


def _serve(manifest: Manifest) -> list[str]:
    lines = ["```", serve_line("FOLDER", manifest), "```", ""]
    if file := gguf_file(manifest):
        ollama = ["With Ollama, write `Modelfile` beside the file and create the model:", "", "```"]
        name = Path(file).stem.lower()
        ollama += [f"echo 'FROM ./{file}' > Modelfile", f"ollama create {name} --file Modelfile", "```", ""]
        return [
            *lines,
            *ollama,
            "Runs wherever llama.cpp does, LM Studio among them: CPUs, and GPUs of all makers.",
            "",
        ]
    return [*lines, *_hardware_lines(manifest.recipe), loader(manifest.recipe), ""]


LOADERS: dict[Packing, str] = {
    "compressed-tensors": "In transformers it runs on any device, slower.",
    "gptq": "vLLM and SGLang load it as it is, and so does transformers where the package gptqmodel is installed.",
    "awq": "vLLM and SGLang load it as it is, and so does transformers where the package gptqmodel is installed.",
    "modelopt": "TensorRT-LLM, vLLM and SGLang load it as it is; transformers does not.",
    "bitsandbytes": "Where the package bitsandbytes is installed, transformers, PEFT and vLLM load it as it is.",
}


def loader(recipe: Recipe) -> str:
    """Who loads an artifact beside vLLM."""
    if recipe.packing == "modelopt" and recipe.quantize.schemes[0] in ("W8A8_STATIC", "W4A16"):
        return "TensorRT-LLM loads it; vLLM, SGLang and transformers do not."
    return LOADERS[recipe.packing]


def _hardware_lines(recipe: Recipe) -> list[str]:
    """Where runtimes have kernels: one line, or one for each scheme of a mixed artifact, which needs them all."""
    schemes = recipe.quantize.schemes
    if len({SCHEMES[scheme].hardware for scheme in schemes}) == 1:
        return [f"Runs on {SCHEMES[schemes[0]].hardware}."]
    return ["Runs where all its formats do:", "", *(f"- {name}: {SCHEMES[name].hardware}" for name in schemes), ""]


def verdict_name(gate: GateRecord) -> str:
    """`PASS, certified`, `PASS, not certified`, `FAIL` or `INCONCLUSIVE`."""
    return gate.verdict + ((", certified" if gate.certified else ", not certified") if gate.verdict == "PASS" else "")


def verdict_line(gate: GateRecord) -> str:
    """`PASS, certified: 99.60% of the baseline kept, at least 99.10% at 95% (target 99.00%).`."""
    kept = "no retention measured" if gate.retention is None else f"{gate.retention:.2%} of the baseline kept"
    bound = "" if gate.lower_bound is None else f", at least {gate.lower_bound:.2%} at {level(gate.confidence)}"
    return f"{verdict_name(gate)}: {kept}{bound} (target {gate.target:.2%})."


def _results(manifest: Manifest) -> list[str]:
    gate, evaluation = manifest.gate, manifest.evaluation
    corrected = ", above chance" if gate.policy.chance_correction else ""
    confidence = level(gate.confidence)
    lines = [
        f"| task | metric | documents | baseline | artifact | retention{corrected} | {confidence} bounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in gate.tasks:
        kept = "–" if task.retention is None else f"{task.retention:.2%}"
        metric = f"{evaluation.metrics[task.task]}, {evaluation.shots[task.task]}-shot"
        lines.append(
            f"| {task.task} | {metric} | {task.documents} | {task.baseline:.4f} | {task.candidate:.4f} | {kept} "
            f"| {bounds(task)} |"
        )
    lines += [
        "",
        f"Measured with lm-eval {manifest.versions['lm_eval']}, {evaluation.runtime} on {evaluation.device}, suite "
        f"`{evaluation.suite.name}`; the bounds are one-sided, each at {confidence}.",
        "",
    ]
    if evaluation.source_in_transformers:
        means = (f"{task} {mean:.4f}" for task, mean in evaluation.source_in_transformers.items())
        lines += [f"The baseline is the F16 GGUF. The source itself, in transformers: {', '.join(means)}.", ""]
    if distance := manifest.verification.distance:
        source = "F16 GGUF" if manifest.tensors else "source"
        lines += [f"Against the {source}: {distance_line(distance)}.", ""]
    if gate.spared:
        lines += [f"The evaluation was stopped: the verdict was shown without the last {gate.spared} documents.", ""]
    asked = [measure_line(measure) for measure in gate.measures if measure.limit is not None]
    return lines + [f"- {line}" for line in asked] + ([""] if asked else [])


def bounds(kept: TaskVerdict | GateRecord) -> str:
    """`98.1% … 101.3%`, or a dash where the data bounds nothing."""
    low = "–" if kept.lower_bound is None else f"{kept.lower_bound:.1%}"
    high = "–" if kept.upper_bound is None else f"{kept.upper_bound:.1%}"
    return f"{low} … {high}"


def changed(gate: GateRecord) -> float | None:
    """The share of documents whose score changed; None when nothing was compared."""
    documents = sum(task.documents for task in gate.tasks)
    return sum(task.lost + task.gained for task in gate.tasks) / documents if documents else None


def _flips(gate: GateRecord) -> list[str]:
    share = changed(gate)
    if share is None:
        return []
    lost, gained = sum(task.lost for task in gate.tasks), sum(task.gained for task in gate.tasks)
    return [f"{share:.1%} of the answers changed: {lost} were lost and {gained} gained.", ""]


def _made(manifest: Manifest) -> list[str]:
    recipe, model, calibration = manifest.recipe, manifest.model, manifest.calibration
    origin = f"{model.hub_id or model.label}" + (f" at {model.revision}" if model.revision else "")
    quantize = recipe.quantize
    said_elsewhere = {"method", "rules", "ignore", "kv_cache", "engine", "experimental_cpu"}
    settings = quantize.model_dump(exclude_none=True, exclude=said_elsewhere)
    settings = {key: value for key, value in settings.items() if value != {}}
    lines = [
        f"- source: {origin}, digest `{model.digest}`",
        f"- method: {quantize.method}, {', '.join(f'{key} {value}' for key, value in settings.items())}",
    ]
    if manifest.engine:
        lines.append(f"- engine: {manifest.engine}")
    if recipe.packing != recipe.engine_packing:
        lines.append(f"- stored as {recipe.packing}: the same numbers in another order, exactly")
    for rule in quantize.rules:
        group = f", group_size {rule.group_size}" if rule.group_size else ""
        lines.append(f"- rule: {rule.scheme}{group} for {listed(rule.match)}")
    if quantize.kv_cache:
        lines.append(f"- KV cache: {quantize.kv_cache}, measured scales for each layer's keys and values")
    if manifest.tensors:
        lines += [
            f"- {same.count} tensors of type {same.type}{same.reason and ': ' + same.reason}"
            for same in manifest.tensors
        ]
    else:
        lines += [
            f"- kept in the source's precision: {listed(quantize.ignore) or 'nothing'}",
            f"- {manifest.verification.quantized} layers quantized, {manifest.verification.kept} tensors kept",
            *_reasons(manifest.modules),
        ]
    if calibration:
        lines.append(
            f"- calibration: {calibration.samples} samples, {calibration.tokens} tokens of set `{calibration.set}` "
            f"({calibration.revision}); {calibration.gate_documents_overlapping} of the gate's "
            f"{calibration.gate_documents} documents overlap with it"
        )
    lines.append(f"- quantgate {manifest.quantgate}" + (f", commit {manifest.commit}" if manifest.commit else ""))
    return lines


def listed(patterns: tuple[str, ...]) -> str:
    """Patterns of a recipe, as Markdown."""
    return ", ".join(f"`{pattern}`" for pattern in patterns)


def _reasons(modules: tuple[ModulesRecord, ...]) -> list[str]:
    """`- group size 64: 128 does not divide 576 (210 layers)`, for each reason."""
    counts: Counter[str] = Counter()
    for same in modules:
        counts[same.reason] += same.count
    return [f"- {reason} ({count} {'layer' if count == 1 else 'layers'})" for reason, count in counts.items() if reason]
