"""The package stage: the record of a run, for any verdict."""

import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.cache import Result, now, package_versions
from pipelines.core.device import machine
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.overlap import measure_overlap
from pipelines.evaluation.scores import Evaluation
from pipelines.gating.verdict import Verdict
from pipelines.planning.needs import expected_memory
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.quantization.artifact import Artifact
from pipelines.recipe.load import load_task
from pipelines.reporting.licence import spdx
from pipelines.reporting.record import (
    CalibrationRecord,
    EvaluationRecord,
    GateRecord,
    Manifest,
    ModelRecord,
    ModulesRecord,
    SizeRecord,
    StageRecord,
    TensorsRecord,
    VerificationRecord,
)
from pipelines.verification.results import Verification
from pipelines.verification.stage import verify

F = TypeVar("F", bound=Frozen)


def make_record(
    artifact: Artifact, verdict: Verdict, forced: str | None = None, verification: Verification | None = None
) -> Manifest:
    """Return the record of `artifact`, whatever its verdict.

    `forced` is the reason to publish without a PASS. `verification` is what the verify stage returned; without it the
    stage is asked again, and says that it reused what it had.
    """
    _, candidate, *others = verdict.evaluations
    verification = verification or verify(artifact, candidate.device)
    versions = package_versions()
    return Manifest(
        created=now(),
        quantgate=versions["quantgate"],
        commit=_commit(),
        model=_model(artifact.source),
        recipe=artifact.recipe,
        size=_fields(SizeRecord, verification),
        modules=_modules(artifact.plan),
        tensors=_tensors(artifact.plan),
        gate=_fields(GateRecord, verdict, forced=forced),
        evaluation=_evaluation(candidate, others),
        calibration=_calibration(artifact, candidate),
        verification=_fields(VerificationRecord, verification),
        files=artifact.files,
        stages=tuple(stage_record(name, results) for name, results in _costs(artifact, verdict, verification)),
        expected_memory=expected_memory(artifact.plan),
        versions=versions,
        engine=artifact.written.engine,
        hardware=machine(),
    )


def stage_record(name: str, results: tuple[Result, ...]) -> StageRecord:
    """Return the cost of a stage, which has one or several results (an evaluation has one for each block)."""
    return StageRecord(
        stage=name,
        seconds=sum(result.seconds for result in results),
        peak_memory=max(result.peak_memory for result in results),
        peak_gpu_memory=max(result.peak_gpu_memory for result in results),
        reused=all(result.reused for result in results),
    )


def _fields(record: type[F], source: Frozen, **others: Any) -> F:
    """Return a `record` with the fields of the same names of `source`, and `others`."""
    return record(**{name: getattr(source, name) for name in record.model_fields if name not in others}, **others)


def _model(source: Checkpoint) -> ModelRecord:
    return _fields(ModelRecord, source, spdx=spdx(source.licence), files=source.digests)


def _costs(
    artifact: Artifact, verdict: Verdict, verification: Verification
) -> Iterator[tuple[str, tuple[Result, ...]]]:
    """Yield each stage with its results."""
    baseline, candidate, *others = verdict.evaluations
    if artifact.calibration:
        yield "calibrate", (artifact.calibration,)
    yield "quantize", (artifact,)
    yield "verify", (verification,)
    yield "evaluate baseline", baseline.results
    yield "evaluate artifact", candidate.results
    for source in others:
        yield "evaluate source in transformers", source.results


def _modules(plan: Plan) -> tuple[ModulesRecord, ...]:
    if not isinstance(plan, CheckpointPlan):
        return ()
    counts = Counter((module.scheme, module.group_size, module.reason) for module in plan.modules)
    return tuple(
        ModulesRecord(scheme=scheme, group_size=group_size, reason=reason, count=count)
        for (scheme, group_size, reason), count in counts.most_common()
    )


def _tensors(plan: Plan) -> tuple[TensorsRecord, ...]:
    if not isinstance(plan, GgufPlan):
        return ()
    counts = Counter((tensor.type, tensor.reason) for tensor in plan.tensors)
    return tuple(TensorsRecord(type=kind, reason=reason, count=count) for (kind, reason), count in counts.most_common())


def _evaluation(candidate: Evaluation, others: Sequence[Evaluation]) -> EvaluationRecord:
    blocks = [task.about for task in candidate.tasks]
    return EvaluationRecord(
        suite=candidate.suite,
        runtime=candidate.runtime,
        device=candidate.device,
        dtype=candidate.dtype,
        task_versions={block.task: block.task_version for block in blocks},
        metrics={block.task: block.metric for block in blocks},
        shots={block.task: block.shots for block in blocks},
        splits={block.task: block.split for block in blocks},
        data={block.task: block.data for block in blocks},
        datasets={block.task: found for block in blocks if (found := load_task(block.task).dataset)},
        source_in_transformers={task.about.task: task.mean for source in others for task in source.tasks},
    )


def _calibration(artifact: Artifact, candidate: Evaluation) -> CalibrationRecord | None:
    """Return which text the method saw, and how much of the suite's text is in it; None where it saw none."""
    tokens = artifact.calibration
    if tokens is None:
        return None
    overlap = measure_overlap(tokens, artifact.source, candidate.suite)
    return _fields(
        CalibrationRecord, tokens, gate_documents=overlap.documents, gate_documents_overlapping=overlap.overlapping
    )


def _commit() -> str | None:
    """Return the commit of a quantgate that runs from a checkout, with `+dirty` when it was edited."""
    here = Path(__file__).parents[1]
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
