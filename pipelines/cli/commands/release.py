"""`quantgate release`: models × recipes × targets, from a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import (
    PATH,
    device_option,
    dtype_option,
    full_option,
    json_option,
    python_option,
    runtime_option,
    signing_options,
    vllm_python,
)
from pipelines.cli.output import print_json

if TYPE_CHECKING:
    from pipelines.core.device import Dtype
    from pipelines.evaluation.subject import Runtime
    from pipelines.publishing.signature import Signer


@click.command("release")
@click.argument("file", type=PATH)
@click.option("--dry-run", is_flag=True, help="Check everything and say what it would take; compute nothing.")
@click.option(
    "--to", metavar="TARGET", multiple=True, help="Publish here, and not where FILE says; may be given again."
)
@click.option("--no-publish", is_flag=True, help="Judge, but publish nothing: for a pull request.")
@click.option("--out", metavar="FOLDER", type=PATH, help="Where reports go. Default: in the cache.")
@signing_options
@device_option
@dtype_option
@runtime_option
@python_option
@full_option
@json_option
def release(
    file: Path,
    dry_run: bool,
    to: tuple[str, ...],
    no_publish: bool,
    out: Path | None,
    signer: "Signer | None",
    device: str | None,
    dtype: "Dtype",
    runtime: "Runtime",
    python: Path | None,
    full: bool,
    as_json: bool,
) -> None:
    """Take the models of FILE through its recipes, and publish what passes to its targets.

    The same command goes on where it was stopped. Writes release.json, junit.xml, summary.md and report.html.
    """
    from pipelines.cli.tables.lists import show_path
    from pipelines.cli.tables.release import show_forecasts, show_release
    from pipelines.flow.forecast import forecast_release
    from pipelines.flow.release import prepare_release, run_release
    from pipelines.flow.release_file import load_release

    python = vllm_python(runtime, python)
    described = load_release(file)
    jobs = prepare_release(described, file.absolute().parent, to, not no_publish, device, runtime, full, signer, dtype)
    if dry_run:
        forecasts = forecast_release(jobs, python)
        return print_json([one.model_dump() for one in forecasts]) if as_json else show_forecasts(forecasts)
    outcome, written = run_release(described, jobs, out, python)
    if as_json:
        print_json({**outcome.model_dump(mode="json"), "exit_code": outcome.exit_code})
    else:
        show_release(outcome)
        show_path("reports", written)
    sys.exit(outcome.exit_code)
