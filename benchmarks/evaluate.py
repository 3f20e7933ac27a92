"""quantgate's evaluation against plain `lm_eval --model hf`: the same model, tasks, documents and machine.

    python -m benchmarks.evaluate [--model MODEL] [--tasks sciq …] [--limit 300] [--dtype float32] [--device cpu]
                                  [--artifacts fp8 int8-weight-only …]

First a line for each task: seconds of either, one process after the other, the model's loading included and imports
not; peak memory (of the GPU, on one); and how far each document's score and margin are apart. In float32 the scores are
the same, and margins differ by the order of sums. In bfloat16 plain lm-eval also rounds log-probabilities, to steps of
1/8 from 16 nats on, so that some near ties fall otherwise. The last column is what another batch size changes in plain
lm-eval. Then, over all tasks, what an artifact of each recipe takes relative to the model that it is made of, and what
the model takes in bfloat16 relative to float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.evaluation.scores import Document
    from pipelines.evaluation.task import LmEvalTask

TASKS = ("sciq", "arc_easy", "arc_challenge", "piqa", "winogrande", "hellaswag", "lambada_openai")
BATCHES = {"cpu": {"plain": 16, "other": 5}, "cuda": {"plain": 64, "other": 20}}
"""Device → batch sizes of plain lm-eval: what people use on a CPU, and what `--batch_size auto` takes at most on a GPU;
and another, to see how much that alone changes."""


def main() -> None:
    """Measure, and print the table as Markdown, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint folder; the default model unless given")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--limit", type=int, default=300, help="documents of each task")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu", choices=BATCHES)
    parser.add_argument("--artifacts", nargs="*", default=["fp8", "int8-weight-only"], metavar="RECIPE")
    parser.add_argument("--one", nargs=4, metavar="WAY TASK LIMIT MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, task, limit, model = options.one
        return print(json.dumps(one(way, task, int(limit), model, options.device, options.dtype)))
    with tempfile.TemporaryDirectory() as scratch:
        model = in_dtype(options.model, options.dtype, Path(scratch))
        print_table(options.tasks, options.limit, model, options.device, options.dtype)
    print_ratios(options)


def print_ratios(options: argparse.Namespace) -> None:
    """Print the seconds over all tasks of artifacts and of bfloat16, relative to the source in float32."""
    from pipelines.checkpoint.load import load_model
    from pipelines.planning.stage import make_plan
    from pipelines.quantization.stage import quantize

    source = load_model(options.model)
    folders = {name: quantize(make_plan(name, source)).checkpoint for name in options.artifacts}

    def seconds(model: Path, dtype: str) -> float:
        runs = (measure("ours", task, options.limit, str(model), options.device, dtype) for task in options.tasks)
        return sum(float(run["seconds"]) for run in runs)

    baseline = seconds(source.folder, "float32")
    print(
        "\n| evaluated | time, relative to the model in float32 |\n|---|---|\n| the model in float32 | 1.00 |",
        flush=True,
    )
    for name, folder in folders.items():
        print(f"| `{name}` in float32 | {seconds(folder, 'float32') / baseline:.2f} |", flush=True)
    print(f"| the model in bfloat16 | {seconds(source.folder, 'bfloat16') / baseline:.2f} |", flush=True)


def print_table(tasks: list[str], limit: int, model: str, device: str, dtype: str) -> None:
    """Print both ways, task by task, and their sum."""
    print("| task | documents | plain lm-eval, s | quantgate, s | ratio | peak memory | scores that differ | largest "
          "difference of margins | scores that differ in plain lm-eval with another batch size |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    total = {"plain": 0.0, "ours": 0.0}
    for task in tasks:
        plain, ours, other = (measure(way, task, limit, model, device, dtype) for way in ("plain", "ours", "other"))
        total = {"plain": total["plain"] + plain["seconds"], "ours": total["ours"] + ours["seconds"]}
        margins = zip(plain["margins"], ours["margins"], strict=True)
        apart = max((abs(a - b) for a, b in margins if a is not None), default=float("nan"))
        print(
            f"| {task} | {len(ours['scores'])} | {plain['seconds']:.1f} | {ours['seconds']:.1f} "
            f"| {plain['seconds'] / ours['seconds']:.2f} | {plain['peak'] / 1e9:.2f} → {ours['peak'] / 1e9:.2f} GB "
            f"| {differ(plain, ours)} | {apart:.2g} nats | {differ(plain, other)} |",
            flush=True,
        )
    print(f"| all | | {total['plain']:.1f} | {total['ours']:.1f} | {total['plain'] / total['ours']:.2f} | | | | |")


def differ(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Return the number of documents whose score is not the same."""
    return sum(a != b for a, b in zip(one["scores"], other["scores"], strict=True))


def measure(way: str, task: str, limit: int, model: str, device: str, dtype: str) -> dict[str, Any]:
    """Run `one` in a process of its own, with a cache of its own but for what is fetched, and return its result."""
    from pipelines.core.cache import cache_dir

    fetched = cache_dir() / "wheels"
    with tempfile.TemporaryDirectory() as cache:
        if fetched.is_dir():
            (Path(cache) / "wheels").symlink_to(fetched)
        command = [
            sys.executable,
            __file__,
            "--device",
            device,
            "--dtype",
            dtype,
            "--one",
            way,
            task,
            str(limit),
            model,
        ]
        environment = {**os.environ, "QUANTGATE_CACHE": cache}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(way: str, name: str, limit: int, model: str, device: str, dtype: Any) -> dict[str, Any]:
    """Return seconds, peak memory in bytes, and each document's score and margin, by the way `ours`, `plain` or
    `other`."""
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401  # imports are not counted, in either way
    import torch

    import pipelines.runtimes.dequantize
    import pipelines.runtimes.transformers_lm  # noqa: F401
    from pipelines.core.cache import Meter
    from pipelines.evaluation.stage import evaluate
    from pipelines.evaluation.tasks import open_task
    from pipelines.recipe.load import load_task
    from pipelines.recipe.suite import Suite, SuiteTask

    wanted = SuiteTask(task=name, limit=limit)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        loaded = open_task(load_task(name), Path(scratch))
        torch.empty(0, device=device)  # CUDA's start is not counted either
        meter, start = Meter(), time.perf_counter()
        if way == "ours":
            suite = Suite(version=1, name="benchmark", summary="", tasks=(wanted,))
            documents = list(evaluate(model, suite, device, dtype=dtype).scores()[name])
        else:
            documents = plain(model, loaded, limit, device, BATCHES[device][way])
        seconds = time.perf_counter() - start
    scores, margins = [d.score for d in documents], [d.margin for d in documents]
    peak = meter.read()["peak_memory" if device == "cpu" else "peak_gpu_memory"]
    return {"seconds": seconds, "peak": peak, "scores": scores, "margins": margins}


def plain(model: str, task: "LmEvalTask", limit: int, device: str, batch: int) -> "list[Document]":
    """Return the scores of `lm_eval --model hf` with batches of `batch`, on the same first documents."""
    from lm_eval.evaluator import evaluate as run_lm_eval
    from lm_eval.models.huggingface import HFLM

    from pipelines.evaluation.patches import patched

    name = task.task.task
    harness = HFLM(pretrained=model, dtype="auto", device=device, batch_size=batch)
    with patched():
        asked = {"tasks": {name: task.loaded}, "groups": {}, "group_map": {}}
        done = run_lm_eval(harness, asked, limit=limit, bootstrap_iters=0)
    return task.scores(done["samples"][name], task.task.metric)


def in_dtype(model: str | None, dtype: str, scratch: Path) -> str:
    """Return the folder of the model in `dtype`: its own, or that of a copy in `scratch` if its dtype is another."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.checkpoint.load import load_model

    folder = load_model(model).folder
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if loaded.dtype == getattr(torch, dtype):
        return str(folder)
    loaded.to(getattr(torch, dtype)).save_pretrained(scratch / dtype)
    AutoTokenizer.from_pretrained(folder).save_pretrained(scratch / dtype)
    return str(scratch / dtype)


if __name__ == "__main__":
    main()
