"""The `quantgate` command: a thin layer over the functions of `pipelines`.

`errors.EXITS` says what the exit codes mean. Records go to standard output, progress and errors to standard error.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.core.errors import EXITS, SEVERAL, QuantgateError

if TYPE_CHECKING:
    from pipelines.core.device import Dtype
    from pipelines.evaluation.scores import Evaluation
    from pipelines.evaluation.stage import Runtime
    from pipelines.flow.run import Run
    from pipelines.formats.schemes import SchemeName
    from pipelines.publishing.bundle import Checked
    from pipelines.publishing.provenance import Signer, Trust
    from pipelines.quantization.stage import Artifact

MODEL_HELP = "Checkpoint folder or hub id org/name[@revision]. Default: the embedded SmolLM2-135M-Instruct."


class _Commands(click.Group):
    """Turns our errors into one message and an exit code; a traceback means a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QuantgateError as error:
            _complain(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:  # a disk that is full or read-only, a folder that is not ours, a reader that has gone
            what = f"{error.filename}: " if error.filename else ""
            _complain(f"{what}{error.strerror or error}")
            _leave_standard_output()
            ctx.exit(1)


def _complain(text: str) -> None:
    from pipelines.core.secrets import redact

    with contextlib.suppress(OSError):
        click.echo(redact(f"error: {text}"), err=True)


def _leave_standard_output() -> None:
    """Keep Python from writing at its end what could not be written before."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, **settings)


model_option = _option("--model", metavar="MODEL", help=MODEL_HELP)
set_option = _option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe.")
cpu_option = _option(
    "--experimental-cpu", is_flag=True, help="Let engine auto-gptq run without CUDA, by replacing two names inside it."
)
json_option = _option(
    "--json", "as_json", is_flag=True, help="Print a JSON record and nothing else on standard output."
)
device_option = _option("--device", metavar="DEVICE", help="cpu or cuda. Default: cuda where there is one.")
dtype_option = _option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="What models compute in; what is stored stays the same. auto: float32 on a CPU, the model's own on a GPU.",
)
runtime_option = _option(
    "--runtime",
    type=click.Choice(["transformers", "vllm", "llama.cpp"]),
    default="transformers",
    show_default=True,
    help="What runs the model.",
)
full_option = _option(
    "--full", is_flag=True, help="Evaluate the whole suite, even when the verdict is shown after a part of it."
)
python_option = _option(
    "--vllm-python",
    "python",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The Python of an environment that has vLLM. Default: the environment `quantgate env make vllm` makes.",
)


def _pem_option(name: str, text: str, **settings: Any) -> Callable[[Any], Any]:
    return _option(name, metavar="PEM", type=click.Path(path_type=Path), help=text, **settings)


def _together(
    options: Iterable[Callable[[Any], Any]], into: str, make: Callable[..., Any], names: Iterable[str]
) -> Callable[[Any], Any]:
    """A decorator that adds `options` to a command, which gets what `make` makes of their values as `into`."""
    names, options = tuple(names), tuple(options)

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            return command(**{into: make(*(given.pop(name) for name in names))}, **given)

        decorated: Any = wrapped
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _signer(key: Path | None, certificate: Path | None, chain: tuple[Path, ...], keyless: bool) -> "Signer | None":
    if not (key or certificate or chain or keyless):
        return None
    from pipelines.publishing.provenance import Signer

    signer: Signer = _fitting(Signer, "signing", key=key, certificate=certificate, chain=chain, keyless=keyless)
    return signer


def _trust(key: Path | None, roots: tuple[Path, ...], identity: str | None, issuer: str | None) -> "Trust | None":
    if not (key or roots or identity or issuer):
        return None
    from pipelines.publishing.provenance import Trust

    trust: Trust = _fitting(Trust, "trust", key=key, roots=roots, identity=identity, issuer=issuer)
    return trust


signing_options = _together(
    [
        _pem_option("--signing-key", "Sign what is published with this private key."),
        _pem_option("--signing-certificate", "The certificate of that key."),
        _pem_option("--signing-chain", "A certificate between that and the root; may be given again.", multiple=True),
        _option("--sign-keyless", is_flag=True, help="Sign with the identity of this CI job, by sigstore."),
    ],
    "signer",
    _signer,
    ("signing_key", "signing_certificate", "signing_chain", "sign_keyless"),
)
trust_options = _together(
    [
        _pem_option("--trust-key", "Ask for a signature by the owner of this public key."),
        _pem_option(
            "--trust-root", "Ask for a signature by a certificate below this one; may be given again.", multiple=True
        ),
        _option("--trust-identity", metavar="WHO", help="Ask for a keyless signature by this identity."),
        _option("--trust-issuer", metavar="URL", help="Who vouches for that identity."),
    ],
    "trust",
    _trust,
    ("trust_key", "trust_root", "trust_identity", "trust_issuer"),
)


def _fitting(kind: Any, what: str, **values: Any) -> Any:
    """A `kind` of options that must fit together."""
    from pydantic import ValidationError

    from pipelines.core.errors import bad_input

    try:
        return kind(**values)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise bad_input(f"options for {what}", message) from None


def _overrides(overrides: tuple[str, ...], experimental_cpu: bool) -> tuple[str, ...]:
    return (*overrides, "quantize.experimental_cpu=true") if experimental_cpu else overrides


HELP = "Quantize a checkpoint, prove that it is still good, and publish it only then."
EXIT_HELP = "\n".join(["\b", "Exit codes:", *(f"  {code} {meaning}" for code, meaning in EXITS.items()), SEVERAL])


@click.group(
    cls=_Commands,
    help=f"{HELP}\n\n{EXIT_HELP}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="quantgate", prog_name="quantgate")
def main() -> None:
    """The command line."""


@main.command("list")
@click.argument("kind", type=click.Choice(["recipes", "sets", "suites", "tasks"]), default="recipes")
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List the recipes, or the calibration sets, suites or tasks."""
    from pipelines.recipe import library, load

    if kind == "recipes":
        return _list_recipes(as_json)
    match kind:
        case "sets":
            rows = [(name, load.load_set(name).summary) for name in library.names("set")]
        case "suites":
            rows = [(name, load.load_suite(name).summary) for name in library.names("suite")]
        case _:
            rows = [(name, f"metric {load.load_task(name).metric}") for name in library.names("task")]
    if as_json:
        return _print_json([{"name": name, "summary": text} for name, text in rows])
    from pipelines.cli.tables import show_list

    show_list(rows, kind)


def _list_recipes(as_json: bool) -> None:
    from pipelines.cli.tables import by_family, show_recipes
    from pipelines.recipe import library
    from pipelines.recipe.load import load_recipe

    recipes = [load_recipe(name) for name in library.names("recipe")]
    if not as_json:
        return show_recipes(recipes)
    _print_json(
        [
            {"name": recipe.name, "family": family, "summary": recipe.summary}
            for family, found in by_family(recipes).items()
            for recipe in found
        ]
    )


@main.command()
@click.argument("recipe")
@set_option
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show a recipe with every setting, the defaults too."""
    import yaml

    from pipelines.recipe.load import load_recipe

    values = load_recipe(recipe, overrides).model_dump(mode="json")
    if as_json:
        return _print_json(values)
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip())


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@set_option
def validate(recipes: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check recipes, their suites and sets; every problem is reported."""
    from pipelines.core.errors import BadInput, Problem, refuse
    from pipelines.recipe.load import load_recipe

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
@cpu_option
@device_option
@dtype_option
@json_option
def plan(
    recipe: str,
    model: str | None,
    overrides: tuple[str, ...],
    experimental_cpu: bool,
    device: str | None,
    dtype: "Dtype",
    as_json: bool,
) -> None:
    """Say what RECIPE would do to a model and what it would cost; reads no weights."""
    from pipelines.core.device import choose_device, default_device
    from pipelines.flow.run import foresee_times
    from pipelines.gating.power import foresee
    from pipelines.planning.stage import make_plan
    from pipelines.recipe.load import load_recipe, load_suite
    from pipelines.reporting.history import discordance

    device = choose_device(device) if device else default_device()
    chosen = load_recipe(recipe, _overrides(overrides, experimental_cpu))
    made = make_plan(chosen, model, device=device, dtype=dtype)
    suite = load_suite(made.recipe.gate.suite)
    seen = foresee(made.recipe, suite, discordance(made.recipe))
    times = foresee_times(made, suite, device, dtype)
    if as_json:
        totals = {
            "bytes_before": made.bytes_before,
            "bytes_after": made.bytes_after,
            "bits_per_weight": made.bits_per_weight,
            "expected_times": [expected.model_dump() for expected in times],
        }
        parts: dict[str, Any] = {
            "modules": [],
            "attentions": [],
            "tensors": [],
        }  # those of the other kind of plan are empty
        return _print_json(
            {**parts, **made.model_dump(mode="json"), **totals, "sight": seen.model_dump() if seen else None}
        )
    from pipelines.cli.tables import show_plan

    show_plan(made, seen, times)


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@model_option
@_option(
    "--to",
    metavar="TARGET",
    multiple=True,
    help="Where to publish; may be given again. Default: artifacts/<model>/<recipe>.",
)
@signing_options
@set_option
@cpu_option
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
    experimental_cpu: bool,
    device: str | None,
    dtype: "Dtype",
    runtime: "Runtime",
    python: Path | None,
    full: bool,
    as_json: bool,
) -> None:
    """Take a model through RECIPE: quantize, evaluate, judge, and publish if it passed. Compare several.

    TARGET is a folder, hf://org/name[@branch], s3://bucket/prefix (or another file system), or oci://host/name:tag;
    {model} and {recipe} in it stand for their names. Of several recipes, a folder without {recipe} is the one above.
    """
    from pipelines import run, run_all
    from pipelines.recipe.load import load_recipe

    python = _vllm_python(runtime, python)
    overrides = _overrides(overrides, experimental_cpu)
    if len(recipes) == 1:
        recipe = load_recipe(recipes[0], overrides)
        done = run(recipe, model, to or None, device, runtime, python, full, signer, dtype)
        return _finish(done, as_json)
    outcomes = run_all(recipes, model, to or None, device, runtime, python, overrides, full, signer, dtype)
    _finish_all(outcomes, as_json)


