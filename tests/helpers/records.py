"""Records of runs with other results."""

from pipelines.reporting.record import Manifest


def with_result(manifest: Manifest, name: str, size: int, retention: float | None, verdict: str = "PASS") -> Manifest:
    """The record of another run of the same model and suite."""
    return manifest.model_copy(
        update={
            "recipe": manifest.recipe.model_copy(update={"name": name}),
            "size": manifest.size.model_copy(update={"bytes_after": size}),
            "gate": manifest.gate.model_copy(update={"retention": retention, "verdict": verdict}),
        }
    )
