"""Records of runs with other results."""

from typing import Any

from pipelines.gating.verdict import Kept
from pipelines.reporting.record import Manifest


def kept(retention: float | None, lower: float | None = None, upper: float | None = None, **others: Any) -> Kept:
    """What is kept by a statistic of which the baseline scores a half."""
    candidate = 0.5 * (retention or 0.0)
    return Kept(baseline=0.5, candidate=candidate, retention=retention, lower_bound=lower, upper_bound=upper, **others)


def by_accuracy(found: Kept) -> dict[str, Any]:
    """The fields of a gate whose accuracy must be shown, and is `found`."""
    same = {name: getattr(found, name) for name in ("retention", "lower_bound", "upper_bound")}
    return {"statistic": "accuracy", "accuracy": found, **same}


def with_result(manifest: Manifest, name: str, size: int, retention: float | None, verdict: str = "PASS") -> Manifest:
    """The record of another run of the same model and suite."""
    gate = manifest.gate
    found = by_accuracy(kept(retention, gate.lower_bound, gate.upper_bound))
    found["expected"] = kept(0.9876, 0.98, 0.995)
    return manifest.model_copy(
        update={
            "recipe": manifest.recipe.model_copy(update={"name": name}),
            "size": manifest.size.model_copy(update={"bytes_after": size}),
            "gate": gate.model_copy(update={**found, "verdict": verdict}),
        }
    )