def _finish(done: "Run", as_json: bool) -> None:
    from pipelines.cli.tables import show_run

    if as_json:
        _print_json(done.manifest.model_dump(mode="json"))
    else:
        show_run(done)
    for reason in done.unpublished.values():
        _complain(reason)
    sys.exit(done.exit_code)


def _finish_all(outcomes: "dict[str, Run | QuantgateError]", as_json: bool) -> None:
    from pipelines.cli.tables import show_comparison, show_path
    from pipelines.flow.run import Run, write_report
    from pipelines.publishing.stage import worst

    finished = [done.manifest for done in outcomes.values() if isinstance(done, Run)]
    failed = {name: str(done) for name, done in outcomes.items() if isinstance(done, QuantgateError)}
    report = write_report(finished, failed)
    if as_json:
        _print_json([manifest.model_dump(mode="json") for manifest in finished])
    else:
        show_comparison(outcomes)
        show_path("report", report)
    codes = set()
    for name, done in outcomes.items():
        if isinstance(done, QuantgateError):
            _complain(f"{name}: {done}")  # said before, but far above by now
            codes.add(1)
        else:
            for reason in done.unpublished.values():
                _complain(f"{name}: {reason}")
            codes.add(done.exit_code)
    sys.exit(worst(codes))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_option("--dry-run", is_flag=True, help="Check everything and say what it would take; compute nothing.")
