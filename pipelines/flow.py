"""The whole flow in one place: load, plan, calibrate, quantize, verify, evaluate, gate, package, publish."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from pipelines.calibrate import calibrate
from pipelines.card import verdict_line
from pipelines.checkpoint import Checkpoint
from pipelines.errors import BadInput, Problem, QuantgateError, bad_input, refuse
from pipelines.evaluate import Runtime, check_tasks, evaluate, looks
from pipelines.gate import Verdict, gate
from pipelines.history import discordance
from pipelines.models import load_model
from pipelines.overlap import measure_overlap
from pipelines.package import Bundle, package, stage_record
from pipelines.places import FolderTarget, Target, parse_target
from pipelines.plan import Plan, disk_lacks, make_plan
from pipelines.power import foresee
from pipelines.proof import Signer, check_signer
from pipelines.publish import EXIT_CODES, check_targets, put, sealed
from pipelines.quantize import Artifact, quantize
from pipelines.recipe import Recipe, Suite, load_recipe, load_suite
from pipelines.record import REPORT, Manifest, StageRecord
from pipelines.remedy import remedies
from pipelines.report import html, markdown
from pipelines.runtime import check_room, choose_device
from pipelines.schema import Frozen
from pipelines.scores import Distance, Evaluation
from pipelines.secrets import redact
from pipelines.sequential import look_confidence
from pipelines.store import Meter, Result, cache_dir, digest, now, package_versions, write_json
from pipelines.verify import Verification, verify

P = ParamSpec("P")
T = TypeVar("T")

ARTIFACTS = Path("artifacts")
"""Where a run publishes unless told, below the current folder: `<model>/<recipe>`."""
To = Path | str | Sequence[Path | str] | None
"""A target or several; none is `ARTIFACTS`."""


class Run(Frozen):
    """What a run came to."""

    manifest: Manifest
    verdict: Verdict
    stages: tuple[StageRecord, ...]
    artifact: Path
    """The quantized checkpoint in the cache, whatever the verdict."""
    published: tuple[str, ...]
    """The targets that hold it now; none when the gate refused it."""
    unpublished: dict[str, str]
    """Target → why it could not be published there, though the gate let it through."""
    record: Path
    """`run.json`; `report.html` and `report.md` lie beside it."""

    @property
    def report(self) -> Path:
        return self.record.with_name(REPORT)

    @property
    def exit_code(self) -> int:
        return 1 if self.unpublished else EXIT_CODES[self.verdict.verdict]


def run(
    recipe: Recipe | str = "fp8",
    model: Checkpoint | str | Path | None = None,
    to: To = None,
    device: str | None = None,
    runtime: Runtime = "transformers",
    python: Path | None = None,
    full: bool = False,
    signer: Signer | None = None,
) -> Run:
    """Take `model` (the default model unless given) through `recipe`, and publish it to `to` if the gate says PASS.

    `to` is a target or several (`pipelines.places`), in which `{model}` and `{recipe}` stand for their names.

    Each stage's result is kept: the same run again does no work twice, and a killed one goes on where it was. Baseline
    and artifact are evaluated in `runtime`; `python` is the interpreter of an environment that has vLLM (one is made
    unless given). The artifact is evaluated until the verdict is shown, or in `full`.

    Raises:
        BadInput: everything that makes the run impossible, before anything expensive starts.
    """
    (job,) = prepare([recipe], (), model, to, device, runtime, full, signer)
    done = _run(job, prepare_runtimes([job], python))
    discard([job])
    return done


def run_all(
    recipes: Sequence[Recipe | str],
    model: Checkpoint | str | Path | None = None,
    to: To = None,
    device: str | None = None,
    runtime: Runtime = "transformers",
    python: Path | None = None,
    overrides: Sequence[str] = (),
    full: bool = False,
    signer: Signer | None = None,
) -> dict[str, Run | QuantgateError]:
    """Take one model through several recipes: by recipe name, what each came to.

    They share the baseline's evaluation and, where they ask for the same, the calibration text. A folder `to` without
    `{recipe}` in it is the one above: each recipe publishes below it, under its name. `overrides` apply to recipes
    given by name. A recipe that fails does not stop the others; its error takes the place of its run.

    Raises:
        BadInput: everything that makes any of the runs impossible, before the first starts.
    """
    jobs = prepare(recipes, overrides, model, to, device, runtime, full, signer)
    python = prepare_runtimes(jobs, python)
    done = {job.recipe.name: attempt(job, python, f"{number} of {len(jobs)}") for number, job in enumerate(jobs, 1)}
    discard(jobs)
    return done


def write_report(runs: Sequence[Manifest], failed: Mapping[str, str] | None = None, folder: Path | None = None) -> Path:
    """The report of finished runs, and of those that `failed` (recipe → error), as HTML and as Markdown; returns the
    first's path. It lies with the records of runs unless `folder` says where."""
    if folder is None:
        folder = cache_dir() / "runs" / digest([[run.model_dump(mode="json") for run in runs], failed])
        folder.mkdir(parents=True, exist_ok=True)
    written = remedies(runs)
    (folder / REPORT).write_text(html(runs, failed or {}, written), encoding="utf-8")
    (folder / REPORT).with_suffix(".md").write_text(markdown(runs, failed or {}, written), encoding="utf-8")
    return folder / REPORT


