"""`quantgate run`: a model through one recipe or several, to the verdict and the targets."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import (
    PlacesCommand,
    device_option,
    dtype_option,
    full_option,
    json_option,
    model_option,
    override_options,
    python_option,
    runtime_option,
    signing_options,
    vllm_python,
)
from pipelines.cli.output import announce_planning, complain, print_json
from pipelines.core.errors import QuantgateError

if TYPE_CHECKING:
    from pipelines.core.device import Dtype
    from pipelines.evaluation.subject import Runtime
    from pipelines.flow.journal import Run
    from pipelines.publishing.signature import Signer


@click.command("run", cls=PlacesCommand)
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@model_option
@click.option(
    "--to",
    metavar="TARGET",
    multiple=True,
    help="Where to publish; may be given again. Default: artifacts/<model>/<recipe>.",
)
@signing_options
@override_options
@device_option
@dtype_option
@runtime_option
@python_option
@full_option
@json_option
def run(
    recipes: tuple[str, ...],
    model: str | None,
    to: tuple[str, ...],
    signer: "Signer | None",
    overrides: tuple[str, ...],
    device: str | None,
    dtype: "Dtype",
    runtime: "Runtime",
    python: Path | None,
    full: bool,
    as_json: bool,
) -> None:
    """Take a model through RECIPE: quantize, evaluate, judge, and publish if it passed. Compare several.

    TARGET is {places};
    {model} and {recipe} in it stand for their names. Of several recipes, a folder without {recipe} is the one above.
    """
    from pipelines import run, run_all
    from pipelines.recipe.load import load_recipe

    python = vllm_python(runtime, python)
    if len(recipes) == 1:
        recipe = load_recipe(recipes[0], overrides)
        announce_planning([recipe.name], model)
        return finish(run(recipe, model, to or None, device, runtime, python, full, signer, dtype), as_json)
    announce_planning(recipes, model)
    outcomes = run_all(recipes, model, to or None, device, runtime, python, overrides, full, signer, dtype)
    finish_all(outcomes, as_json)


def finish(done: "Run", as_json: bool) -> None:
    """Show a finished run, and exit with its code."""
    from pipelines.cli.tables.runs import show_run

    if as_json:
        print_json(done.manifest.model_dump(mode="json"))
    else:
        show_run(done)
    for reason in done.unpublished.values():
        complain(reason)
    sys.exit(done.exit_code)


def finish_all(outcomes: "Mapping[str, Run | QuantgateError]", as_json: bool) -> None:
    """Show what came of several recipes, by their names, and exit with the worst of their codes."""
    from pipelines.cli.tables.lists import show_path
    from pipelines.cli.tables.runs import show_comparison
    from pipelines.core.exit_codes import worst
    from pipelines.flow.journal import Run, write_report

    finished = [done.manifest for done in outcomes.values() if isinstance(done, Run)]
    failed = {name: str(done) for name, done in outcomes.items() if isinstance(done, QuantgateError)}
    report = write_report(finished, failed)
    if as_json:
        print_json([manifest.model_dump(mode="json") for manifest in finished])
    else:
        show_comparison(outcomes)
        show_path("report", report)
    for name, done in outcomes.items():  # said before, but far above by now
        reasons = [str(done)] if isinstance(done, QuantgateError) else done.unpublished.values()
        for reason in reasons:
            complain(f"{name}: {reason}")
    sys.exit(worst(1 if isinstance(done, QuantgateError) else done.exit_code for done in outcomes.values()))