@_option("--to", metavar="TARGET", multiple=True, help="Publish here, and not where FILE says; may be given again.")
@_option("--no-publish", is_flag=True, help="Judge, but publish nothing: for a pull request.")
@_option("--out", metavar="FOLDER", type=click.Path(path_type=Path), help="Where reports go. Default: in the cache.")
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
    from pipelines.cli.tables import show_foreseen, show_path, show_release
    from pipelines.flow.release import foresee_release, load_release, prepare_release, run_release

    python = _vllm_python(runtime, python)
    described = load_release(file)
    jobs = prepare_release(described, file.absolute().parent, to, not no_publish, device, runtime, full, signer, dtype)
    if dry_run:
        foreseen = foresee_release(jobs)
        return _print_json([one.model_dump() for one in foreseen]) if as_json else show_foreseen(foreseen)
    outcome, written = run_release(described, jobs, out, python)
    if as_json:
        _print_json({**outcome.model_dump(mode="json"), "exit_code": outcome.exit_code})
    else:
        show_release(outcome)
        show_path("reports", written)
    sys.exit(outcome.exit_code)


@main.command()
@click.argument("recipe")
@model_option
@set_option
@cpu_option
@dtype_option
@json_option
def quantize(
    recipe: str, model: str | None, overrides: tuple[str, ...], experimental_cpu: bool, dtype: "Dtype", as_json: bool
) -> None:
    """Make the artifact and verify it, without judging it; prints its folder."""
    from pipelines.core.cache import cache_dir
    from pipelines.flow.display import command_display
    from pipelines.planning.stage import make_plan
    from pipelines.quantization.stage import GgufArtifact
    from pipelines.quantization.stage import quantize as quantize_stage
    from pipelines.recipe.load import load_recipe
    from pipelines.verification.stage import verify

    chosen = load_recipe(recipe, _overrides(overrides, experimental_cpu))
    planned = make_plan(chosen, model, cache_dir(), dtype=dtype)  # nothing is published
    with command_display("quantize", "quantize", "verify") as display:
        with display.stage("quantize"):
            artifact = quantize_stage(planned)
        with display.stage("verify"):
            checked = verify(artifact, dtype=dtype)
    if isinstance(artifact, GgufArtifact):
        from pipelines.quantization.gguf.convert import discard

        discard(artifact.source)
    if as_json:
        return _print_json({**checked.model_dump(mode="json"), "artifact": str(artifact.checkpoint)})
    from pipelines.cli.tables import show_path, show_stages
    from pipelines.core.text import size
    from pipelines.reporting.package import stage_record

    show_stages((stage_record("quantize", (artifact,)), stage_record("verify", (checked,))))
    print(f"weights    {size(checked.bytes_before)} → {size(checked.bytes_after)}")
    show_path("artifact", artifact.checkpoint)


