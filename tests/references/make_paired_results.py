"""Right and wrong answers of baselines and artifacts, pair by pair, out of the records of finished runs:

    python -m tests.references.make_paired_results RUN.json… | gzip -9n > tests/references/data/paired-results.jsonl.gz

One line for each recipe and task: {"recipe", "task", "baseline": [0/1 …], "candidate": [0/1 …], "chance"}, in the order
of the task's split; documents that a stopped artifact did not come to are left out.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluation.scores import Document


def main(records: Sequence[str]) -> None:
    """Print the lines of all records."""
    for path in records:
        for line in paired(json.loads(Path(path).read_text(encoding="utf-8"))):
            print(json.dumps(line, separators=(",", ":")))


def paired(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each task of a run."""
    baseline, candidate = (_answers(record, stage) for stage in ("evaluate baseline", "evaluate artifact"))
    for task, theirs in candidate.items():
        ours = baseline[task]
        yield {
            "recipe": record["recipe"]["name"],
            "task": task,
            "baseline": [_right(ours[place]) for place in sorted(theirs)],
            "candidate": [_right(theirs[place]) for place in sorted(theirs)],
            "chance": statistics.fmean(document.chance for document in theirs.values()),
        }


def _answers(record: dict[str, Any], stage: str) -> dict[str, dict[int, Document]]:
    """Task → place → document, from all blocks of a stage."""
    (results,) = (done["results"] for done in record["stages"] if done["stage"] == stage)
    found: dict[str, dict[int, Document]] = {}
    for folder in (Path(result["folder"]) for result in results):
        task = json.loads((folder / "result.json").read_text(encoding="utf-8"))["task"]
        lines = (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        found.setdefault(task, {}).update({d.id: d for d in map(Document.model_validate_json, lines)})
    return found


def _right(document: Document) -> int:
    if document.score not in (0, 1):
        raise SystemExit(f"document {document.id} scores {document.score}: neither right nor wrong")
    return int(document.score)


if __name__ == "__main__":
    main(sys.argv[1:])
