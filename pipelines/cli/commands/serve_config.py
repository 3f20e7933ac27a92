"""`quantgate serve-config`: the config that serves an artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pipelines.cli.options import FILE, PATH
from pipelines.cli.output import check_output_file

if TYPE_CHECKING:
    from pipelines.serving.configs import Config
    from pipelines.serving.loads import Runtime
    from pipelines.serving.served import Served
    from pipelines.serving.serving import Draft, Goal

RUNTIMES = ("vllm", "sglang", "tensorrt-llm", "llama.cpp", "ollama")
MII = "deepspeed-mii"
GOALS = ("throughput", "cost", "latency", "long-context", "edge")


@click.command("serve-config")
@click.argument("artifact", type=PATH)
@click.option("--runtime", type=click.Choice([*RUNTIMES, MII]), required=True, help="What serves it.")
@click.option("--goal", type=click.Choice(GOALS), help="What the server is for, where nothing else is said.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that one server has.")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens of a prompt and its answer. Default: what the model can read."
)
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once. Default: the runtime's choice.")
@click.option(
    "--draft",
    metavar="ARTIFACT|ngram",
    help="A smaller artifact of the same vocabulary that guesses ahead, or ngram, which needs none.",
)
@click.option("--kv-cache", type=click.Choice(["fp8"]), help="Type of cached keys and values. Default: the artifact's.")
@click.option("--out", metavar="FILE", type=FILE, help="Where to write it. Default: standard output.")
def serve_config(
    artifact: Path,
    runtime: "Runtime | Literal['deepspeed-mii']",
    goal: "Goal | None",
    gpus: int,
    context: int | None,
    concurrency: int | None,
    draft: str | None,
    kv_cache: Literal["fp8"] | None,
    out: Path | None,
) -> None:
    """Write the config with which a runtime serves ARTIFACT, what `quantize` printed or a folder it was published to.

    What the runtime does not load, or would read as something else, is refused with the reason. vLLM's own parser reads
    the config of vLLM, and llama-server is started with its own, where `quantgate env make` has made these; of the
    others only the names are checked, and that is said.
    """
    from pipelines.core.errors import bad_input
    from pipelines.serving.checks import check
    from pipelines.serving.configs import check_loads, make_config
    from pipelines.serving.served import read_served
    from pipelines.serving.serving import make_serving

    check_output_file(out)
    if runtime == "deepspeed-mii":
        what = (
            "DeepSpeed-MII 0.3.3 reads no config of quantized weights: its quantization_mode rounds those of a source"
        )
        raise bad_input(
            f"--runtime {runtime}", what, "serve the source with it, as a baseline, or take another runtime"
        )
    served = read_served(artifact)
    check_loads(runtime, served)
    serving = make_serving(
        runtime,
        served,
        goal=goal,
        gpus=gpus,
        context=context,
        concurrency=concurrency,
        kv_cache=kv_cache,
        draft=_draft(runtime, served, draft) if draft is not None else None,
    )
    config = make_config(runtime, served, serving)
    checked = check(config, served, serving)
    if out:
        out.write_text(config.text, encoding="utf-8")
    else:
        click.echo(config.text, nl=False)
    _tell(config, served, out, checked)


def _draft(runtime: "Runtime", served: "Served", draft: str) -> "Draft":
    """Return the draft that `--draft` asks for, if it can guess for the artifact and `runtime` loads it."""
    from pipelines.serving.configs import check_loads
    from pipelines.serving.drafts import check_draft
    from pipelines.serving.served import read_served
    from pipelines.serving.serving import Draft

    if draft == "ngram":
        return Draft(model=None)
    model = read_served(Path(draft))
    check_loads(runtime, model)
    check_draft(served, model)
    return Draft(model=model.model)


def _tell(config: "Config", served: "Served", out: Path | None, checked: str) -> None:
    """Say on standard error how the config is used, and how far it was checked."""
    from pipelines.serving.configs import FILES

    told = [("serve", command) for command in config.commands(str(served.model), str(out or FILES[config.runtime]))]
    for name, text in (*told, *(("note", note) for note in config.notes), ("checked", checked)):
        click.echo(f"{name:10} {text}", err=True)
