"""The whole flow in one place: load, plan, calibrate, quantize, verify, evaluate, gate, package, publish."""

import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pipelines.calibration.stage import calibrate
from pipelines.checkpoint.headers import Checkpoint
from pipelines.core import progress
from pipelines.core.cache import Result
from pipelines.core.device import Dtype
from pipelines.core.errors import QuantgateError
from pipelines.core.secrets import redact
from pipelines.core.text import duration, size
from pipelines.evaluation.overlap import measure_overlap
from pipelines.evaluation.stage import looks
from pipelines.evaluation.subject import Runtime
from pipelines.flow.display import Display
from pipelines.flow.estimate import in_all
from pipelines.flow.forecast import forecast_job
from pipelines.flow.journal import Journal, Run
from pipelines.flow.judging import as_far_as, judge
from pipelines.flow.prepare import Job, To, prepare, prepare_runtimes, try_targets
from pipelines.gating.verdict import Verdict
from pipelines.planning.plan import GgufPlan, Plan
from pipelines.publishing.signature import Signer
from pipelines.publishing.stage import make_bundle, put
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.stage import quantize
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.package import make_record
from pipelines.reporting.sentences import verdict_line
from pipelines.verification.results import Verification
from pipelines.verification.stage import verify

R = TypeVar("R", bound=Result)


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
    try_targets([job])
    done = _run(job, prepare_runtimes([job], python))
    discard_conversions([job.plan])
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
    """Take one model through several recipes, and return what each came to, by the recipe's name.

    They share the baseline's evaluation and, where they ask for the same, the calibration text. A folder `to` without
    `{recipe}` in it is the one above: each recipe publishes below it, under its name. `overrides` apply to recipes
    given by name. A recipe that fails does not stop the others; its error takes the place of its run.

    Raises:
        BadInput: everything that makes any of the runs impossible, before the first starts.
    """
    jobs = prepare(recipes, overrides, model, to, device, runtime, full, signer, dtype)
    try_targets(jobs)
    python = prepare_runtimes(jobs, python)
    done = {job.recipe.name: attempt(job, python, f"{number} of {len(jobs)}") for number, job in enumerate(jobs, 1)}
    discard_conversions(job.plan for job in jobs)
    return done


def _run(job: Job, python: Path | None) -> Run:
    journal = Journal(job)
    times = forecast_job(job, python)
    expected = {one.stage: 0.0 if one.done else max(1.0, one.seconds) for one in times}
    title = f"{job.recipe.name} on {job.plan.checkpoint.label}, in {job.plan.dtype} on {job.device}"
    title += f"\nexpected   {in_all(times)}"
    display = Display(title, _stages(job), expected, journal.path.with_name("run.log"))
    with display.shown():
        return _through(job, python, journal, display)


def _stages(job: Job) -> list[str]:
    """Return the names of the stages that `job` goes through, as a person sees them."""
    text = ["calibrate"] if job.recipe.calibrate else []
    overlap = ["overlap"] if job.recipe.calibrate else []
    if isinstance(job.plan, GgufPlan):
        stages = [*text, "convert", "quantize", "verify", "evaluate", "evaluate source in transformers", *overlap]
    else:
        stages = [*text, "quantize", "verify", "evaluate", *overlap]
    return [*stages, "package", "publish"]


def _through(job: Job, python: Path | None, journal: Journal, display: Display) -> Run:
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
        verdict = judge(job, artifact, verification.distance, python)
        baseline, candidate = verdict.evaluations
        journal.add("evaluate baseline", *baseline.results)
        journal.add("evaluate artifact", *candidate.results)
        display.finish(_cost((*baseline.results, *candidate.results)))
    if isinstance(plan, GgufPlan):  # what the runtime itself changes is no matter of the gate, but of the report
        with display.stage("evaluate source in transformers"):
            source = as_far_as(candidate, looks(plan.checkpoint, suite, job.device, dtype=plan.dtype))
            journal.add("evaluate source in transformers", *source.results)
        verdict = verdict.model_copy(update={"evaluations": (*verdict.evaluations, source)})
    if tokens:
        done.step("overlap", lambda: measure_overlap(tokens, plan.checkpoint, suite))
    with display.stage("package"), journal.measure("package"):
        manifest = make_record(artifact, verdict, verification=verification)
    outcome: dict[str, str | None] = {}
    if verdict.verdict == "PASS":
        with display.stage("publish"), journal.measure("publish"):
            outcome = _publish(job, artifact, verdict, verification)
    return journal.close(manifest, verdict, artifact.checkpoint, outcome)


class _Steps:
    """A runner of stages, one by one, which shows each and notes it in the journal."""

    def __init__(self, journal: Journal, display: Display) -> None:
        self._journal, self._display = journal, display

    def step(self, name: str, work: Callable[[], R]) -> R:
        """Return the result of `work`, which is the stage `name`."""
        with self._display.stage(name):
            result = work()
            self._display.finish(_cost((result,)))
        self._journal.add(name, result)
        return result


def _cost(results: Sequence[Result]) -> str:
    """Return the cost of a stage in this run as text: what was found finished cost nothing."""
    made = [result for result in results if not result.reused]
    if not made:
        return "reused"
    cost = f"{duration(sum(result.seconds for result in made))}, {size(max(r.peak_memory for r in made))} of memory"
    return cost if len(made) == len(results) else f"{cost}, the rest reused"


def _publish(job: Job, artifact: Artifact, verdict: Verdict, verification: Verification) -> dict[str, str | None]:
    """Publish to each target; return target → reason of its failure, or None. A failure does not stop the others."""
    bundle = make_bundle(artifact, verdict, verification=verification, signer=job.signer)
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


def discard_conversions(plans: Iterable[Plan]) -> None:
    """Remove the unquantized GGUFs when all `plans` that need them are done. A failed run keeps its for the next."""
    if converted := {plan.checkpoint.digest: plan.checkpoint for plan in plans if isinstance(plan, GgufPlan)}:
        from pipelines.quantization.gguf.convert import discard

        for checkpoint in converted.values():
            discard(checkpoint)
