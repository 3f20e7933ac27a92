"""The package stage: the record of a run and its card, for any verdict."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from pipelines.core.cache import Result, now, package_versions
from pipelines.core.device import processor
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.overlap import Overlap, measure_overlap
from pipelines.evaluation.scores import Evaluation
from pipelines.gating.gate import Verdict
from pipelines.planning.needs import expected_memory
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.quantization.stage import Artifact
from pipelines.recipe.load import load_task
from pipelines.reporting.card import card
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
        created=now(),
        quantgate=package_versions()["quantgate"],
        commit=_commit(),
        model=ModelRecord(
            label=source.label,
            hub_id=source.hub_id,
            revision=source.revision,
            licence=source.licence,
            spdx=spdx(source.licence),
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


def _hardware() -> dict[str, str]:
    import torch

    hardware = {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware
