"""`quantgate quantize`, `evaluate` and `gate`: stages of a run, each by itself."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import (
    FILE,
    PATH,
    device_option,
    dtype_option,
    json_option,
    model_option,
    override_options,
    python_option,
    runtime_option,
    set_option,
    vllm_python,
)
from pipelines.cli.output import check_output_file, print_json

if TYPE_CHECKING:
    from pipelines.core.device import Dtype
    from pipelines.evaluation.subject import Runtime


@click.command("quantize")
@click.argument("recipe")
@model_option
@override_options
@dtype_option
@json_option
def quantize(recipe: str, model: str | None, overrides: tuple[str, ...], dtype: "Dtype", as_json: bool) -> None:
    """Make the artifact and verify it, without judging it; prints its folder."""
    from pipelines.cli.tables.checks import show_quantized
    from pipelines.core.cache import cache_dir
    from pipelines.flow.display import command_display
    from pipelines.flow.run import discard_conversions
    from pipelines.planning.stage import make_plan
    from pipelines.quantization.stage import quantize as quantize_stage
    from pipelines.recipe.load import load_recipe
    from pipelines.verification.stage import verify

    plan = make_plan(load_recipe(recipe, overrides), model, cache_dir(), dtype=dtype)  # nothing is published
    with command_display("quantize", "quantize", "verify") as display:
        with display.stage("quantize"):
            artifact = quantize_stage(plan)
        with display.stage("verify"):
            checked = verify(artifact, dtype=dtype)
    discard_conversions([plan])
    if as_json:
        return print_json({**checked.model_dump(mode="json"), "artifact": str(artifact.checkpoint)})
    show_quantized(artifact, checked)


@click.command("evaluate")
@click.argument("model", required=False)
@click.option("--suite", default="core", show_default=True, help="A suite's name or file.")
@click.option("--out", type=FILE, help="Write the evaluation here, for `gate`.")
@device_option
@dtype_option
@runtime_option
@python_option
@json_option
def evaluate(
    model: str | None,
    suite: str,
    out: Path | None,
    device: str | None,
    dtype: "Dtype",
    runtime: "Runtime",
    python: Path | None,
    as_json: bool,
) -> None:
    """Evaluate MODEL (a checkpoint, an artifact folder or a GGUF file) on a suite."""
    from pipelines.checkpoint.gguf_file import find_gguf
    from pipelines.checkpoint.load import load_model
    from pipelines.cli.tables.verdict import show_evaluation
    from pipelines.core.cache import write_json
    from pipelines.evaluation.stage import evaluate as evaluate_stage
    from pipelines.evaluation.tasks import check_tasks
    from pipelines.flow.display import command_display
    from pipelines.recipe.load import load_suite

    check_output_file(out)
    python = vllm_python(runtime, python)
    gguf = find_gguf(model) if model else None
    check_tasks(load_suite(suite))
    with command_display("evaluate", "evaluate") as display, display.stage("evaluate"):
        done = evaluate_stage(gguf or load_model(model), suite, device, runtime, python, dtype)
    if out:
        write_json(out, done.model_dump(mode="json"))
    if as_json:
        return print_json(done.model_dump(mode="json"))
    show_evaluation(done)


@click.command("gate")
@click.argument("baseline", type=PATH, required=False)
@click.argument("candidate", type=PATH, required=False)
@click.option("--retention", type=float, default=0.99, show_default=True, help="The share of the baseline to keep.")
@click.option(
    "--plan", "recipe", metavar="RECIPE", help="Judge nothing; say what the gate of RECIPE will be able to see."
)
@set_option
@click.option("--out", type=FILE, help="Write the verdict here, for `publish`.")
@json_option
def gate(
    baseline: Path | None,
    candidate: Path | None,
    retention: float,
    recipe: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge CANDIDATE against BASELINE, two files written by `evaluate --out`."""
    from pipelines.core.errors import bad_input

    if recipe:
        if candidate or out:
            raise bad_input("gate --plan", "judges nothing", "give a recipe, and the baseline at most")
        return _show_power(recipe, overrides, baseline, as_json)
    if overrides:
        raise bad_input("gate --set", "changes a recipe, and none is given", "add --plan RECIPE")
    if baseline is None or candidate is None:
        raise bad_input("gate", "needs BASELINE and CANDIDATE", "write them with `quantgate evaluate --out`")
    _judge(baseline, candidate, retention, out, as_json)


def _judge(baseline: Path, candidate: Path, retention: float, out: Path | None, as_json: bool) -> None:
    """Show the verdict on two evaluations, write it to `out`, and exit with its code."""
    from pipelines.cli.tables.verdict import show_verdict
    from pipelines.core.cache import write_json
    from pipelines.core.exit_codes import EXIT_CODES
    from pipelines.core.records import read_record
    from pipelines.evaluation.scores import Evaluation
    from pipelines.gating.gate import gate as gate_stage
    from pipelines.recipe.recipe import check_retention

    check_output_file(out)
    check_retention(retention, f"--retention {retention:g}")
    before, after = (read_record(side, Evaluation, "an evaluation") for side in (baseline, candidate))
    verdict = gate_stage(before, after, retention)
    if out:
        write_json(out, verdict.model_dump(mode="json"))
    if as_json:
        print_json(verdict.model_dump(mode="json", exclude={"evaluations"}))
    else:
        show_verdict(verdict)
    sys.exit(EXIT_CODES[verdict.verdict])


def _show_power(name: str, overrides: tuple[str, ...], baseline: Path | None, as_json: bool) -> None:
    """Show what the gate of the recipe `name`, with `overrides`, will be able to see."""
    from pipelines.core.errors import bad_input
    from pipelines.core.records import read_record
    from pipelines.evaluation.scores import Evaluation
    from pipelines.gating.power import analyze_recipe_power
    from pipelines.recipe.load import load_recipe, load_suite
    from pipelines.reporting.history import changes

    evaluation = read_record(baseline, Evaluation, "an evaluation") if baseline else None
    recipe = load_recipe(name, overrides)
    suite = evaluation.suite if evaluation else load_suite(recipe.gate.suite)
    seen = analyze_recipe_power(recipe, suite, changes(recipe), evaluation)
    if seen is None:
        what = "has a task whose documents are not counted anywhere"
        remedy = "give each task a limit, or evaluate the baseline and give it, too"
        raise bad_input(f"suite {suite.name}", what, remedy)
    if as_json:
        return print_json(seen.model_dump())
    click.echo(seen.sentence(suite.name))
