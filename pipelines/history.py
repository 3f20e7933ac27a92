"""What earlier runs, whose records are in the cache, say about the next."""

import json
from typing import Any

from pipelines.power import Discordance, typical
from pipelines.recipe import Recipe
from pipelines.store import cache_dir


def finished() -> list[dict[str, Any]]:
    """The records (`run.json`) of finished runs; those of other versions, too, whatever they hold."""
    records = []
    for path in sorted((cache_dir() / "runs").glob("*/run.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # being written, or not ours
        if isinstance(record, dict) and record.get("verdict"):
            records.append(record)
    return records


def discordance(recipe: Recipe) -> Discordance:
    """How often answers changed in earlier runs of the recipe's schemes (of a GGUF, its file type), over all documents
    they were judged on; what is typical where there were none.

    Half a change is added: of one that was never seen, only that it is rare is known.
    """
    changed, documents, artifacts = 0.5, 0.5, set()
    for record in finished():
        try:
            manifest = record["manifest"]
            if _kind(manifest["recipe"]["quantize"]) != _kind(recipe.quantize.model_dump(mode="json")):
                continue
            tasks = manifest["gate"]["tasks"]
            counts = [(task["documents"], task["lost"] + task["gained"]) for task in tasks]
        except (KeyError, TypeError):
            continue  # of a version that recorded something else
        what = json.dumps([manifest["files"], manifest["evaluation"]["suite"]], sort_keys=True)
        if what in artifacts:
            continue
        artifacts.add(what)
        documents += sum(count for count, _ in counts)
        changed += sum(count for _, count in counts)
    return Discordance(share=changed / documents, runs=len(artifacts)) if artifacts else typical(recipe.loss_class)


def _kind(quantize: dict[str, Any]) -> Any:
    rules = sorted(str(rule.get("scheme")) for rule in quantize.get("rules") or ())
    return quantize.get("type") or [quantize["scheme"], rules]
