"""The quantize stage: choose the engine, let it write the weights, and put beside them what travels unchanged."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines import llama_build
from pipelines.calibrate import CalibrationTokens, calibrate
from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.engines import Written
from pipelines.gguf_plan import file_name
from pipelines.plan import Plan
from pipelines.recipe import Gguf, Recipe
from pipelines.store import Result, digest, file_digest, folder_digests, keep


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
    """
    if tokens is None and plan.recipe.calibrate is not None:
        tokens = calibrate(plan)
    plan = plan.model_copy(update={"needs": ()})  # of the machine, not of the artifact
    inputs = {
        "source": plan.checkpoint.digest,
        "quantize": plan.recipe.quantize.model_dump(),
        "modules": [part.model_dump() for part in plan.tensors or plan.modules],
        "calibration": tokens.digest if tokens else None,
        "engine": engine_digest(plan),
    }

    def make(folder: Path) -> dict[str, Any]:
        target = folder / "artifact"
        target.mkdir()
        written = _engine(plan, tokens, target)
        if not plan.tensors:
            write_companions(plan.checkpoint, written, target)
        return {
            "plan": plan,
            "written": written,
            "calibration": tokens,
            "files": folder_digests(target),
        }

    kept = keep("quantize", inputs, Artifact, make, lambda found: folder_digests(found.checkpoint) == found.files)
    # A finished artifact remembers the run that made it: its name, its gate, what its calibration cost. Now counts.
    return kept.model_copy(update={"plan": plan, "calibration": tokens})


def engine_digest(plan: Plan) -> str:
    """Digest of the code that writes the weights, so that a changed engine makes a new artifact."""
    here = Path(__file__).parent
    if plan.tensors:
        ours = [here / name for name in ("engines/llama_quantize.py", "imatrix.py", "gguf_convert.py")]
        return digest([llama_build.version(), *map(file_digest, ours)])
    beside = [here / name for name in ("rounding.py", "schemes.py", "safetensors_writer.py")]
    return digest(
        [
            file_digest(file)
            for file in (*sorted((here / "engines").glob("*.py")), *beside)
            if file.name != "llama_quantize.py"
        ]
    )


def _engine(plan: Plan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    if plan.tensors:
        from pipelines.engines import llama_quantize

        return llama_quantize.quantize(plan, tokens, folder)
    if tokens is None:
        from pipelines.engines import streaming

        return streaming.quantize(plan, None, folder)
    from pipelines.engines import layerwise

    return layerwise.quantize(plan, tokens, folder)


def write_companions(source: Checkpoint, written: Written, folder: Path) -> None:
    """Config with the quantization added, and tokenizer, chat template and generation config byte for byte."""
    config = {**source.config, "quantization_config": written.quantization_config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in source.companions:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, folder / name)