class Job(Frozen):
    """A run that nothing known speaks against."""

    plan: Plan
    suite: Suite
    targets: tuple[Target, ...]
    device: str
    runtime: Runtime
    full: bool
    signer: Signer | None

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe


def _run(job: Job, python: Path | None) -> Run:
    plan, recipe, suite = job.plan, job.recipe, job.suite
    journal = _Journal(job)
    tokens = None
    if plan.tensors:
        from pipelines.gguf_convert import convert

        journal.add("convert", convert(plan.checkpoint))
    if recipe.calibrate:
        tokens = calibrate(plan)
        journal.add("calibrate", tokens)
    artifact = quantize(plan, tokens)
    journal.add("quantize", artifact)
    verification = verify(artifact, job.device)
    journal.add("verify", verification)
    baseline = evaluate(plan.checkpoint, suite, job.device, job.runtime, python)
    journal.add("evaluate baseline", *baseline.results)
    if seen := foresee(recipe, suite, discordance(recipe), baseline):
        _say(seen.sentence(suite.name))
    verdict = _judge(job, artifact, baseline, verification.distance, python)
    journal.add("evaluate artifact", *verdict.evaluations[1].results)
    if plan.tensors:  # what the runtime itself changes is no matter of the gate, but of the report
        source = evaluate(plan.checkpoint, suite, job.device)
        journal.add("evaluate source in transformers", *source.results)
        verdict = verdict.model_copy(update={"evaluations": (*verdict.evaluations, source)})
    if tokens:
        journal.add("overlap", measure_overlap(tokens, plan.checkpoint, suite))
    with journal.measure("package"):
        bundle = package(artifact, verdict, verification=verification)
    outcome: dict[str, str | None] = {}
    if verdict.verdict == "PASS":
        with journal.measure("publish"):
            outcome = _publish(job, artifact, verdict, verification)
    return journal.close(bundle, verdict, artifact.checkpoint, outcome)


def _publish(job: Job, artifact: Artifact, verdict: Verdict, verification: Verification) -> dict[str, str | None]:
    """Target → why it could not be published there, None where it was: one that fails does not stop the others."""
    bundle = sealed(artifact, verdict, verification=verification, signer=job.signer)
    outcome: dict[str, str | None] = {}
    for target in job.targets:
        try:
            put(bundle, target)
        except QuantgateError as error:
            _say(f"not published to {target}: {error}")
            outcome[str(target)] = str(error)
        else:
            outcome[str(target)] = None
    return outcome


def _judge(
    job: Job, artifact: Artifact, baseline: Evaluation, distance: Distance | None, python: Path | None
) -> Verdict:
    """The verdict, as soon as it is shown: the artifact is not evaluated any further then. In full, if so asked."""
    wanted, confidence = job.recipe.gate, baseline.suite.policy.confidence
    if job.full:
        candidate = evaluate(artifact, job.suite, job.device, job.runtime, python)
        return gate(baseline, candidate, wanted, distance)
    for look, candidate in enumerate(looks(artifact, job.suite, job.device, job.runtime, python)):
        verdict = gate(baseline, candidate, wanted, distance, look_confidence(look, confidence))
        if verdict.shown and verdict.spared:
            _say(f"decided after {candidate.documents} of {candidate.of} documents: {verdict.reasons[0]}")
        if verdict.shown:
            break
    return verdict


