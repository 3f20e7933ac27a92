"""Names with what belongs to them: recipes, sets, facts, paths."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pipelines.cli.columns import console
from pipelines.formats import schemes
from pipelines.recipe.recipe import Recipe

FAMILIES = (*schemes.FAMILIES, "GGUF", "mixed")
"""Families of recipes, in the order that they are listed."""


def show_facts(title: str, facts: Mapping[str, str]) -> None:
    """Print names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console().print(table)


def show_list(rows: list[tuple[str, str]], title: str) -> None:
    """Print names and summaries."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("summary", overflow="fold")
    for name, summary in rows:
        table.add_row(name, summary)
    console().print(table)


def by_family(recipes: Iterable[Recipe]) -> dict[str, list[Recipe]]:
    """Return the families that have recipes, in their order, each with its recipes."""
    grouped: dict[str, list[Recipe]] = {name: [] for name in FAMILIES}
    for recipe in recipes:
        grouped[recipe.family].append(recipe)
    return {name: found for name, found in grouped.items() if found}


def show_recipes(recipes: Iterable[Recipe]) -> None:
    """Print names and summaries, a section for each family."""
    table = Table(title="recipes", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("summary", overflow="fold")
    for name, found in by_family(recipes).items():
        table.add_section()
        table.add_row(Text(name, style="bold"), "")
        for recipe in found:
            table.add_row(recipe.name, recipe.summary)
    console().print(table)


def show_path(what: str, path: Path | str) -> None:
    """Print one labelled path on its own line, never wrapped."""
    print(f"{what:10} {path}")