@main.command()
@click.argument("model", required=False)
@_option("--suite", default="core", show_default=True, help="A suite's name or file.")
@_option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the evaluation here, for `gate`.")
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
    from pipelines.checkpoint.load import load_model
    from pipelines.core.cache import write_json
    from pipelines.evaluation.stage import evaluate as evaluate_stage
    from pipelines.evaluation.tasks import check_tasks
    from pipelines.flow.display import command_display
    from pipelines.recipe.load import load_suite

    _check_out(out)
    python = _vllm_python(runtime, python)
    gguf = _gguf_of(model)
    check_tasks(load_suite(suite))
    with command_display("evaluate", "evaluate") as display, display.stage("evaluate"):
        done = evaluate_stage(gguf or load_model(model), suite, device, runtime, python, dtype)
    if out:
        write_json(out, done.model_dump(mode="json"))
    if as_json:
        return _print_json(done.model_dump(mode="json"))
    from pipelines.cli.tables import show_list

    rows = [
        (task.about.task, f"{task.about.metric} {task.mean:.4f} on {task.documents} documents") for task in done.tasks
    ]
    show_list(rows, f"{done.model} on {done.suite.name}")


@main.command()
@click.argument("baseline", type=click.Path(path_type=Path), required=False)
@click.argument("candidate", type=click.Path(path_type=Path), required=False)
@_option("--retention", type=float, default=0.99, show_default=True, help="The share of the baseline to keep.")
@_option("--plan", "recipe", metavar="RECIPE", help="Judge nothing; say what the gate of RECIPE will be able to see.")
@_option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the verdict here, for `publish`.")
@json_option
def gate(
    baseline: Path | None, candidate: Path | None, retention: float, recipe: str | None, out: Path | None, as_json: bool
) -> None:
    """Judge CANDIDATE against BASELINE, two files written by `evaluate --out`."""
    from pipelines.core.cache import write_json
    from pipelines.core.errors import bad_input
    from pipelines.evaluation.scores import Evaluation
    from pipelines.gating.gate import gate as gate_stage
    from pipelines.publishing.stage import EXIT_CODES

    if recipe:
        if candidate or out:
            raise bad_input("gate --plan", "judges nothing", "give a recipe, and the baseline at most")
        return _foresee(recipe, _read(baseline, Evaluation) if baseline else None, as_json)
    if baseline is None or candidate is None:
        raise bad_input("gate", "needs BASELINE and CANDIDATE", "write them with `quantgate evaluate --out`")
    _check_out(out)
    verdict = gate_stage(_read(baseline, Evaluation), _read(candidate, Evaluation), retention)
    if out:
        write_json(out, verdict.model_dump(mode="json"))
    if as_json:
        _print_json(verdict.model_dump(mode="json", exclude={"evaluations"}))
    else:
        from pipelines.cli.tables import show_verdict

        show_verdict(verdict)
    sys.exit(EXIT_CODES[verdict.verdict])


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Rank finished runs by size and quality: published artifacts, run.json files, or their folders.

    Those of different models, suites, runtimes or devices are ranked apart.
    """
    from pipelines.cli.tables import show_ranking
    from pipelines.reporting.history import compare as rank
    from pipelines.reporting.history import read_runs

    rankings = rank(read_runs(runs))
    if as_json:
        return _print_json([ranking.model_dump(mode="json") for ranking in rankings])
    for ranking in rankings:
        show_ranking(ranking)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@_option(
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it: an .html file, or .md for the summary of a CI job.",
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write the report of finished runs: published artifacts, run.json files, or their folders."""
    from pipelines.core.errors import bad_input
    from pipelines.flow.remedy import remedies
    from pipelines.reporting.history import read_runs
    from pipelines.reporting.report import html, markdown

    write = {".html": html, ".md": markdown}.get(out.suffix)
    if write is None:
        raise bad_input(f"--out {out}", "is of no kind that reports are written in", "end it in .html or .md")
    _check_out(out)
    found = read_runs(runs)
    out.write_text(write(found, remedies=remedies(found)), encoding="utf-8")
    click.echo(out)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@_option("--budget", type=float, metavar="BYTES", help="Of tensors, at most. Default: all layers with more bits.")
