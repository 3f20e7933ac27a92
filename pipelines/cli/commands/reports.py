"""`quantgate compare` and `report`: finished runs, ranked or as a page."""

from pathlib import Path

import click

from pipelines.cli.options import FILE, PATH, json_option
from pipelines.cli.output import check_output_file, print_json

runs_argument = click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)


@click.command("compare")
@runs_argument
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Rank finished runs by size and quality: published artifacts, run.json files, or folders of such.

    Those of different models, suites, runtimes or devices are ranked apart.
    """
    from pipelines.cli.tables.runs import show_ranking, show_speeds
    from pipelines.reporting.history import compare as rank
    from pipelines.reporting.history import read_runs

    found = read_runs(runs)
    rankings = rank(found)
    if as_json:
        return print_json([ranking.model_dump(mode="json") for ranking in rankings])
    for ranking in rankings:
        show_ranking(ranking)
    show_speeds(found)


@click.command("report")
@runs_argument
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    type=FILE,
    help="Where to write it: an .html file, or .md for the summary of a CI job.",
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write the report of finished runs: published artifacts, run.json files, or folders of such."""
    from pipelines.core.cache import write_text
    from pipelines.core.errors import bad_input
    from pipelines.flow.remedy import remedies
    from pipelines.reporting.history import read_runs
    from pipelines.reporting.report import html, markdown

    write = {".html": html, ".md": markdown}.get(out.suffix)
    if write is None:
        raise bad_input(f"--out {out}", "is of no kind that reports are written in", "end it in .html or .md")
    check_output_file(out)
    found = read_runs(runs)
    write_text(out, write(found, remedies=remedies(found)))
    click.echo(out)
