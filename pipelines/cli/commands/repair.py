"""`quantgate repair`: recipes with more bits, after a gate that refused."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import PATH, device_option, dtype_option, json_option, model_option
from pipelines.cli.output import print_json

if TYPE_CHECKING:
    from pipelines.core.device import Dtype


@click.command("repair")
@click.argument("run", type=PATH)
@click.option("--budget", type=float, metavar="BYTES", help="Of tensors, at most. Default: all layers with more bits.")
@click.option("--to", metavar="FOLDER", help="Publish below it. Default: artifacts/<model>.")
@model_option
@device_option
@dtype_option
@json_option
def repair(
    run: Path,
    budget: float | None,
    to: str | None,
    model: str | None,
    device: str | None,
    dtype: "Dtype",
    as_json: bool,
) -> None:
    """Give the layers that hurt most more bits, until the gate that refused RUN passes or the budget is used up.

    RUN is a run.json, a published artifact, or the folder of one. MODEL is the one it was made of.
    """
    from pipelines.checkpoint.load import load_model
    from pipelines.cli.tables.lists import show_path
    from pipelines.cli.tables.runs import show_comparison
    from pipelines.core.exit_codes import EXIT_CODES
    from pipelines.flow.journal import write_report
    from pipelines.flow.repair import repair as repair_run
    from pipelines.reporting.history import read_runs

    (failed,) = read_runs([run])
    attempts = repair_run(failed, load_model(model), int(budget) if budget else None, to, device, dtype)
    manifests = [failed, *(attempt.manifest for attempt in attempts)]
    if as_json:
        print_json([manifest.model_dump(mode="json") for manifest in manifests])
    else:
        show_comparison({attempt.manifest.recipe.name: attempt for attempt in attempts})
        show_path("report", write_report(manifests))
    sys.exit(EXIT_CODES[attempts[-1].verdict.verdict])