@_option("--to", metavar="FOLDER", help="Publish below it. Default: artifacts/<model>.")
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
    from pipelines.cli.tables import show_comparison, show_path
    from pipelines.flow.repair import repair as repair_run
    from pipelines.flow.run import write_report
    from pipelines.publishing.stage import EXIT_CODES
    from pipelines.reporting.history import read_runs
    from pipelines.reporting.record import Manifest

    (failed,) = read_runs([run])
    attempts = repair_run(failed, load_model(model), int(budget) if budget else None, to, device, dtype)
    manifests: list[Manifest] = [failed, *(attempt.manifest for attempt in attempts)]
    if as_json:
        _print_json([manifest.model_dump(mode="json") for manifest in manifests])
    else:
        show_comparison({attempt.manifest.recipe.name: attempt for attempt in attempts})
        show_path("report", write_report(manifests))
    sys.exit(EXIT_CODES[attempts[-1].verdict.verdict])


def _foresee(name: str, baseline: "Evaluation | None", as_json: bool) -> None:
    from pipelines.core.errors import bad_input
    from pipelines.gating.power import foresee
    from pipelines.recipe.load import load_recipe, load_suite
    from pipelines.reporting.history import discordance

    recipe = load_recipe(name)
    suite = baseline.suite if baseline else load_suite(recipe.gate.suite)
    seen = foresee(recipe, suite, discordance(recipe), baseline)
    if seen is None:
        what = "has a task whose documents are not counted anywhere"
        raise bad_input(
            f"suite {suite.name}", what, "give each task a limit, or evaluate the baseline and give it, too"
        )
    if as_json:
        return _print_json(seen.model_dump())
    click.echo(seen.sentence(suite.name))


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@_option("--verdict", "verdict_file", type=click.Path(path_type=Path), required=True, help="Written by `gate --out`.")
@_option("--to", metavar="TARGET", required=True, multiple=True, help="Where to publish; may be given again.")
@_option("--force", metavar="REASON", help="Publish without a PASS; the reason is written into the card.")
@signing_options
def publish(
    artifact: Path,
    verdict_file: Path,
    to: tuple[str, ...],
    force: str | None,
    signer: "Signer | None",
) -> None:
    """Publish ARTIFACT (a folder that `quantize` printed) if its verdict is a PASS.

    TARGET is a folder, hf://org/name[@branch], s3://bucket/prefix (or another file system), or oci://host/name:tag.
    """
    from pipelines.core.errors import bad_input
    from pipelines.gating.gate import Verdict
    from pipelines.publishing.stage import publish as publish_stage

    if force is not None and not force.strip():
        raise bad_input("--force", "needs a reason", "give it in quotes: it is written into the card")
    made = _artifact(artifact)
    verdict: Verdict = _read(verdict_file, Verdict)
    for place in publish_stage(made, verdict, to, force, signer=signer):
        click.echo(f"published  {place}")


