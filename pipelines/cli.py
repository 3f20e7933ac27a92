"""The `quantgate` command: a thin layer over the functions of `pipelines`.

Exit codes: 0 passed and published, 2 bad input, 3 the gate said FAIL, 4 the gate said INCONCLUSIVE under a policy that
does not accept it, 1 anything unexpected. Records go to standard output, progress and errors to standard error.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipelines.errors import QuantgateError

MODEL_HELP = "Checkpoint folder or hub id org/name[@revision]. Default: the embedded SmolLM2-135M-Instruct."


class _Commands(click.Group):
    """Turns our errors into one message and an exit code; a traceback means a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QuantgateError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, **settings)


model_option = _option("--model", metavar="MODEL", help=MODEL_HELP)
set_option = _option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe.")
json_option = _option(
    "--json", "as_json", is_flag=True, help="Print a JSON record and nothing else on standard output."
)
device_option = _option("--device", metavar="DEVICE", help="cpu or cuda. Default: cuda where there is one.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="quantgate", prog_name="quantgate")
def main() -> None:
    """Quantize a checkpoint, prove that it is still good, and publish it only then.

    \b
    Exit codes: 0 passed and published   3 the gate said FAIL
                2 bad input              4 the gate said INCONCLUSIVE and the policy does not accept it
                1 anything unexpected
    """


@main.command("list")
@click.argument("kind", type=click.Choice(["recipes", "sets", "suites", "tasks"]), default="recipes")
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List the recipes, or the calibration sets, suites or tasks."""
    from pipelines import library, recipe

    match kind:
        case "recipes":
            rows = [(name, recipe.load_recipe(name).summary) for name in library.names("recipe")]
        case "sets":
            rows = [(name, recipe.load_set(name).summary) for name in library.names("set")]
        case "suites":
            rows = [(name, recipe.load_suite(name).summary) for name in library.names("suite")]
        case _:
            rows = [(name, f"metric {recipe.load_task(name).metric}") for name in library.names("task")]
    if as_json:
        return _print_json([{"name": name, "summary": text} for name, text in rows])
    from pipelines.tables import show_list

    show_list(rows, kind)


@main.command()
@click.argument("recipe")
@set_option
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show a recipe with every setting, the defaults too."""
    import yaml

    from pipelines.recipe import load_recipe

    values = load_recipe(recipe, overrides).model_dump(mode="json")
    if as_json:
        return _print_json(values)
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip())


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@set_option
def validate(recipes: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check recipes, their suites and sets; every problem is reported."""
    from pipelines.errors import BadInput, Problem, refuse
    from pipelines.recipe import load_recipe

    problems: list[Problem] = []
    for name in recipes:
        try:
            load_recipe(name, overrides)
            click.echo(f"{name}: ok")
        except BadInput as error:
            problems += error.problems
    refuse(problems)


@main.command()
@click.argument("recipe")
@model_option
@set_option
@json_option
def plan(recipe: str, model: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what RECIPE would do to a model and what it would cost; reads no weights."""
    from pipelines.gate import sight
    from pipelines.plan import make_plan
    from pipelines.recipe import load_recipe, load_suite

    made = make_plan(load_recipe(recipe, overrides), model)
    suite = load_suite(made.recipe.gate.suite)
    limits = {task.task: task.limit for task in suite.tasks}
    counts = {name: limit for name, limit in limits.items() if limit is not None}
    complete = len(counts) == len(limits)
    seen = sight(counts, suite, made.recipe.gate.retention, made.recipe.quantize.scheme) if complete else None
    if as_json:
        totals = {
            "bytes_before": made.bytes_before,
            "bytes_after": made.bytes_after,
            "bits_per_weight": made.bits_per_weight,
        }
        return _print_json({**made.model_dump(mode="json"), **totals, "sight": seen.model_dump() if seen else None})
    from pipelines.tables import show_plan

    show_plan(made, seen)


@main.command()
@click.argument("recipe")
@model_option
@_option("--to", metavar="FOLDER", help="Where to publish. Default: artifacts/<model>/<recipe>.")
@set_option
@device_option
@json_option
def run(
    recipe: str, model: str | None, to: str | None, overrides: tuple[str, ...], device: str | None, as_json: bool
) -> None:
    """Take a model through RECIPE: quantize, evaluate, judge, and publish if it passed."""
    from pipelines.flow import run as run_flow
    from pipelines.publish import EXIT_CODES
    from pipelines.recipe import load_recipe

    done = run_flow(load_recipe(recipe, overrides), model, to, device)
    if as_json:
        _print_json(done.manifest.model_dump(mode="json"))
    else:
        from pipelines.tables import show_run

        show_run(done)
    sys.exit(EXIT_CODES[done.verdict.verdict])


@main.command()
@click.argument("recipe")
@model_option
@set_option
@json_option
def quantize(recipe: str, model: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Make the artifact and verify it, without judging it; prints its folder."""
    from pipelines.plan import make_plan
    from pipelines.quantize import quantize as quantize_stage
    from pipelines.recipe import load_recipe
    from pipelines.verify import verify

    artifact = quantize_stage(make_plan(load_recipe(recipe, overrides), model))
    checked = verify(artifact)
    if as_json:
        return _print_json({**checked.model_dump(mode="json"), "artifact": str(artifact.checkpoint)})
    from pipelines.package import stage_record
    from pipelines.tables import show_path, show_stages, size

    show_stages((stage_record("quantize", (artifact,)), stage_record("verify", (checked,))))
    print(f"weights    {size(checked.bytes_before)} → {size(checked.bytes_after)}")
    show_path("artifact", artifact.checkpoint)


@main.command()
@click.argument("model", required=False)
@_option("--suite", default="core", show_default=True, help="A suite's name or file.")
@_option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the evaluation here, for `gate`.")
@device_option
@json_option
def evaluate(model: str | None, suite: str, out: Path | None, device: str | None, as_json: bool) -> None:
    """Evaluate MODEL (a checkpoint or an artifact folder) on a suite."""
    from pipelines.evaluate import evaluate as evaluate_stage
    from pipelines.models import load_model
    from pipelines.store import write_json

    _check_out(out)
    done = evaluate_stage(load_model(model), suite, device)
    if out:
        write_json(out, done.model_dump(mode="json"))
    if as_json:
        return _print_json(done.model_dump(mode="json"))
    from pipelines.tables import show_list

    rows = [(task.task, f"{task.metric} {task.mean:.4f} on {task.documents} documents") for task in done.tasks]
    show_list(rows, f"{done.model} on {done.suite.name}")


@main.command()
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@_option("--retention", type=float, default=0.99, show_default=True, help="The share of the baseline to keep.")
@_option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the verdict here, for `publish`.")
@json_option
def gate(baseline: Path, candidate: Path, retention: float, out: Path | None, as_json: bool) -> None:
    """Judge CANDIDATE against BASELINE, two files written by `evaluate --out`."""
    from pipelines.gate import gate as gate_stage
    from pipelines.publish import EXIT_CODES
    from pipelines.scores import Evaluation
    from pipelines.store import write_json

    _check_out(out)
    verdict = gate_stage(_read(baseline, Evaluation), _read(candidate, Evaluation), retention)
    if out:
        write_json(out, verdict.model_dump(mode="json"))
    if as_json:
        _print_json(verdict.model_dump(mode="json", exclude={"evaluations"}))
    else:
        from pipelines.tables import show_verdict

        show_verdict(verdict)
    sys.exit(EXIT_CODES[verdict.verdict])


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@_option("--verdict", "verdict_file", type=click.Path(path_type=Path), required=True, help="Written by `gate --out`.")
@_option("--to", metavar="FOLDER", required=True, help="Where to publish.")
@_option("--force", metavar="REASON", help="Publish without a PASS; the reason is written into the card.")
def publish(artifact: Path, verdict_file: Path, to: str, force: str | None) -> None:
    """Publish ARTIFACT (a folder that `quantize` printed) if its verdict is a PASS."""
    from pipelines.errors import bad_input
    from pipelines.gate import Verdict
    from pipelines.publish import publish as publish_stage
    from pipelines.quantize import Artifact

    if force is not None and not force.strip():
        raise bad_input("--force", "needs a reason")
    made = _read(artifact.parent / "result.json", Artifact).model_copy(update={"folder": artifact.parent.absolute()})
    place = publish_stage(made, _read(verdict_file, Verdict), to, force)
    click.echo(f"published  {place}")


def _read(path: Path, kind: Any) -> Any:
    """A record that another command wrote."""
    from pydantic import ValidationError

    from pipelines.errors import bad_input

    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise bad_input(path, f"cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError):
        raise bad_input(path, f"is not a record of an {kind.__name__.lower()} by this version of quantgate") from None


def _check_out(out: Path | None) -> None:
    """Refuse an output file whose folder is not there, before the work."""
    from pipelines.errors import bad_input

    if out and not out.absolute().parent.is_dir():
        raise bad_input(out, "cannot be written: its folder is not there", f"make {out.parent} first")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
