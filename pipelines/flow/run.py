"""The whole flow in one place: load, plan, calibrate, quantize, verify, evaluate, gate, package, publish."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from pipelines.calibration.stage import calibrate
from pipelines.checkpoint.dtypes import fits, model_bytes
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.core import progress
from pipelines.core.cache import Meter, Result, cache_dir, digest, found, now, package_versions, write_json
from pipelines.core.device import Dtype, check_room, choose_device
from pipelines.core.errors import BadInput, Problem, QuantgateError, bad_input, refuse
from pipelines.core.secrets import redact
from pipelines.core.strict_yaml import Frozen
from pipelines.core.text import duration, size
from pipelines.evaluation.looks import LOOKS, look_confidence
from pipelines.evaluation.overlap import measure_overlap
from pipelines.evaluation.scores import Evaluation
from pipelines.evaluation.stage import Runtime, Share, finished_share, looks
from pipelines.evaluation.tasks import check_suite, check_tasks
from pipelines.flow.display import Display
from pipelines.flow.estimate import Expected, Finished, expected_times, in_all
from pipelines.flow.remedy import remedies
from pipelines.gating.gate import Verdict, gate
from pipelines.gating.power import blindness, foresee
from pipelines.planning.needs import disk_lacks
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.planning.stage import make_plan
from pipelines.publishing.places.place import FolderTarget
from pipelines.publishing.places.targets import Target, parse_target
from pipelines.publishing.provenance import Signer, check_signer
from pipelines.publishing.stage import EXIT_CODES, check_targets, put, sealed
from pipelines.quantization.stage import Artifact, quantize
from pipelines.recipe.load import expected_documents, load_recipe, load_suite
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite
from pipelines.reporting.card import bounds, verdict_line
from pipelines.reporting.history import discordance
from pipelines.reporting.package import Bundle, package, stage_record
from pipelines.reporting.record import REPORT, Manifest, StageRecord
from pipelines.reporting.report import html, markdown
from pipelines.runtimes.distance import Distance
from pipelines.runtimes.generation import check_generation
from pipelines.verification.results import Verification
from pipelines.verification.stage import verify

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Result)

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
    dtype: Dtype = "auto",
) -> Run:
    """Take `model` (the default model unless given) through `recipe`, and publish it to `to` if the gate says PASS.

    `to` is a target or several (`pipelines.publishing.places`); `{model}` and `{recipe}` stand for their names in it.

    Each stage's result is kept: the same run again does no work twice, and a killed one goes on where it was. Baseline
    and artifact are evaluated in `runtime`; `python` is the interpreter of an environment that has vLLM (one is made
    unless given). Both are evaluated until the verdict is shown, or in `full`. Models compute in `dtype`: `auto` is
    float32 on a CPU whose memory holds it, else the checkpoint's own type.

    Raises:
        BadInput: everything that makes the run impossible, before anything expensive starts.
    """
    (job,) = prepare([recipe], (), model, to, device, runtime, full, signer, dtype)
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
    dtype: Dtype = "auto",
) -> dict[str, Run | QuantgateError]:
    """Take one model through several recipes: by recipe name, what each came to.

    They share the baseline's evaluation and, where they ask for the same, the calibration text. A folder `to` without
    `{recipe}` in it is the one above: each recipe publishes below it, under its name. `overrides` apply to recipes
    given by name. A recipe that fails does not stop the others; its error takes the place of its run.

    Raises:
        BadInput: everything that makes any of the runs impossible, before the first starts.
    """
    jobs = prepare(recipes, overrides, model, to, device, runtime, full, signer, dtype)
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
    dtype: Dtype
    """As it was asked for; `plan.dtype` is what that came to."""
    runtime: Runtime
    full: bool
    signer: Signer | None

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe


def _run(job: Job, python: Path | None) -> Run:
    journal = _Journal(job)
    times = expected_of(job, python)
    expected = {one.stage: 0.0 if one.done else max(1.0, one.seconds) for one in times}
    title = f"{job.recipe.name} on {job.plan.checkpoint.label}, in {job.plan.dtype} on {job.device}"
    title += f"\nexpected   {in_all(times)}"
    display = Display(title, _stages(job), expected, journal.path.with_name("run.log"))
    with display.shown():
        return _through(job, python, journal, display)


def expected_of(job: Job, python: Path | None = None) -> tuple[Expected, ...]:
    """Return what each expensive stage of `job` is going to take now, less what is finished already."""
    return expected_times(job.plan, job.suite, job.runtime, job.device, finished_work(job, python))


def foresee_times(plan: Plan, suite: Suite, device: str, dtype: Dtype) -> tuple[Expected, ...]:
    """Return what each expensive stage of a run of `plan` with default options would take now."""
    runtime: Runtime = "llama.cpp" if isinstance(plan, GgufPlan) else "transformers"
    options = {"targets": (), "device": device, "dtype": dtype, "runtime": runtime, "full": False, "signer": None}
    return expected_of(Job.model_validate({"plan": plan, "suite": suite, **options}))


def finished_work(job: Job, python: Path | None = None) -> Finished:
    """Return what `job` is going to find finished; nothing is computed."""
    plan, stages = job.plan, []
    tokens = found(lambda: calibrate(plan)) if job.recipe.calibrate else None
    unmade = job.recipe.calibrate and tokens is None
    artifact = None if unmade else found(lambda: quantize(plan, tokens))
    baseline = _share(job, plan.checkpoint, python)
    if artifact is None:
        return Finished(baseline=baseline)
    stages.append("quantize")
    if verified := found(lambda: verify(artifact, job.device, plan.dtype)):
        stages.append("verify")
    candidate = _share(job, artifact, python)
    if verified and baseline.documents and candidate.documents:
        distance = verified.distance
        if found(lambda: _judge(job, artifact, distance, python)):
            stages.append("evaluate")
    return Finished(stages=tuple(stages), baseline=baseline, artifact=candidate)


def _share(job: Job, model: Checkpoint | Artifact, python: Path | None) -> Share:
    return finished_share(model, job.suite, job.device, job.runtime, python, _dtype_of(job))


def _dtype_of(job: Job) -> Dtype:
    """What both sides of the evaluation are asked to compute in."""
    dtypes: dict[Runtime, Dtype] = {"transformers": job.plan.dtype, "vllm": job.dtype, "llama.cpp": "auto"}
    return dtypes[job.runtime]


def _stages(job: Job) -> list[str]:
    """The stages that `job` goes through, as a person sees them."""
    text = ["calibrate"] if job.recipe.calibrate else []
    overlap = ["overlap"] if job.recipe.calibrate else []
    if isinstance(job.plan, GgufPlan):
        stages = [*text, "convert", "quantize", "verify", "evaluate", "evaluate source in transformers", *overlap]
    else:
        stages = [*text, "quantize", "verify", "evaluate", *overlap]
    return [*stages, "package", "publish"]


def _through(job: Job, python: Path | None, journal: "_Journal", display: Display) -> Run:
    """Take `job` through its stages."""
    plan, suite = job.plan, job.suite
    done = _Steps(journal, display)
    tokens = done.step("calibrate", lambda: calibrate(plan)) if job.recipe.calibrate else None
    if isinstance(plan, GgufPlan):
        from pipelines.quantization.gguf.convert import convert

        done.step("convert", lambda: convert(plan.checkpoint))
    artifact = done.step("quantize", lambda: quantize(plan, tokens))
    verification = done.step("verify", lambda: verify(artifact, job.device, plan.dtype))
    with display.stage("evaluate"):
        verdict = _judge(job, artifact, verification.distance, python)
        baseline, candidate = verdict.evaluations
        journal.add("evaluate baseline", *baseline.results)
        journal.add("evaluate artifact", *candidate.results)
        display.finish(_cost((*baseline.results, *candidate.results)))
    if isinstance(plan, GgufPlan):  # what the runtime itself changes is no matter of the gate, but of the report
        with display.stage("evaluate source in transformers"):
            source = _as_far_as(candidate, looks(plan.checkpoint, suite, job.device, dtype=plan.dtype))
            journal.add("evaluate source in transformers", *source.results)
        verdict = verdict.model_copy(update={"evaluations": (*verdict.evaluations, source)})
    if tokens:
        done.step("overlap", lambda: measure_overlap(tokens, plan.checkpoint, suite))
    with display.stage("package"), journal.measure("package"):
        bundle = package(artifact, verdict, verification=verification)
    outcome: dict[str, str | None] = {}
    if verdict.verdict == "PASS":
        with display.stage("publish"), journal.measure("publish"):
            outcome = _publish(job, artifact, verdict, verification)
    return journal.close(bundle, verdict, artifact.checkpoint, outcome)


class _Steps:
    """Takes stages one by one, shows each and notes it in the journal."""

    def __init__(self, journal: "_Journal", display: Display) -> None:
        self._journal, self._display = journal, display

    def step(self, name: str, work: Callable[[], R]) -> R:
        """Return the result of `work`, which is the stage `name`."""
        with self._display.stage(name):
            result = work()
            self._display.finish(_cost((result,)))
        self._journal.add(name, result)
        return result


def _cost(results: Sequence[Result]) -> str:
    """What a stage cost now, for a person: what was found finished cost nothing."""
    made = [result for result in results if not result.reused]
    if not made:
        return "reused"
    cost = f"{duration(sum(result.seconds for result in made))}, {size(max(r.peak_memory for r in made))} of memory"
    return cost if len(made) == len(results) else f"{cost}, the rest reused"


def _as_far_as(seen: Evaluation, looked: Iterator[Evaluation]) -> Evaluation:
    """Return the evaluation of as many documents as `seen` has."""
    with progress.bar(seen.documents, "source", "document"):
        return next(found for found in looked if found.documents >= seen.documents)


def _publish(job: Job, artifact: Artifact, verdict: Verdict, verification: Verification) -> dict[str, str | None]:
    """Target → why it could not be published there, None where it was: one that fails does not stop the others."""
    bundle = sealed(artifact, verdict, verification=verification, signer=job.signer)
    outcome: dict[str, str | None] = {}
    for target in job.targets:
        try:
            put(bundle, target)
        except QuantgateError as error:
            progress.say(f"not published to {target}: {error}")
            outcome[str(target)] = str(error)
        else:
            outcome[str(target)] = None
    return outcome


def _judge(job: Job, artifact: Artifact, distance: Distance | None, python: Path | None) -> Verdict:
    """Evaluate baseline and artifact in turn, look by look, until the verdict is shown; to the end, if so asked."""
    plan, confidence = job.plan, job.suite.policy.confidence
    sides = tuple(
        looks(model, job.suite, job.device, job.runtime, python, _dtype_of(job), keep_loaded=_fit_both(job))
        for model in (plan.checkpoint, artifact)
    )
    count = expected_documents(job.suite)
    with progress.bar(count and 2 * count, "evaluate", "document"):
        for look, (baseline, candidate) in enumerate(zip(*sides, strict=True)):
            whole = job.full and look == len(LOOKS) - 1
            looked = confidence if whole else look_confidence(look, confidence)
            verdict = gate(baseline, candidate, job.recipe.gate, distance, looked)
            if look == 0 and (seen := foresee(job.recipe, job.suite, discordance(job.recipe), baseline)):
                progress.say(seen.sentence(job.suite.name))
            if verdict.retention is not None:
                what = f"so far {verdict.retention:.1%} of the baseline kept ({bounds(verdict)})"
                progress.note(f"{what}, on {candidate.documents:,} documents")
            if verdict.shown and verdict.spared and not job.full:
                what = f"decided after {candidate.documents} of {candidate.of} documents"
                progress.say(f"{what}: {verdict.reasons[0]}")
            if verdict.shown and not job.full:
                break
    return verdict


def _fit_both(job: Job) -> bool:
    """Tell whether baseline and artifact can be in memory at once; vLLM takes nearly all that a GPU has for one."""
    if job.runtime == "vllm" and job.device != "cpu":
        return False
    return fits(job.plan.checkpoint, job.plan.dtype, models=2, device=job.device)


def attempt(job: Job, python: Path | None, number: str) -> Run | QuantgateError:
    """Run `job` as one of several: its verdict is a line, and so is its failure, even one that is a bug: the others
    may have taken hours, or are going to pass."""
    progress.say(f"{job.recipe.name}: {number}")
    try:
        done = _run(job, python)
    except QuantgateError as error:
        progress.say(f"{job.recipe.name}: failed: {error}")
        return error
    except Exception as error:
        progress.say(traceback.format_exc())
        return QuantgateError(redact(f"unexpected {type(error).__name__}: {error}"))
    progress.say(f"{job.recipe.name}: {verdict_line(done.manifest.gate)}")
    return done


def discard(jobs: Sequence[Job]) -> None:
    """Remove the unquantized GGUF when all that need it are done. A failed run keeps it for the next."""
    if converted := {job.plan.checkpoint.digest: job.plan.checkpoint for job in jobs if isinstance(job.plan, GgufPlan)}:
        from pipelines.quantization.gguf.convert import discard

        for checkpoint in converted.values():
            discard(checkpoint)


def prepare_runtimes(jobs: Sequence[Job], python: Path | None) -> Path | None:
    """The interpreter that has vLLM. Environments are made now if need be: not after hours of quantizing."""
    from pipelines.environments import isolated

    runtimes = {job.runtime for job in jobs}
    for engine in sorted({job.recipe.engine for job in jobs} & {*isolated.names()}):
        isolated.make(engine)
    if "llama.cpp" in runtimes:
        isolated.make(isolated.LLAMA_CPP)
    return isolated.make("vllm") if "vllm" in runtimes and python is None else python


def prepare(
    recipes: Sequence[Recipe | str],
    overrides: Sequence[str],
    model: Checkpoint | str | Path | None,
    to: To,
    device: str | None,
    runtime: Runtime,
    full: bool,
    signer: Signer | None = None,
    dtype: Dtype = "auto",
) -> list[Job]:
    """A job for each recipe, or one `BadInput` for all."""
    problems: list[Problem] = []
    known = [recipe for name in recipes if (recipe := _blame(problems, _load, name, overrides))]
    names = [recipe.name for recipe in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem(f"recipe {name}", "is given twice", "give it once, or another name") for name in twice]
    checkpoint = model if isinstance(model, Checkpoint) else _blame(problems, load_model, model)
    if checkpoint:
        _blame(problems, check_generation, checkpoint.folder)
    device = _blame(problems, choose_device, device)
    if signer:
        _blame(problems, check_signer, signer)
    jobs: list[Job] = []
    for recipe in known:
        suite = _blame(problems, _suite, recipe)
        if checkpoint:
            targets = _blame(problems, _targets, to, checkpoint.label, recipe.name, len(known) > 1) or ()
            folder = next((target.path for target in targets if isinstance(target, FolderTarget)), cache_dir())
            plan = _blame(problems, make_plan, recipe, checkpoint, folder, device, dtype)
            _blame(problems, check_targets, targets, checkpoint, recipe)
            if plan:
                _blame(problems, _check_runtime, plan, runtime, device)
            if plan and device:  # whatever the runtime, the source is also loaded in transformers
                _blame(problems, check_room, model_bytes(plan.checkpoint, plan.dtype), device)
            if plan and suite and device:
                chosen: Runtime = "llama.cpp" if isinstance(plan, GgufPlan) else runtime
                jobs.append(
                    Job(
                        plan=plan,
                        suite=suite,
                        targets=targets,
                        device=device,
                        dtype=dtype,
                        runtime=chosen,
                        full=full,
                        signer=signer,
                    )
                )
    problems += [] if problems else disk_lacks([job.plan for job in jobs])
    for suite in dict.fromkeys(job.suite for job in jobs) if not problems else ():
        _blame(problems, _check_questions, suite, jobs[0].plan.checkpoint)
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


def _check_questions(suite: Suite, checkpoint: Checkpoint) -> None:
    """Refuse a suite that cannot be asked of the model, or that could tell nothing of it."""
    asked = check_suite(suite, checkpoint)
    refuse(blindness(suite, {task: found.independent for task, found in asked.items()}))


def _check_runtime(plan: Plan, runtime: Runtime, device: str | None) -> None:
    """Refuse a plan whose artifact the runtime could not run here."""
    match plan:
        case GgufPlan():
            if runtime == "vllm":
                what = "makes a GGUF, which is evaluated in llama.cpp"
                raise bad_input(f"recipe {plan.recipe.name}", what, "leave out --runtime vllm")
        case CheckpointPlan():
            _check_checkpoint_runtime(plan, runtime, device)


def _check_checkpoint_runtime(plan: CheckpointPlan, runtime: Runtime, device: str | None) -> None:
    """Refuse a plan whose checkpoint the runtime could not run here."""
    if runtime == "llama.cpp":
        what = f"makes a {plan.recipe.packing} checkpoint, which llama.cpp does not load"
        raise bad_input(f"recipe {plan.recipe.name}", what, "leave out --runtime llama.cpp")
    others = [name for name in plan.checkpoint.left_behind if name.endswith(".safetensors") and "/" not in name]
    if runtime == "vllm" and others:
        what = f"holds {others[0]}, which is no part of the model, and which vLLM would load, too"
        raise bad_input(plan.checkpoint.folder, what, "remove it, or leave out --runtime vllm")
    if runtime != "vllm" or device != "cpu":
        return
    from pipelines.runtimes.vllm import runs_on_cpu

    if reason := runs_on_cpu(plan.formats, plan.recipe.kv_cache):
        raise bad_input(f"recipe {plan.recipe.name}", reason, "leave out --runtime vllm")


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
            "dtype": job.plan.dtype,
            "full": job.full,
            "started": now(),
            "versions": package_versions(),
        }
        told = ("recipe", "to", "runtime", "device", "dtype", "full")
        key = digest([checkpoint.digest, *(self._head[name] for name in told)])
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