@main.command()
@click.argument("source", metavar="TARGET")
@click.argument("folder", type=click.Path(path_type=Path))
@trust_options
@json_option
def pull(
    source: str,
    folder: Path,
    trust: "Trust | None",
    as_json: bool,
) -> None:
    """Fetch what is published at TARGET into FOLDER, checked: every digest, the verdict, and a signature if asked."""
    from pipelines.publishing.stage import pull as pull_published

    _show_checked(pull_published(source, folder, trust), as_json)
    if not as_json:
        click.echo(f"pulled     {folder}")


@main.command()
@click.argument("artifact")
@trust_options
@device_option
@dtype_option
@runtime_option
@python_option
@json_option
def verify(
    artifact: str,
    trust: "Trust | None",
    device: str | None,
    dtype: "Dtype",
    runtime: "Runtime",
    python: Path | None,
    as_json: bool,
) -> None:
    """Check ARTIFACT: what `quantize` printed, or what is published in a folder or at another target.

    The first is held against its plan and its source; the second against its own proof: digests, statement, verdict
    (judged again), and its signature, if you say whom you trust. --runtime vllm loads either in vLLM.
    """
    from pipelines.core.errors import bad_input
    from pipelines.flow.display import command_display
    from pipelines.publishing.stage import check_published
    from pipelines.reporting.record import RECORD
    from pipelines.verification.stage import verify as verify_stage

    python = _vllm_python(runtime, python)
    if runtime == "vllm":
        if "://" in artifact:
            raise bad_input(artifact, "is no folder, and vLLM loads nothing else", "quantgate pull it first")
        if trust:
            check_published(artifact, trust)
        return _verify_in_vllm(Path(artifact), device, python, as_json)
    if trust or "://" in artifact or (Path(artifact) / RECORD).is_file():
        return _show_checked(check_published(artifact, trust), as_json)
    made = _artifact(Path(artifact))
    with command_display("verify", "verify") as display, display.stage("verify"):
        checked = verify_stage(made, device, dtype)
    if as_json:
        return _print_json(checked.model_dump(mode="json"))
    from pipelines.cli.tables import show_verification

    show_verification(checked)


def _show_checked(checked: "Checked", as_json: bool) -> None:
    from pipelines.cli.tables import show_checked

    if as_json:
        return _print_json(checked.model_dump(mode="json"))
    show_checked(checked)


def _verify_in_vllm(folder: Path, device: str | None, python: Path | None, as_json: bool) -> None:
    from pipelines.core.device import choose_device
    from pipelines.environments import isolated
    from pipelines.runtimes import vllm

    formats, kv_cache = _formats(folder)
    device = choose_device(device)
    reason = vllm.runs_on_cpu(formats, kv_cache) if device == "cpu" else None
    if reason:
        click.echo(f"not verifiable on this device: {reason}", err=True)
        sys.exit(4)
    compared = vllm.compare(folder, python or isolated.make("vllm"), device)
    if as_json:
        _print_json({**compared.model_dump(mode="json"), "agrees": compared.agrees})
    else:
        from pipelines.cli.tables import show_agreement

        show_agreement(compared)
    sys.exit(0 if compared.agrees else 1)


@main.group()
def env() -> None:
    """Environments of runtimes and engines that cannot share ours."""


