"""The model card and the Hub's forms of the results: everything here is made from the record alone."""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from pipelines.core.bounds import level
from pipelines.formats.packings import Packing, hardware
from pipelines.gating.gate import TaskVerdict, Verdict
from pipelines.gating.measures import AT_LEAST, LABELS, Measure
from pipelines.planning.gguf import IMATRIX
from pipelines.planning.readers import home
from pipelines.recipe.methods import Gguf, Method
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import HubDataset
from pipelines.reporting.record import GateRecord, Manifest, ModulesRecord
from pipelines.reporting.rendering import plain
from pipelines.runtimes.distance import Distance
from pipelines.verification.reader import Reader

NO_LICENCE = "The base model declares no licence that is known: find out what you may do with this before you use it."


def serve_line(path: str | Path, manifest: Manifest) -> str:
    """The command that serves an artifact published in `path`."""
    if file := gguf_file(manifest):
        return f"llama-server --model {shlex.quote(str(Path(path) / file))}"
    return vllm_line(path, manifest.recipe)


def vllm_line(path: str | Path, recipe: Recipe) -> str:
    """The command that serves an artifact that is no GGUF."""
    cache = " --kv-cache-dtype fp8" if recipe.kv_cache else ""
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


def reader_line(reader: Reader) -> str:
    """Which program loaded the artifact, and how far its logits are from those evaluated."""
    if reader.not_loaded:
        return f"not loaded here: {reader.not_loaded}"
    loaded = f"loaded by {reader.program} {reader.version or ''}".strip()
    if reader.median_error is None:
        return f"{loaded}, which evaluated it"
    far = f"its logits in {reader.dtype} are {reader.median_error:.2%} of their size from those evaluated"
    equal = "" if reader.weights_error is None else f", {reader.weights_error:.4%} with the same type and no rounding"
    return f"{loaded}: {far} (median over tokens{equal})"


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
    body = ["---", *(f"{key}: {json.dumps(value)}" for key, value in _front_matter(manifest).items()), "---", ""]
    body += [f"# {plain(model.label)}, {recipe.name}", "", plain(recipe.summary), ""]
    body += [f"> {plain(note)}\n" for note in model.notes]
    if not model.spdx:
        body += [f"> {NO_LICENCE}\n"]
    if gate.forced:
        body += [f"> **Published without a PASS** ({gate.verdict}). Reason given: {plain(gate.forced)}\n"]
    body += ["## Verdict", "", f"**{verdict_line(gate)}**", "", *(f"- {plain(reason)}" for reason in gate.reasons), ""]
    body += _results(manifest)
    body += _flips(gate)
    body += ["## Size", "", "| | before | after |", "|---|---|---|"]
    body += [f"| weights | {size.bytes_before / 1e6:.1f} MB | {size.bytes_after / 1e6:.1f} MB |"]
    before = size.bytes_before * 8 / model.parameters
    body += [f"| bits per weight | {before:.2f} | {size.bits_per_weight:.2f} |", ""]
    body += ["## Serve", "", *_serve(manifest)]
    body += ["## How it was made", "", *_made(manifest)]
    if left_behind:
        body += [f"- not copied from the source: {', '.join(map(plain, left_behind))}"]
    body += [
        "",
        "`quantgate.json` holds the whole record, `documents.parquet` each score that the verdict rests on, "
        "`provenance.json` what this was made from, `SHA256SUMS` the digest of every file. `quantgate verify` checks "
        "them all.",
        "",
    ]
    return "\n".join(body)


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    """What the hub reads of a card: https://huggingface.co/docs/hub/model-cards."""
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


def eval_results(manifest: Manifest) -> list[Any]:
    """The artifact's mean score on each task, as huggingface_hub's `EvalResult`s."""
    from huggingface_hub import EvalResult

    about = manifest.evaluation
    results = []
    for task in manifest.gate.tasks:
        where = about.datasets.get(task.task, HubDataset(id=task.task))
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name=f"{task.task}, {about.shots[task.task]}-shot, {task.documents} documents",
                dataset_type=where.id,
                dataset_name=task.task,
                dataset_config=where.config,
                dataset_split=about.splits.get(task.task),
                metric_type=about.metrics[task.task],
                metric_value=task.candidate,
            )
        )
    return results


