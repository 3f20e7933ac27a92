"""A quantized checkpoint with its plan, as data: what quantizing hands to the stages after it."""

from pathlib import Path

from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import Result, file_digest
from pipelines.planning.gguf import file_name
from pipelines.planning.plan import Plan
from pipelines.quantization.written import Written
from pipelines.recipe.recipe import Gguf, Recipe


class Artifact(Result):
    """A quantized checkpoint, not yet judged."""

    plan: Plan
    written: Written
    calibration: CalibrationTokens | None
    files: dict[str, str]
    """SHA-256 of each file below `checkpoint`, by its relative path."""

    @property
    def checkpoint(self) -> Path:
        """Return the folder that runtimes load."""
        return self.folder / "artifact"

    @property
    def gguf(self) -> Path | None:
        """Return the file that llama.cpp loads; None where the artifact is no GGUF."""
        method = self.recipe.quantize
        return self.checkpoint / file_name(self.source, method) if isinstance(method, Gguf) else None

    @property
    def digest(self) -> str:
        """Return the digest of what decides what the model computes: the GGUF file, or the checkpoint's files."""
        return file_digest(self.gguf) if self.gguf else read_checkpoint(self.checkpoint).digest

    @property
    def recipe(self) -> Recipe:
        """Return the recipe that the artifact was made by."""
        return self.plan.recipe

    @property
    def source(self) -> Checkpoint:
        """Return the checkpoint that the artifact was made of."""
        return self.plan.checkpoint
