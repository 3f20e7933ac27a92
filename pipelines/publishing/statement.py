"""The in-toto statement of where an artifact comes from.

It (https://in-toto.io/Statement/v1, predicate https://slsa.dev/provenance/v1) binds the digests of the artifact's files
to those of source, recipe, calibration text and verdict.
"""

import json
from typing import Any

from pipelines.core.cache import digest
from pipelines.reporting.record import RECORD, GateRecord, Manifest

PROVENANCE = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:quantgate:recipe:v1"


def statement(manifest: Manifest, files: dict[str, str]) -> dict[str, Any]:
    """Return the in-toto statement over `files` (name → SHA-256): what they were made of, how, and what was found."""
    model = manifest.model
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": value}} for name, value in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": manifest.recipe.model_dump(mode="json"), "model": model.label},
                "internalParameters": {"recipe_digest": _recipe_digest(manifest)},
                "resolvedDependencies": _dependencies(manifest),
            },
            "runDetails": {
                "builder": {"id": "urn:quantgate:cli", "version": dict(manifest.versions)},
                "metadata": {"finishedOn": manifest.created},
                "byproducts": [
                    {"name": RECORD, "digest": {"sha256": files[RECORD]}, "annotations": _annotations(manifest)},
                ],
            },
        },
    }


def _recipe_digest(manifest: Manifest) -> str:
    """Return the digest of the resolved recipe."""
    return digest(manifest.recipe.model_dump(mode="json"))


def _annotations(manifest: Manifest) -> dict[str, Any]:
    """Return what the statement says of the gate's verdict."""
    gate = manifest.gate
    return {
        "verdict": gate.verdict,
        "certified": gate.certified,
        "retention": gate.retention,
        "lower_bound": gate.lower_bound,
        "forced": gate.forced,
        "suite": manifest.evaluation.suite.name,
        **(_both(gate) if manifest.schema_version > 1 else {}),
    }


def _both(gate: GateRecord) -> dict[str, Any]:
    """Return what records know since version 2: the statistic that must be shown, and what is kept by each."""
    both = {"accuracy": gate.accuracy, "expected": gate.expected}
    return {"statistic": gate.statistic, **{name: kept and kept.model_dump() for name, kept in both.items()}}


def _dependencies(manifest: Manifest) -> list[dict[str, Any]]:
    model, calibration = manifest.model, manifest.calibration
    origin = f"hf://{model.hub_id}@{model.revision}" if model.hub_id and model.revision else model.label
    found: list[dict[str, Any]] = [
        {"name": f"model/{name}", "uri": origin, "digest": {"sha256": value}} for name, value in model.files.items()
    ]
    if calibration:
        found.append({"name": f"calibration/{calibration.set}", "digest": {"quantgate": calibration.digest}})
    if manifest.commit:
        found.append({"name": "quantgate", "digest": {"gitCommit": manifest.commit.removesuffix("+dirty")}})
    return found


def contradictions(found: dict[str, Any], manifest: Manifest, files: dict[str, str]) -> list[str]:
    """Return sentences on the differences between a statement that was read and the one that record and files give."""
    expected = statement(manifest, files)
    if found == json.loads(json.dumps(expected)):
        return []
    if not isinstance(found, dict) or found.get("subject") != expected["subject"]:
        return [f"{PROVENANCE} is about other files"]
    return [f"{PROVENANCE} is about another recipe, source, calibration text or verdict"]
