"""The comparison of what a finished artifact computes in vLLM and in transformers."""

from pathlib import Path

from pipelines.core.records import read_record
from pipelines.environments import isolated
from pipelines.formats.schemes import SchemeName
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.stage import read_artifact
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.record import RECORD, Manifest
from pipelines.reporting.serving import manifest_formats
from pipelines.runtimes.vllm import Comparison, compare, runs_on_cpu


def why_not_in_vllm(folder: Path, device: str) -> str | None:
    """Return why vLLM cannot run the artifact in `folder` on `device`; None if it can."""
    recipe, formats = _made(folder)
    if device != "cpu" or recipe.makes_gguf:
        return None
    return runs_on_cpu(formats, recipe.kv_cache, recipe.packing)


def compare_in_vllm(folder: Path, device: str, python: Path | None = None) -> Comparison:
    """Load the artifact in `folder` in both runtimes, and return how far they agree.

    `python` is the interpreter of an environment that has vLLM; one is made when none is given.
    """
    return compare(folder, python or isolated.make("vllm"), device)


def _made(folder: Path) -> tuple[Recipe, list[tuple[SchemeName, int | None]]]:
    """Return the recipe of an artifact, and its schemes with their group sizes; it may be published, or be as the
    quantize stage left it."""
    if not (folder / RECORD).is_file():
        plan = read_artifact(folder).plan
        return plan.recipe, list(plan.formats) if isinstance(plan, CheckpointPlan) else []
    manifest = read_record(folder / RECORD, Manifest, "an artifact")
    return manifest.recipe, manifest_formats(manifest)
