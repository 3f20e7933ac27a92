"""`quantgate list`, `show` and `validate`: recipes and what belongs to them."""

import click

from pipelines.cli.options import json_option, set_option
from pipelines.cli.output import print_json


@click.command("list")
@click.argument("kind", type=click.Choice(["recipes", "sets", "suites", "tasks"]), default="recipes")
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List the recipes, or the calibration sets, suites or tasks."""
    from pipelines.cli.tables.lists import show_list
    from pipelines.recipe import library, load

    match kind:
        case "recipes":
            return _list_recipes(as_json)
        case "sets":
            rows = [(name, load.load_set(name).summary) for name in library.names("set")]
        case "suites":
            rows = [(name, load.load_suite(name).summary) for name in library.names("suite")]
        case _:
            rows = [(name, f"metric {load.load_task(name).metric}") for name in library.names("task")]
    if as_json:
        return print_json([{"name": name, "summary": text} for name, text in rows])
    show_list(rows, kind)


def _list_recipes(as_json: bool) -> None:
    from pipelines.cli.tables.lists import by_family, show_recipes
    from pipelines.recipe import library
    from pipelines.recipe.load import load_recipe

    recipes = [load_recipe(name) for name in library.names("recipe")]
    if not as_json:
        return show_recipes(recipes)
    print_json(
        [
            {"name": recipe.name, "family": family, "summary": recipe.summary}
            for family, found in by_family(recipes).items()
            for recipe in found
        ]
    )


@click.command("show")
@click.argument("recipe")
@set_option
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show a recipe with every setting, the defaults too."""
    import yaml

    from pipelines.recipe.load import load_recipe

    values = load_recipe(recipe, overrides).model_dump(mode="json")
    if as_json:
        return print_json(values)
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip())


@click.command("validate")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@set_option
def validate(recipes: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check recipes, their suites and sets; every problem is reported."""
    from pipelines.core.errors import Problems, refuse
    from pipelines.recipe.load import load_recipe

    problems = Problems()
    for name in recipes:
        if problems.of(load_recipe, name, overrides):
            click.echo(f"{name}: ok")
    refuse(problems.found)
