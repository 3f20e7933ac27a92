"""The quantize stage: choose the engine, let it write the weights, and put beside them what travels unchanged."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.calibration.stage import CalibrationTokens, calibrate
from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import Result, digest, file_digest, folder_digests, keep
from pipelines.environments import isolated, llama_build
from pipelines.planning.gguf import file_name
from pipelines.planning.plan import Plan
from pipelines.planning.quantization_config import written_config
from pipelines.planning.readers import own_type
from pipelines.quantization.files import quantized_module
from pipelines.quantization.written import Written, packed_config, worker_module
from pipelines.recipe.recipe import Gguf, Recipe
from pipelines.runtimes.generation import check_generation


class Artifact(Result):
    """A quantized checkpoint, not yet judged."""

    plan: Plan
    written: Written
    calibration: CalibrationTokens | None
    files: dict[str, str]
    """SHA-256 of each file of `checkpoint`."""

    @property
    def checkpoint(self) -> Path:
        """The folder that runtimes load."""
        return self.folder / "artifact"

    @property
    def gguf(self) -> Path | None:
        """The file that llama.cpp loads, if this is one."""
        method = self.recipe.quantize
        return self.checkpoint / file_name(self.source, method) if isinstance(method, Gguf) else None

    @property
    def digest(self) -> str:
        """Of what decides what the model computes."""
        return file_digest(self.gguf) if self.gguf else read_checkpoint(self.checkpoint).digest

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def source(self) -> Checkpoint:
        return self.plan.checkpoint


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
    plan = plan.model_copy(update={"needs": ()})  # of the machine, not of the artifact
    inputs = {
        "source": plan.checkpoint.digest,
        "quantize": plan.recipe.quantize.model_dump(),
        "modules": [part.model_dump() for part in plan.tensors or plan.modules],
        "calibration": tokens.digest if tokens else None,
        "engine": engine_digest(plan),
        "dtype": plan.dtype if tokens else None,
    }

    def make(folder: Path) -> dict[str, Any]:
        target = folder / "artifact"
        target.mkdir()
        check_finite(plan.checkpoint, (t for t in plan.checkpoint.tensors if not quantized_module(plan, t)))
        written = _write_weights(plan, tokens, target)
        if not plan.tensors:
            write_companions(plan.checkpoint, written, target)
        made = {
            "plan": plan,
            "written": written,
            "calibration": tokens,
            "files": folder_digests(target),
        }
        return {**made, "peak_memory": written.peak_memory} if written.peak_memory else made

    kept = keep("quantize", inputs, Artifact, make, lambda found: folder_digests(found.checkpoint) == found.files)
    # A finished artifact remembers the run that made it: its name, its gate, what its calibration cost. Now counts.
    return kept.model_copy(update={"plan": plan, "calibration": tokens})


def engine_digest(plan: Plan) -> str:
    """Digest of the code that writes the weights, so that a changed engine makes a new artifact."""
    here = Path(__file__).parents[1]
    quantization = here / "quantization"
    if plan.tensors:
        ours = [quantization / name for name in ("engines/llama_cpp.py", "gguf/imatrix.py", "gguf/convert.py")]
        return digest([llama_build.version(), *map(file_digest, ours)])
    shared = ("planning/readers.py", "checkpoint/writer.py", "quantization/written.py", "quantization/files.py")
    files = [*(here / name for name in shared), *sorted((here / "formats").glob("*.py"))]
    engine = plan.recipe.quantize.engine
    if engine == "quantgate":
        files += [quantization / "engines/streaming.py", quantization / "engines/layerwise.py"]
        return digest([file_digest(file) for file in [*files, *sorted((quantization / "methods").glob("*.py"))]])
    if engine == "bitsandbytes":
        files += [quantization / "engines/bitsandbytes.py"]
        return digest([version("bitsandbytes"), *map(file_digest, files)])
    files += [quantization / "engines/other_projects.py"]
    files += [here / "environments" / "workers" / f"{worker_module(engine)}.py"]
    return digest([isolated.identity(engine), *map(file_digest, files)])


def _write_weights(plan: Plan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Quantize, and repack where the recipe asks for another packing than the engine's."""
    native = plan.recipe.engine_packing
    if plan.recipe.packing == native:
        return _engine(plan, tokens, folder)
    from pipelines.formats.repack import repack

    inner = folder.parent / native
    inner.mkdir()
    before = plan.stored_as(native)
    written = _engine(before, tokens, inner)
    write_companions(plan.checkpoint, written, inner)
    shapes = {module.name: module.shape for module in plan.quantized.values()}
    dtype = next(iter(plan.quantized.values())).dtype
    repack(read_checkpoint(inner), shapes, dtype, before.form, plan.form, folder)
    shutil.rmtree(inner)
    config = packed_config(plan)
    if plan.recipe.packing == "compressed-tensors":
        config = {"quantization_config": written_config(plan), "configs": {}}
    return written.model_copy(update=config)


def _engine(plan: Plan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    if plan.recipe.quantize.engine == "bitsandbytes":
        from pipelines.quantization.engines import bitsandbytes

        return bitsandbytes.quantize(plan, tokens, folder)
    if plan.recipe.quantize.engine != "quantgate":
        from pipelines.quantization.engines import other_projects

        return other_projects.quantize(plan, tokens, folder)
    if plan.tensors:
        from pipelines.quantization.engines import llama_cpp

        return llama_cpp.quantize(plan, tokens, folder)
    if tokens is None:
        from pipelines.quantization.engines import streaming

        return streaming.quantize(plan, None, folder)
    from pipelines.quantization.engines import layerwise

    return layerwise.quantize(plan, tokens, folder)


def write_companions(source: Checkpoint, written: Written, folder: Path) -> None:
    """Config with the quantization added, and tokenizer, chat template and generation config byte for byte."""
    described = written.quantization_config
    config = {**source.config, **own_type(described), "quantization_config": described}
    for name, content in {"config.json": config, **written.configs}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in source.companions:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, folder / name)
