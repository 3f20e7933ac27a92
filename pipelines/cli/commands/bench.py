"""`quantgate bench`: the speed of artifacts in the server that they are for."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.cli.options import FILE, FiniteRange, device_option, json_option, python_option, vllm_python
from pipelines.cli.output import check_output_file, print_json

if TYPE_CHECKING:
    from pipelines.benching.server import ServerRuntime
    from pipelines.benching.summary import Wanted

POSITIVE = FiniteRange(min=0, min_open=True)


@click.command("bench")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--runtime", type=click.Choice(["vllm", "llama.cpp"]), required=True, help="Whose server the artifacts are for."
)
@click.option("--baseline", is_flag=True, help="Serve what they were made of, too, and tell ratios to it.")
@click.option("--model", metavar="MODEL", help="The baseline, where no record names it: a checkpoint or a GGUF.")
@click.option("--draft", metavar="ARTIFACT", help="Serve each artifact again, with this draft model.")
@click.option("--rates", metavar="R,...", help="Requests a second that arrive at random, one load for each rate.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Requests that a server works on at once. Without --rates, one at a time and so many are the loads.",
)
@click.option("--requests", type=click.IntRange(min=2), default=64, show_default=True, help="Requests of each load.")
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Length of every prompt."
)
@click.option(
    "--output-tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Length of every answer."
)
@click.option("--slo", metavar="LIMITS", help="What a request may take: ttft=500,itl=50,e2e=20s,share=0.99, or a part.")
@click.option("--dollars-per-hour", type=POSITIVE, help="Price of the machine: tell what a million output tokens cost.")
@click.option("--traffic", type=POSITIVE, help="Requests a second to come: tell how many such servers keep the SLO.")
@click.option(
    "--headroom",
    type=FiniteRange(min=0, max=1, min_open=True),
    default=0.75,
    show_default=True,
    help="Share of the rate that was shown to be kept which each server of --traffic gets.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the servers on loopback. Default: a free one.")
@click.option("--eager", is_flag=True, help="Let vLLM serve without compiling: it starts sooner and is slower.")
@click.option("--again", is_flag=True, help="Measure anew what was measured on this machine before.")
@python_option
@device_option
@click.option("--out", type=FILE, help="Write the result here, as JSON.")
@json_option
def bench(
    artifacts: tuple[str, ...],
    runtime: "ServerRuntime",
    baseline: bool,
    model: str | None,
    draft: str | None,
    rates: str | None,
    concurrency: int,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    slo: str | None,
    dollars_per_hour: float | None,
    traffic: float | None,
    headroom: float,
    port: int | None,
    eager: bool,
    again: bool,
    python: Path | None,
    device: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast ARTIFACT is in the server of a runtime: published artifacts, checkpoints or GGUF files.

    The servers run on this machine, one at a time and each twice (A B, B A), under the same prompts and lengths of
    answers. The result is of this machine, and is kept for it.
    """
    from pipelines.benching.candidates import find_lineup
    from pipelines.benching.server import Host
    from pipelines.benching.stage import bench as bench_stage
    from pipelines.benching.summary import check_wanted, summarize
    from pipelines.benching.workload import Workload, loads
    from pipelines.cli.tables.bench import show_bench
    from pipelines.core.cache import write_json
    from pipelines.core.device import choose_device
    from pipelines.flow.display import command_display

    check_output_file(out)
    workload = Workload(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests=requests,
        concurrency=concurrency,
        loads=loads(_rates(rates), concurrency),
    )
    wanted = _wanted(slo, dollars_per_hour, traffic, headroom)
    check_wanted(wanted, workload)
    host = Host(
        runtime=runtime, device=choose_device(device), port=port, python=vllm_python(runtime, python), eager=eager
    )
    lineup = find_lineup(artifacts, runtime, host.device, baseline, model, draft)
    with command_display("bench", "bench") as display, display.stage("bench"):
        done = bench_stage(lineup, host, workload, again)
    summary = summarize(done, wanted)
    if out:
        write_json(out, summary.model_dump(mode="json"))
    if as_json:
        return print_json(summary.model_dump(mode="json"))
    show_bench(summary, done.reused)


def _rates(text: str | None) -> tuple[float, ...]:
    """Return the rates in `text`, such as `1,2.5,4`.

    Raises:
        BadInput: it is no list of numbers above 0.
    """
    from pipelines.core.errors import bad_input

    try:
        rates = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        rates = (0.0,)
    if not all(0 < rate < float("inf") for rate in rates):
        raise bad_input(f"--rates {text}", "is no list of rates above 0", "give requests a second, like 1,2.5,4")
    return rates


def _wanted(slo: str | None, dollars_per_hour: float | None, traffic: float | None, headroom: float) -> "Wanted":
    from pipelines.benching.slo import parse_slo
    from pipelines.benching.summary import Wanted

    limits = parse_slo(slo) if slo else None
    return Wanted(slo=limits, dollars_per_hour=dollars_per_hour, traffic=traffic, headroom=headroom)
