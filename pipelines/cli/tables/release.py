"""Releases, planned and finished."""

import sys
from collections.abc import Iterable

from rich.text import Text

from pipelines.cli.columns import Cell, Column, console, show_table
from pipelines.cli.tables.lists import show_path
from pipelines.cli.tables.verdict import COLOURS
from pipelines.core.secrets import redact
from pipelines.core.text import duration, size
from pipelines.flow.forecast import Forecast
from pipelines.flow.outcome import Outcome


def show_forecasts(forecasts: Iterable[Forecast]) -> None:
    """Print what each run of a release is going to take, and all together."""
    rows = list(forecasts)
    columns = (
        Column("model", text=True),
        Column("recipe", text=True),
        Column("weights"),
        Column("bits per weight", spare=1),
        Column("memory"),
        Column("disk"),
        Column("time", text=True),
    )
    show_table("nothing is computed: this is what it would take", columns, map(_forecast_row, rows))
    out = console()
    out.print("memory is that of the stage that takes the most; disk is that of cache and folders")
    unknown = tuple(dict.fromkeys(stage for row in rows for stage in row.unknown))
    together = _expected(sum(row.seconds for row in rows), unknown)
    out.print(f"time       {together}, by finished runs of the same kind; what is finished takes none")
    for row in rows:
        for target in row.targets:
            show_path("publishes", target)


def _forecast_row(row: Forecast) -> tuple[str, ...]:
    weights = f"{size(row.bytes_before)} → {size(row.bytes_after)}"
    needs = (size(row.memory), size(row.disk), _expected(row.seconds, row.unknown))
    return (row.model, row.recipe, weights, f"{row.bits_per_weight:.2f}", *needs)


def _expected(seconds: float, unknown: tuple[str, ...]) -> str:
    if not seconds:
        return "unknown" if unknown else "nothing"
    return " + ".join([f"about {duration(seconds)}", *unknown])


def show_release(outcome: Outcome) -> None:
    """Print the end of a release: a line for each run, and where everything was published, or why not."""
    rows: list[tuple[Cell, ...]] = []
    for item in outcome.items:
        said = Text(item.verdict or "error", style=COLOURS[item.verdict] if item.verdict else "red")
        places = f"{len(item.published)} of {len(item.targets)}"
        rows.append((item.model, item.recipe, said, places, duration(item.seconds)))
    texts = (Column("model", text=True), Column("recipe", text=True))
    places_and_time = (Column("verdict", left=True), Column("published", left=True, spare=1), Column("time"))
    show_table(f"release {outcome.release.name}", (*texts, *places_and_time), rows)
    for item in outcome.items:
        for target in item.published:
            show_path("published", target)
    for item in outcome.items:
        for reason in (item.error, *item.unpublished.values()):
            if reason:
                print(redact(f"error: {item.recipe} on {item.model}: {reason}"), file=sys.stderr)
