"""A quantized model with its plan, as data: what quantizing hands to the stages after it."""

from pathlib import Path

from pydantic import RootModel

from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import Result, file_digest
from pipelines.planning.gguf import file_name
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.quantization.written import Written
from pipelines.recipe.recipe import Recipe


class QuantizedModel(Result):
    """What artifacts of both kinds have: a quantized model, not yet judged."""

    plan: Plan
    written: Written
    calibration: CalibrationTokens | None
    files: dict[str, str]
    """SHA-256 of each file below `checkpoint`, by its relative path."""

    @property
    def checkpoint(self) -> Path:
        """Folder that runtimes load."""
        return self.folder / "artifact"

    @property
    def recipe(self) -> Recipe:
        """Recipe that the artifact was made by."""
        return self.plan.recipe

    @property
    def source(self) -> Checkpoint:
        """Checkpoint that the artifact was made of."""
        return self.plan.checkpoint


class CheckpointArtifact(QuantizedModel):
    """A quantized checkpoint, not yet judged."""

    plan: CheckpointPlan

    @property
    def digest(self) -> str:
        """Digest of what decides what the model computes: the checkpoint's files."""
        return read_checkpoint(self.checkpoint).digest


class GgufArtifact(QuantizedModel):
    """A GGUF, not yet judged."""

    plan: GgufPlan

    @property
    def file(self) -> Path:
        """File that llama.cpp loads."""
        return self.checkpoint / file_name(self.source, self.plan.method)

    @property
    def digest(self) -> str:
        """Digest of what decides what the model computes: the GGUF file."""
        return file_digest(self.file)


Artifact = CheckpointArtifact | GgufArtifact
"""A quantized model of one of two kinds, which its plan has chosen."""


class KeptArtifact(RootModel[Artifact]):
    """An artifact of either kind, as a finished stage left it."""
