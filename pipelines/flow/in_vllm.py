"""The comparison of what a finished artifact computes in vLLM and in transformers."""

from pathlib import Path

from pipelines.core.records import read_record
from pipelines.environments import isolated
from pipelines.formats.schemes import SchemeName
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.stage import read_artifact
from pipelines.reporting.record import RECORD, Manifest
from pipelines.runtimes.vllm import Comparison, compare, runs_on_cpu


def why_not_in_vllm(folder: Path, device: str) -> str | None:
    """Return why vLLM cannot run the artifact in `folder` on `device`; None if it can."""
    formats, kv_cache = _formats(folder)
    return runs_on_cpu(formats, kv_cache) if device == "cpu" else None


def compare_in_vllm(folder: Path, device: str, python: Path | None = None) -> Comparison:
    """Load the artifact in `folder` in both runtimes, and return how far they agree.

    `python` is the interpreter of an environment that has vLLM; one is made when none is given.
    """
    return compare(folder, python or isolated.make("vllm"), device)


def _formats(folder: Path) -> tuple[list[tuple[SchemeName, int | None]], str | None]:
    """Return the schemes of an artifact with their group sizes, and that of its KV cache; it may be published, or be as
    the quantize stage left it."""
    if not (folder / RECORD).is_file():
        plan = read_artifact(folder).plan
        return list(plan.formats) if isinstance(plan, CheckpointPlan) else [], plan.recipe.kv_cache
    manifest = read_record(folder / RECORD, Manifest, "an artifact")
    formats = [(module.scheme, module.group_size) for module in manifest.modules if module.scheme]
    return formats, manifest.recipe.kv_cache