def attempt(job: Job, python: Path | None, number: str) -> Run | QuantgateError:
    """Run `job` as one of several: its verdict is a line, and so is its failure, even one that is a bug: the others
    may have taken hours, or are going to pass."""
    _say(f"{job.recipe.name}: {number}")
    try:
        done = _run(job, python)
    except QuantgateError as error:
        _say(f"{job.recipe.name}: failed: {error}")
        return error
    except Exception as error:
        _say(traceback.format_exc())
        return QuantgateError(redact(f"unexpected {type(error).__name__}: {error}"))
    _say(f"{job.recipe.name}: {verdict_line(done.manifest.gate)}")
    return done


def discard(jobs: Sequence[Job]) -> None:
    """Remove the unquantized GGUF when all that need it are done. A failed run keeps it for the next."""
    if converted := {job.plan.checkpoint.digest: job.plan.checkpoint for job in jobs if job.plan.tensors}:
        from pipelines.gguf_convert import discard

        for checkpoint in converted.values():
            discard(checkpoint)


def prepare_runtimes(jobs: Sequence[Job], python: Path | None) -> Path | None:
    """The interpreter that has vLLM. Environments are made now if need be: not after hours of quantizing."""
    from pipelines import environments

    runtimes = {job.runtime for job in jobs}
    for engine in sorted({job.recipe.quantize.engine for job in jobs} & {*environments.names()}):
        environments.make(engine)
    if "llama.cpp" in runtimes:
        environments.make(environments.LLAMA_CPP)
    return environments.make("vllm") if "vllm" in runtimes and python is None else python


def prepare(
    recipes: Sequence[Recipe | str],
    overrides: Sequence[str],
    model: Checkpoint | str | Path | None,
    to: To,
    device: str | None,
    runtime: Runtime,
    full: bool,
    signer: Signer | None = None,
) -> list[Job]:
    """A job for each recipe, or one `BadInput` for all."""
    problems: list[Problem] = []
    known = [recipe for name in recipes if (recipe := _blame(problems, _load, name, overrides))]
    names = [recipe.name for recipe in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem(f"recipe {name}", "is given twice", "give it once, or another name") for name in twice]
    checkpoint = model if isinstance(model, Checkpoint) else _blame(problems, load_model, model)
    device = _blame(problems, choose_device, device)
    if signer:
        _blame(problems, check_signer, signer)
    jobs: list[Job] = []
    for recipe in known:
        suite = _blame(problems, _suite, recipe)
        if checkpoint:
            targets = _blame(problems, _targets, to, checkpoint.label, recipe.name, len(known) > 1) or ()
            folder = next((target.path for target in targets if isinstance(target, FolderTarget)), None)
            plan = _blame(problems, make_plan, recipe, checkpoint, folder)
            _blame(problems, check_targets, targets, checkpoint, recipe)
            if plan:
                _blame(problems, _check_runtime, plan, runtime, device)
            if plan and device:  # whatever the runtime, the source is also loaded in transformers
                _blame(problems, check_room, plan.bytes_before, device)
            if plan and suite and device:
                chosen: Runtime = "llama.cpp" if plan.tensors else runtime
                jobs.append(
                    Job(
                        plan=plan,
                        suite=suite,
                        targets=targets,
                        device=device,
                        runtime=chosen,
                        full=full,
                        signer=signer,
                    )
                )
    problems += [] if problems else disk_lacks([job.plan for job in jobs])
    refuse(dict.fromkeys(problems))  # several recipes may have the same
    return jobs


def _targets(to: To, label: str, recipe: str, several: bool) -> tuple[Target, ...]:
    """Where a recipe's artifact goes."""
    if to is None:
        return (FolderTarget(path=(ARTIFACTS / label / recipe).absolute()),)
    problems: list[Problem] = []
    found = []
    for text in [to] if isinstance(to, str | Path) else to:
        target = _blame(problems, parse_target, text, model=label.rpartition("/")[2], recipe=recipe)
        if several and "{recipe}" not in str(text) and isinstance(target, FolderTarget):
            target = FolderTarget(path=target.path / recipe)
        elif several and "{recipe}" not in str(text) and target:
            problems.append(Problem(str(target), "would hold several recipes' artifacts", "put {recipe} into it"))
        if target:
            found.append(target)
    refuse(problems)
    return tuple(found)