@env.command("list")
@json_option
def env_list(as_json: bool) -> None:
    """List the environments, and where each that is made has its Python or its programs."""
    from pipelines.cli.tables import show_facts
    from pipelines.environments import isolated

    found = {name: isolated.find(name) for name in isolated.names()}
    if as_json:
        return _print_json([{"name": name, "place": str(place) if place else None} for name, place in found.items()])
    show_facts("environments", {name: str(place) if place else "not made" for name, place in found.items()})


@env.command("make")
@click.argument("name")
def env_make(name: str) -> None:
    """Make the environment NAME (minutes, for vLLM gigabytes, once); prints its Python or its folder of programs."""
    from pipelines.environments import isolated

    click.echo(isolated.make(name))


@env.command("check")
@click.argument("name")
def env_check(name: str) -> None:
    """Start the runtime of the environment NAME and print its version."""
    from pipelines.environments import isolated

    click.echo(isolated.check(name))


@env.command("remove")
@click.argument("name")
def env_remove(name: str) -> None:
    """Delete the environment NAME."""
    from pipelines.environments import isolated

    isolated.remove(name)


def _gguf_of(model: str | None) -> Path | None:
    """The GGUF that MODEL is, or that is in its folder."""
    from pipelines.planning.gguf import IMATRIX

    place = Path(model or "").expanduser()
    if model is None or place.is_file():
        return place if place.suffix == ".gguf" else None
    files = [file for file in place.glob("*.gguf") if file.name != IMATRIX]
    return files[0] if len(files) == 1 and not (place / "config.json").exists() else None


def _artifact(folder: Path) -> "Artifact":
    """The artifact whose files are in `folder`, as `quantize` printed it."""
    from pipelines.core.errors import bad_input
    from pipelines.quantization.stage import KeptArtifact

    if not (folder.parent / "result.json").is_file():
        what = "is no artifact of quantgate: it holds no quantgate.json, and no result.json lies beside it"
        raise bad_input(folder, what, "give the folder that `run --to` published into, or that `quantize` printed")
    made: Artifact = _read(folder.parent / "result.json", KeptArtifact).root
    return made.model_copy(update={"folder": folder.parent.absolute()})


def _formats(folder: Path) -> "tuple[Iterable[tuple[SchemeName, int | None]], str | None]":
    """The schemes with their group sizes, and that of the KV cache, of an artifact, published or as `quantize` printed
    it."""
    from pipelines.planning.plan import CheckpointPlan
    from pipelines.reporting.record import RECORD, Manifest

    if not (folder / RECORD).is_file():
        plan = _artifact(folder).plan
        return plan.formats if isinstance(plan, CheckpointPlan) else (), plan.recipe.kv_cache
    manifest: Manifest = _read(folder / RECORD, Manifest)
    formats = [(module.scheme, module.group_size) for module in manifest.modules if module.scheme]
    return formats, manifest.recipe.kv_cache


def _vllm_python(runtime: str, python: Path | None) -> Path | None:
    """`--vllm-python`, checked; its symbolic links are what makes it the Python of an environment."""
    from pipelines.core.errors import bad_input

    if python is None:
        return None
    if runtime != "vllm":
        raise bad_input(f"--vllm-python {python}", "is not used by transformers", "add --runtime vllm")
    if not python.is_file():
        raise bad_input(f"--vllm-python {python}", "is not a file", "give the environment's bin/python")
    return python.absolute()


RECORDS = {
    "Evaluation": "an evaluation",
    "Verdict": "a verdict",
    "KeptArtifact": "an artifact",
    "Manifest": "an artifact",
}


def _read(path: Path, kind: Any) -> Any:
    """A record that another command wrote."""
    from pydantic import ValidationError

    from pipelines.core.errors import bad_input

    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise bad_input(path, f"cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError):
        raise bad_input(path, f"is not a record of {RECORDS[kind.__name__]} by this version of quantgate") from None


def _check_out(out: Path | None) -> None:
    """Refuse an output file whose folder is not there, before the work."""
    from pipelines.core.errors import bad_input

    if out and not out.absolute().parent.is_dir():
        raise bad_input(out, "cannot be written: its folder is not there", f"make {out.parent} first")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
