"""The work of a job that is finished already, and the time, memory and disk that the rest will take."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.calibration.stage import calibrate
from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.cache import found
from pipelines.core.device import Dtype
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.stage import Share, finished_share
from pipelines.evaluation.subject import Runtime
from pipelines.flow.estimate import Expected, Finished, expected_times
from pipelines.flow.judging import judge
from pipelines.flow.prepare import Job
from pipelines.planning.plan import GgufPlan, Plan
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.stage import quantize
from pipelines.recipe.suite import Suite
from pipelines.reporting.history import seconds_of_runs
from pipelines.verification.stage import verify


class Forecast(Frozen):
    """The time and space that a job of a release will take now: a line of `--dry-run`."""

    model: str
    recipe: str
    targets: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    memory: int
    """Bytes of memory of the stage that needs the most."""
    disk: int
    """Bytes below the cache and a folder that is a target."""
    seconds: float
    """Seconds of the stages that finished runs say anything about, less what is finished."""
    unknown: tuple[str, ...]
    """Names of the expensive stages that are to be done and that finished runs say nothing about."""


SHARED = ("convert", "evaluate baseline", "evaluate source in transformers")
"""Stages that the jobs of a model share."""
PARTS = {
    "quantize": ("calibrate", "quantize"),
    "verify": ("verify",),
    "evaluate": ("evaluate baseline", "evaluate artifact"),
}
"""Expensive stage → the stages of a run's record that are finished when it is."""


def forecast_release(prepared: Sequence[Sequence[Job]], python: Path | None = None) -> tuple[Forecast, ...]:
    """Return what each job is going to take now, less what is finished already; what the jobs of a model share counts
    with the first. `python` is the interpreter of an environment that has vLLM."""
    return tuple(_forecast(job, number == 0, python) for jobs in prepared for number, job in enumerate(jobs))


def _forecast(job: Job, first: bool, python: Path | None) -> Forecast:
    plan = job.plan
    seconds = _seconds_left(job, python)
    needs = {kind: [need.needed for need in plan.needs if need.resource == kind] for kind in ("memory", "disk")}
    return Forecast(
        model=plan.checkpoint.label,
        recipe=plan.recipe.name,
        targets=tuple(map(str, job.targets)),
        bytes_before=plan.bytes_before,
        bytes_after=plan.bytes_after,
        bits_per_weight=plan.bits_per_weight,
        memory=max(needs["memory"], default=0),
        disk=sum(needs["disk"]),
        seconds=sum(left for stage, left in seconds.items() if first or stage not in SHARED),
        unknown=tuple(stage for stage in ("quantize", "evaluate artifact") if stage not in seconds),
    )


def _seconds_left(job: Job, python: Path | None) -> dict[str, float]:
    """Return the seconds that are left of each stage of a run's record, by finished runs; 0 for what is finished."""
    finished = finished_work(job, python)
    seconds = seconds_of_runs(job.plan, job.suite, job.runtime, job.device)
    for side, share in (("evaluate baseline", finished.baseline), ("evaluate artifact", finished.artifact)):
        if side in seconds:
            seconds[side] = max(0.0, seconds[side] - share.seconds)
    return seconds | {part: 0.0 for stage in finished.stages for part in PARTS[stage]}


def forecast_job(job: Job, python: Path | None = None) -> tuple[Expected, ...]:
    """Return what each expensive stage of `job` is going to take now, less what is finished already."""
    return expected_times(job.plan, job.suite, job.runtime, job.device, finished_work(job, python))


def forecast_plan(plan: Plan, suite: Suite, device: str, dtype: Dtype) -> tuple[Expected, ...]:
    """Return what each expensive stage of a run of `plan` with default options would take now."""
    runtime: Runtime = "llama.cpp" if isinstance(plan, GgufPlan) else "transformers"
    options = {"targets": (), "device": device, "dtype": dtype, "runtime": runtime, "full": False, "signer": None}
    return forecast_job(Job.model_validate({"plan": plan, "suite": suite, **options}))


def finished_work(job: Job, python: Path | None = None) -> Finished:
    """Return what `job` is going to find finished; nothing is computed."""
    plan = job.plan
    tokens = found(lambda: calibrate(plan)) if job.recipe.calibrate else None
    unmade = job.recipe.calibrate and tokens is None
    artifact = None if unmade else found(lambda: quantize(plan, tokens))
    if artifact is None:
        return Finished(baseline=_share(job, plan.checkpoint, python))
    verified = found(lambda: verify(artifact, job.device, plan.dtype))
    if verified and found(lambda: judge(job, artifact, verified.distance, python)):
        return Finished(stages=("quantize", "verify", "evaluate"))
    return Finished(
        stages=("quantize", "verify") if verified else ("quantize",),
        baseline=_share(job, plan.checkpoint, python),
        artifact=_share(job, artifact, python),
    )


def _share(job: Job, model: Checkpoint | Artifact, python: Path | None) -> Share:
    return finished_share(model, job.suite, job.device, job.runtime, python, job.evaluation_dtype)