def hub_results(manifest: Manifest) -> str:
    """`.eval_results/*.yaml` of the hub: the scores on data sets that it knows by name."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    about = manifest.evaluation
    entries = [
        EvalResultEntry(
            dataset_id=about.datasets[task.task].id,
            task_id=about.datasets[task.task].config or "default",
            value=task.candidate,
            date=manifest.created,
            notes=f"{about.metrics[task.task]}, {about.shots[task.task]}-shot, {task.documents} documents of "
            f"{about.splits[task.task]}, lm-eval {manifest.versions['lm_eval']}; baseline {task.baseline}",
        )
        for task in manifest.gate.tasks
        if task.task in about.datasets
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


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
    if home(recipe).program == "TensorRT-LLM":
        return "TensorRT-LLM loads it; vLLM, SGLang and transformers do not."
    return LOADERS[recipe.packing]


def _hardware_lines(recipe: Recipe) -> list[str]:
    """Where runtimes have kernels: one line, or one for each scheme of a mixed artifact, which needs them all."""
    places = {scheme: hardware(recipe.packing, scheme) for scheme in recipe.schemes}
    if len({*places.values()}) == 1:
        return [f"Runs on {next(iter(places.values()))}."]
    return ["Runs where all its formats do:", "", *(f"- {name}: {place}" for name, place in places.items()), ""]


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
        source = "F16 GGUF" if manifest.recipe.makes_gguf else "source"
        lines += [f"Against the {source}: {distance_line(distance)}.", ""]
    if gate.spared:
        lines += [f"The evaluation was stopped: the verdict was shown without the last {gate.spared} documents.", ""]
    asked = [measure_line(measure) for measure in gate.measures if measure.limit is not None]
    return lines + [f"- {line}" for line in asked] + ([""] if asked else [])


def bounds(kept: TaskVerdict | Verdict | GateRecord) -> str:
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
        f"- source: {plain(origin)}, digest `{model.digest}`",
        f"- method: {quantize.method}, {', '.join(f'{key} {value}' for key, value in settings.items())}",
    ]
    if manifest.engine:
        lines.append(f"- engine: {manifest.engine}")
    if recipe.repacked:
        lines.append(f"- stored as {recipe.packing}: the same numbers in another order, exactly")
    if isinstance(quantize, Gguf):
        lines += [
            f"- {same.count} tensors of type {same.type}{same.reason and ': ' + same.reason}"
            for same in manifest.tensors
        ]
    else:
        lines += _modules(quantize, manifest)
    if manifest.verification.reader:
        lines.append(f"- {reader_line(manifest.verification.reader)}")
    if calibration:
        lines.append(
            f"- calibration: {calibration.samples} samples, {calibration.tokens} tokens of set `{calibration.set}` "
            f"({calibration.revision}); {calibration.gate_documents_overlapping} of the gate's "
            f"{calibration.gate_documents} documents overlap with it"
        )
    lines.append(f"- artifact: digest `{manifest.artifact_digest}`")
    lines.append(f"- quantgate {manifest.quantgate}" + (f", commit {manifest.commit}" if manifest.commit else ""))
    return lines


def _modules(method: Method, manifest: Manifest) -> list[str]:
    """Return what became of the modules of a checkpoint."""
    lines = []
    for rule in method.rules:
        group = f", group_size {rule.group_size}" if rule.group_size else ""
        lines.append(f"- rule: {rule.scheme}{group} for {listed(rule.match)}")
    if method.kv_cache:
        lines.append(f"- KV cache: {method.kv_cache}, measured scales for each layer's keys and values")
    return [
        *lines,
        f"- kept in the source's precision: {listed(method.ignore) or 'nothing'}",
        f"- {manifest.verification.quantized} layers quantized, {manifest.verification.kept} tensors kept",
        *_reasons(manifest.modules),
    ]


def listed(patterns: tuple[str, ...]) -> str:
    """Patterns of a recipe, as Markdown."""
    return ", ".join(plain(pattern) if "`" in pattern else f"`{pattern}`" for pattern in patterns)


def _reasons(modules: tuple[ModulesRecord, ...]) -> list[str]:
    """`- group size 64: 128 does not divide 576 (210 layers)`, for each reason."""
    counts: Counter[str] = Counter()
    for same in modules:
        counts[same.reason] += same.count
    return [
        f"- {plain(reason)} ({count} {'layer' if count == 1 else 'layers'})"
        for reason, count in counts.items()
        if reason
    ]
