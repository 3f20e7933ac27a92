"""The quantize stage: choose the engine, let it write the weights, and put beside them what travels unchanged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from pipelines.calibration.stage import calibrate
from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import folder_digests, keep
from pipelines.core.errors import bad_input
from pipelines.core.records import read_record
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.planning.quantization_config import written_config
from pipelines.planning.readers import own_type
from pipelines.quantization.artifact import Artifact, CheckpointArtifact, GgufArtifact, KeptArtifact
from pipelines.quantization.choice import engine_identity, engine_modules, run_engine, run_llama_cpp
from pipelines.quantization.files import quantized_module
from pipelines.quantization.written import Written, packed_config
from pipelines.runtimes.generation import check_generation

A = TypeVar("A", CheckpointArtifact, GgufArtifact)


@overload
def quantize(plan: CheckpointPlan, tokens: CalibrationTokens | None = None) -> CheckpointArtifact: ...
@overload
def quantize(plan: GgufPlan, tokens: CalibrationTokens | None = None) -> GgufArtifact: ...
def quantize(plan: Plan, tokens: CalibrationTokens | None = None) -> Artifact:
    """Make the artifact that `plan` describes, or find it finished.

    A method that needs calibration takes `tokens`, or the recipe's own set when none are given.

    Raises:
        BadInput: a kept tensor of the source holds NaN or infinities, or its generation config cannot be read.
        QuantgateError: the engine failed.
    """
    check_generation(plan.checkpoint.folder)
    if tokens is None and plan.recipe.calibrate is not None:
        tokens = calibrate(plan)
    match plan:
        case CheckpointPlan():
            checkpoint = plan
            return _keep(plan, tokens, CheckpointArtifact, lambda folder: _write_checkpoint(checkpoint, tokens, folder))
        case GgufPlan():
            file = plan
            return _keep(plan, tokens, GgufArtifact, lambda folder: _write_gguf(file, tokens, folder))


def _keep(plan: Plan, tokens: CalibrationTokens | None, kind: type[A], write: Callable[[Path], Written]) -> A:
    """Return the finished artifact of `plan`, or make it: `write` fills its folder."""
    plan = plan.model_copy(update={"needs": ()})  # of the machine, not of the artifact
    inputs = {
        "source": plan.checkpoint.digest,
        "quantize": plan.recipe.quantize.model_dump(),
        "modules": [part.model_dump() for part in plan.parts],
        "calibration": tokens.digest if tokens else None,
        "engine": engine_identity(plan),
        "dtype": plan.dtype if tokens else None,
    }

    def make(folder: Path) -> dict[str, Any]:
        target = folder / "artifact"
        target.mkdir()
        written = write(target)
        made = {
            "plan": plan,
            "written": written,
            "calibration": tokens,
            "files": folder_digests(target),
        }
        return {**made, "peak_memory": written.peak_memory} if written.peak_memory else made

    def is_intact(found: A) -> bool:
        return folder_digests(found.checkpoint) == found.files

    kept = keep("quantize", inputs, kind, make, is_intact, engine_modules(plan))
    # A finished artifact remembers the run that made it: its name, its gate, what its calibration cost. Now counts.
    return kept.model_copy(update={"plan": plan, "calibration": tokens})


def _write_gguf(plan: GgufPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Write all files of a GGUF's artifact into `folder`."""
    check_finite(plan.checkpoint, plan.checkpoint.tensors)
    return run_llama_cpp(plan, tokens, folder)


def _write_checkpoint(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Write all files of a checkpoint's artifact into `folder`."""
    check_finite(plan.checkpoint, (t for t in plan.checkpoint.tensors if not quantized_module(plan, t)))
    written = _write_weights(plan, tokens, folder)
    write_companions(plan.checkpoint, written, folder)
    return written


def _write_weights(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Write the weight files into `folder`, repacked where the recipe asks for another packing than the engine's."""
    native = plan.recipe.engine_packing
    if plan.recipe.packing == native:
        return run_engine(plan, tokens, folder)
    from pipelines.formats.repack import repack

    inner = folder.parent / native
    inner.mkdir()
    before = plan.stored_as(native)
    written = run_engine(before, tokens, inner)
    write_companions(plan.checkpoint, written, inner)
    shapes = {module.name: module.shape for module in plan.quantized.values()}
    dtype = next(iter(plan.quantized.values())).dtype
    repack(read_checkpoint(inner), shapes, dtype, before.form, plan.form, folder)
    shutil.rmtree(inner)
    config = packed_config(plan)
    if plan.recipe.packing == "compressed-tensors":
        config = {"quantization_config": written_config(plan), "configs": {}}
    return written.model_copy(update=config)


def write_companions(source: Checkpoint, written: Written, folder: Path) -> None:
    """Write the config with the quantization added; copy tokenizer, chat template and generation config as they are."""
    described = written.quantization_config
    config = {**source.config, **own_type(described), "quantization_config": described}
    for name, content in {"config.json": config, **written.configs}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in source.companions:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, folder / name)


def read_artifact(folder: Path) -> Artifact:
    """Return the artifact whose files are in `folder`, the one that `quantgate quantize` prints.

    Raises:
        BadInput: there is none, or this version of quantgate cannot read its record.
    """
    if (folder / "quantgate.json").is_file():
        raise bad_input(folder, "is published already", "copy it, or `quantgate pull` it to another place")
    if not (folder.parent / "result.json").is_file():
        what = "is no artifact of quantgate: it holds no quantgate.json, and no result.json lies beside it"
        raise bad_input(folder, what, "give the folder that `run --to` published into, or that `quantize` printed")
    made = read_record(folder.parent / "result.json", KeptArtifact, "an artifact").root
    return made.model_copy(update={"folder": folder.parent.absolute()})
