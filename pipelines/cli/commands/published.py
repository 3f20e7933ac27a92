"""`quantgate publish`, `pull` and `verify`: artifacts, their places and their proof."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import (
    PATH,
    PlacesCommand,
    device_option,
    dtype_option,
    json_option,
    python_option,
    runtime_option,
    signing_options,
    trust_options,
    vllm_python,
)
from pipelines.cli.output import print_json

if TYPE_CHECKING:
    from pipelines.core.device import Dtype
    from pipelines.evaluation.subject import Runtime
    from pipelines.publishing.bundle import Checked
    from pipelines.publishing.signature import Signer, Trust


@click.command("publish", cls=PlacesCommand)
@click.argument("artifact", type=PATH)
@click.option("--verdict", "verdict_file", type=PATH, required=True, help="Written by `gate --out`.")
@click.option("--to", metavar="TARGET", required=True, multiple=True, help="Where to publish; may be given again.")
@click.option("--force", metavar="REASON", help="Publish without a PASS; the reason is written into the card.")
@signing_options
def publish(
    artifact: Path, verdict_file: Path, to: tuple[str, ...], force: str | None, signer: "Signer | None"
) -> None:
    """Publish ARTIFACT (a folder that `quantize` printed) if its verdict is a PASS.

    TARGET is {places}.
    """
    from pipelines.core.errors import bad_input
    from pipelines.core.records import read_record
    from pipelines.gating.verdict import Verdict
    from pipelines.publishing.stage import publish as publish_stage
    from pipelines.quantization.stage import read_artifact

    if force is not None and not force.strip():
        raise bad_input("--force", "needs a reason", "give it in quotes: it is written into the card")
    made = read_artifact(artifact)
    verdict = read_record(verdict_file, Verdict, "a verdict")
    for place in publish_stage(made, verdict, to, force, signer=signer):
        click.echo(f"published  {place}")


@click.command("pull")
@click.argument("source", metavar="TARGET")
@click.argument("folder", type=PATH)
@trust_options
@json_option
def pull(source: str, folder: Path, trust: "Trust | None", as_json: bool) -> None:
    """Fetch what is published at TARGET into FOLDER, checked: every digest, the verdict, and a signature if asked."""
    from pipelines.publishing.stage import pull as pull_published

    _show_checked(pull_published(source, folder, trust), as_json)
    if not as_json:
        click.echo(f"pulled     {folder}")


@click.command("verify")
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
    from pipelines.cli.tables.checks import show_verification
    from pipelines.core.errors import bad_input
    from pipelines.flow.display import command_display
    from pipelines.publishing.stage import check_published
    from pipelines.quantization.stage import read_artifact
    from pipelines.reporting.record import RECORD
    from pipelines.verification.stage import verify as verify_stage

    python = vllm_python(runtime, python)
    if runtime == "vllm":
        if "://" in artifact:
            raise bad_input(artifact, "is no folder, and vLLM loads nothing else", "quantgate pull it first")
        if trust:
            check_published(artifact, trust)
        return _verify_in_vllm(Path(artifact), device, python, as_json)
    if trust or "://" in artifact or (Path(artifact) / RECORD).is_file():
        return _show_checked(check_published(artifact, trust), as_json)
    made = read_artifact(Path(artifact))
    with command_display("verify", "verify") as display, display.stage("verify"):
        checked = verify_stage(made, device, dtype)
    if as_json:
        return print_json(checked.model_dump(mode="json"))
    show_verification(checked)


def _show_checked(checked: "Checked", as_json: bool) -> None:
    from pipelines.cli.tables.checks import show_checked

    if as_json:
        return print_json(checked.model_dump(mode="json"))
    show_checked(checked)


def _verify_in_vllm(folder: Path, device: str | None, python: Path | None, as_json: bool) -> None:
    """Load the artifact in `folder` in vLLM, show how far it agrees with transformers, and exit accordingly."""
    from pipelines.cli.tables.checks import show_agreement
    from pipelines.core.device import choose_device
    from pipelines.flow.in_vllm import compare_in_vllm, why_not_in_vllm

    device = choose_device(device)
    if reason := why_not_in_vllm(folder, device):
        click.echo(f"not verifiable on this device: {reason}", err=True)
        sys.exit(4)
    compared = compare_in_vllm(folder, device, python)
    if as_json:
        print_json({**compared.model_dump(mode="json"), "agrees": compared.agrees})
    else:
        show_agreement(compared)
    sys.exit(0 if compared.agrees else 1)
