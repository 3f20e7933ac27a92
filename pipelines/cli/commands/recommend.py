"""`quantgate recommend`: the recipes to begin with."""

from typing import TYPE_CHECKING

import click

from pipelines.cli.commands.serve_config import GOALS
from pipelines.cli.options import FiniteRange, json_option, model_option
from pipelines.cli.output import print_json

if TYPE_CHECKING:
    from pipelines.serving.serving import Goal

MOST = 10**9
"""Largest number of GPUs, tokens or requests that is asked about: a float holds what is computed from it."""


@click.command("recommend")
@model_option
@click.option(
    "--hardware",
    metavar="NAME",
    help="What is to serve it: cpu, or a GPU, like H100, L40S, A100 or B200. Default: this machine.",
)
@click.option(
    "--gpus", type=click.IntRange(1, MOST), metavar="N", default=1, show_default=True, help="How many of them, at most."
)
@click.option(
    "--for",
    "goal",
    type=click.Choice(GOALS),
    default="throughput",
    show_default=True,
    help="What counts. cost: tokens for each GPU; latency: one request at a time; edge: GGUF only.",
)
@click.option(
    "--keep",
    type=FiniteRange(0, 1, min_open=True),
    metavar="SHARE",
    default=0.99,
    show_default=True,
    help="Share of the baseline's score that must be kept.",
)
@click.option("--context", type=click.IntRange(1, MOST), metavar="N", help="Tokens of a request, prompt and answer.")
@click.option("--concurrency", type=click.IntRange(1, MOST), metavar="N", help="Requests at once.")
@click.option(
    "--ask",
    type=click.Choice(["aiconfigurator"]),
    help="Show a second opinion beside the speeds: NVIDIA's, in an environment that is made at first (670 MB).",
)
@json_option
def recommend(
    model: str | None,
    hardware: str | None,
    gpus: int,
    goal: "Goal",
    keep: float,
    context: int | None,
    concurrency: int | None,
    ask: str | None,
    as_json: bool,
) -> None:
    """Name the recipes to begin with, in order, and the commands that prove them; reads no weights."""
    from pipelines.checkpoint.load import load_model
    from pipelines.cli.tables.recommend import show_recommendation
    from pipelines.core import progress
    from pipelines.flow.recommend import Wish, with_second_opinion
    from pipelines.flow.recommend import recommend as order
    from pipelines.serving.hardware import find_hardware
    from pipelines.serving.second_opinion import check_known

    found = find_hardware(hardware)
    if ask:
        check_known(found)
    checkpoint = load_model(model)
    wish = Wish(goal=goal, hardware=found, gpus=gpus, keep=keep, context=context, concurrency=concurrency)
    with progress.status("planning each recipe …"):
        made = order(checkpoint, wish, model)
    if ask and made.choices:
        with progress.status(f"asking {ask} …"):
            made = with_second_opinion(made, checkpoint, found)
    if as_json:
        return print_json(made.model_dump(mode="json"))
    show_recommendation(made)