def _blame(problems: list[Problem], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `function` returns; None if its input is bad, and why among the `problems`."""
    try:
        return function(*args, **kwargs)
    except BadInput as error:
        problems += error.problems
        return None


def _load(recipe: Recipe | str, overrides: Sequence[str]) -> Recipe:
    return load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe


def _suite(recipe: Recipe) -> Suite:
    """The recipe's suite, of tasks that lm-eval knows."""
    suite = load_suite(recipe.gate.suite)
    check_tasks(suite)
    return suite


def _check_runtime(plan: Plan, runtime: Runtime, device: str | None) -> None:
    """Refuse a plan whose artifact the runtime could not run here."""
    if plan.tensors and runtime == "vllm":
        what = "makes a GGUF, which is evaluated in llama.cpp"
        raise bad_input(f"recipe {plan.recipe.name}", what, "leave out --runtime vllm")
    if runtime == "llama.cpp" and not plan.tensors:
        what = f"makes a {plan.recipe.packing} checkpoint, which llama.cpp does not load"
        raise bad_input(f"recipe {plan.recipe.name}", what, "leave out --runtime llama.cpp")
    others = [name for name in plan.checkpoint.left_behind if name.endswith(".safetensors") and "/" not in name]
    if runtime == "vllm" and others:
        what = f"holds {others[0]}, which is no part of the model, and which vLLM would load, too"
        raise bad_input(plan.checkpoint.folder, what, "remove it, or leave out --runtime vllm")
    if runtime != "vllm" or device != "cpu":
        return
    from pipelines.vllm import runs_on_cpu

    if reason := runs_on_cpu(plan.formats, plan.recipe.quantize.kv_cache):
        raise bad_input(f"recipe {plan.recipe.name}", reason, "leave out --runtime vllm")


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)


class _Journal:
    """`run.json`, rewritten after every stage, so that a killed run has said what it finished."""

    def __init__(self, job: Job) -> None:
        checkpoint = job.plan.checkpoint
        self._head = {
            "model": checkpoint.label,
            "model_digest": checkpoint.digest,
            "recipe": job.recipe.model_dump(mode="json"),
            "to": [str(target) for target in job.targets],
            "runtime": job.runtime,
            "device": job.device,
            "full": job.full,
            "started": now(),
            "versions": package_versions(),
        }
        key = digest([checkpoint.digest, *(self._head[name] for name in ("recipe", "to", "runtime", "device", "full"))])
        self.path = cache_dir() / "runs" / key / "run.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stages: list[StageRecord] = []
        self._results: list[dict[str, object]] = []

    def add(self, name: str, *results: Result) -> None:
        """Note a finished stage: what went in, where its result is, what it cost."""
        self._note(stage_record(name, results), [_trace(result) for result in results])

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Note a stage that keeps no result of its own."""
        meter = Meter()
        yield
        self._note(StageRecord(stage=name, reused=False, **meter.read()), [])

    def _note(self, record: StageRecord, results: list[dict[str, object]]) -> None:
        _say(f"{record.stage}: " + ("reused" if record.reused else f"{record.seconds:.1f} s"))
        self._stages.append(record)
        self._results.append({**record.model_dump(), "results": results})
        write_json(self.path, {**self._head, "stages": self._results})

    def close(self, bundle: Bundle, verdict: Verdict, artifact: Path, places: Mapping[str, str | None]) -> Run:
        """Add the outcome, and return it; `places` are the targets, with the reason where there was a failure."""
        published = tuple(target for target, reason in places.items() if reason is None)
        unpublished = {target: reason for target, reason in places.items() if reason is not None}
        outcome = {"verdict": verdict.verdict, "published": published, "unpublished": unpublished}
        manifest = bundle.manifest.model_dump(mode="json")
        write_json(
            self.path,
            {**self._head, "stages": self._results, **outcome, "artifact": str(artifact), "manifest": manifest},
        )
        write_report([bundle.manifest], folder=self.path.parent)
        return Run(
            manifest=bundle.manifest,
            verdict=verdict,
            stages=tuple(self._stages),
            artifact=artifact,
            published=published,
            unpublished=unpublished,
            record=self.path,
        )


def _trace(result: Result) -> dict[str, object]:
    return {"key": result.key, "folder": str(result.folder), "inputs": result.inputs, "reused": result.reused}
