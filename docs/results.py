"""Writes the table of results in docs/results.md from the records of runs: `make results RUNS="FOLDER…"`.

A place is a published artifact, a `run.json`, the folder of either, or a folder of such folders. The table is made anew
from the records given; no figure in it is typed by hand.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.core.bounds import level
from pipelines.core.errors import BadInput
from pipelines.reporting.history import Ranking, compare, read_runs
from pipelines.reporting.record import Manifest
from pipelines.reporting.rendering import plain
from pipelines.reporting.sentences import SHORT, both, changed, kept_with_bounds, verdict_name

PAGE = Path(__file__).parent / "results.md"
BEGIN, END = "<!-- begin generated -->", "<!-- end generated -->"
COLUMNS = (
    "recipe", "weights", "bits per weight", *SHORT.values(), "bounds at", "answers changed", "KL divergence", "verdict",
    "documents", "processor", "computed in", "run on",
)  # fmt: skip


def main(places: Sequence[str]) -> None:
    """Put the table of the runs in `places` between the marks of docs/results.md."""
    if not places:
        raise SystemExit('say which runs: make results RUNS="artifacts/SmolLM2-135M-Instruct"')
    try:
        runs = read_runs([Path(place).expanduser() for place in places])
    except BadInput as error:
        raise SystemExit(str(error)) from None
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), tables(runs)), encoding="utf-8")
    print(f"{PAGE}: {len(runs)} runs")


def replaced(page: str, block: str) -> str:
    """Return `page` with `block` between its marks."""
    before, after = re.split(f"{BEGIN}.*?{END}", page, flags=re.DOTALL)
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def tables(runs: Sequence[Manifest]) -> str:
    """Return a table for each baseline: retentions of different baselines say nothing about each other."""
    return "\n".join(line for ranking in compare(runs) for line in _table(ranking))


def _table(ranking: Ranking) -> list[str]:
    computed = f" in {ranking.dtype}" if ranking.dtype else ""
    first = ranking.runs[0].manifest
    before, bits = first.size.bytes_before, first.size.bytes_before * 8 / first.model.parameters
    return [
        f"{plain(ranking.model)}, suite `{plain(ranking.suite)}`, {ranking.runtime}{computed} on {ranking.device}. "
        f"The baseline has {_megabytes(before)} and {bits:.2f} bits per weight.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(_row(run.manifest) for run in ranking.runs),
        "",
    ]


def _row(run: Manifest) -> str:
    gate, distance, share = run.gate, run.verification.distance, changed(run.gate)
    documents = sum(task.documents for task in gate.tasks)
    return "| {} |".format(
        " | ".join(
            [
                f"`{run.recipe.name}`",
                _megabytes(run.size.bytes_after),
                f"{run.size.bits_per_weight:.2f}",
                *map(kept_with_bounds, both(gate).values()),
                level(gate.confidence),
                "–" if share is None else f"{share:.1%}",
                f"{distance.divergence:.4f} ± {distance.divergence_error:.4f}" if distance else "–",
                verdict_name(gate) + (", forced" if gate.forced else ""),
                f"{documents:,}" + (f" of {documents + gate.spared:,}" if gate.spared else ""),
                plain(run.hardware["gpu" if run.evaluation.device.startswith("cuda") else "processor"]),
                run.evaluation.dtype or "–",
                run.created[:10],
            ]
        )
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main(sys.argv[1:])
