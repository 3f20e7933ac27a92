"""quantgate's quantize stage against llmcompressor on the same model, data and machine, one process after another.

    python -m benchmarks.quantize [--samples 32] [--seq-len 256] [--gigabytes 1] [--layers 0] [--runs 1]

First table: each recipe on the default model, made by quantgate and by a plain llmcompressor script. Seconds from the
checkpoint on disk to the artifact on disk (imports not counted), peak memory, and the quality of the result: perplexity
ratio and KL divergence to the source on held-out text. Second table: data-free FP8 of a larger checkpoint of random
weights, as a ratio to `cp` and sync of the same files. Absolute seconds mean nothing on another machine; ratios from
one idle run do.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPES = ("fp8", "int8", "int4-gptq", "int4-awq")
SAME = {  # what makes our recipes and the plain scripts ask for the same
    "fp8": ["quantize.ignore=[lm_head]"],
    "int8": [],
    "int4-gptq": ["quantize.group_size=64"],
    "int4-awq": ["quantize.group_size=64"],
}
HELD_OUT = ["calibrate.seed=7", "calibrate.samples=32", "calibrate.seq_len=512"]

Measured = dict[str, float]


def main() -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the generated checkpoint")
    parser.add_argument("--layers", type=int, default=0, help="of the wide model")
    parser.add_argument("--runs", type=int, default=1, help="the median of as many is taken")
    parser.add_argument("--recipes", nargs="*", default=RECIPES, choices=RECIPES)
    parser.add_argument("--one", nargs="+", metavar="WAY RECIPE SOURCE TARGET SET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, recipe, origin, destination, *settings = options.one
        return print(json.dumps(one(way, recipe, origin, destination, settings)))
    calibrate = [f"calibrate.samples={options.samples}", f"calibrate.seq_len={options.seq_len}"]
    with tempfile.TemporaryDirectory() as scratch:
        if options.recipes:
            print_recipes(options.recipes, calibrate, options.runs, Path(scratch))
        if options.gigabytes:
            source = Path(scratch) / "source"
            make_checkpoint(source, options.gigabytes)
            print_streams(source, Path(scratch) / "target", options.runs)
        if options.layers:
            make_wide(Path(scratch) / "wide", options.layers)
            print_wide(Path(scratch) / "wide", calibrate, Path(scratch) / "target", options.runs)


def print_recipes(recipes: tuple[str, ...], calibrate: list[str], runs: int, scratch: Path) -> None:
    """Print the first table, as Markdown, a line as soon as it is known."""
    from pipelines.checkpoint.load import load_model

    source = load_model().folder
    reference = scratch / "reference.safetensors"
    measure("reference", "int4-gptq", source, reference, HELD_OUT)
    print("| recipe | made by | seconds | against llmcompressor | peak memory | perplexity ratio | KL divergence |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for recipe in recipes:
        ways = ["llmcompressor", "quantgate"] + (["model_free_ptq"] if recipe == "fp8" else [])
        theirs = 0.0
        for way in ways:
            settings = SAME[recipe] + (calibrate if recipe != "fp8" else [])
            done = [measure(way, recipe, source, scratch / "artifact", settings) for _ in range(runs)]
            quality = measure("quality", "int4-gptq", scratch / "artifact", reference, HELD_OUT)
            seconds = statistics.median(run["seconds"] for run in done)
            peak = statistics.median(run["peak"] for run in done)
            theirs = theirs or seconds
            print(
                f"| {recipe} | {way} | {seconds:.1f} | {seconds / theirs:.2f} | {peak / 1e9:.2f} GB "
                f"| {quality['perplexity']:.4f} | {quality['kl']:.4f} |",
                flush=True,
            )


def print_streams(source: Path, target: Path, runs: int) -> None:
    """Print the second table, as Markdown."""
    print("\n| data-free FP8 | seconds, relative to cp | peak memory | SQNR |\n|---|---|---|---|")
    rows: dict[str, list[Measured]] = {}
    for _ in range(runs):
        for way in ("cp", "quantgate", "model_free_ptq"):
            done = measure(way, "fp8", source, target, SAME["fp8"])
            rows.setdefault(way, []).append(done if way == "cp" else {**done, "sqnr": sqnr(source, target)})
    copy = statistics.median(run["seconds"] for run in rows["cp"])
    for way, done_runs in rows.items():
        ratio = statistics.median(run["seconds"] for run in done_runs) / copy
        peak = statistics.median(run["peak"] for run in done_runs)
        quality = f"{done_runs[0]['sqnr']:.2f} dB" if "sqnr" in done_runs[0] else ""
        memory = f"{peak / 1e9:.2f} GB" if quality else ""
        print(f"| {way} | {ratio:.2f} | {memory} | {quality} |", flush=True)


def print_wide(source: Path, calibrate: list[str], target: Path, runs: int) -> None:
    """Print the third table, as Markdown, a line as soon as it is known."""
    print("\n| wide layers | made by | seconds | against llmcompressor | peak memory | of the GPU |")
    print("|---|---|---|---|---|---|", flush=True)
    for recipe in RECIPES[1:]:
        theirs = 0.0
        for way in ("llmcompressor", "quantgate"):
            done = [measure(way, recipe, source, target, SAME[recipe] + calibrate) for _ in range(runs)]
            seconds, peak, gpu = (statistics.median(run[what] for run in done) for what in ("seconds", "peak", "gpu"))
            theirs = theirs or seconds
            print(
                f"| {recipe} | {way} | {seconds:.1f} | {seconds / theirs:.2f} | {peak / 1e9:.2f} GB "
                f"| {gpu / 1e9:.2f} GB |",
                flush=True,
            )


def measure(way: str, recipe: str, source: Path, target: Path, settings: list[str]) -> Measured:
    """Run one way in a process of its own, into an empty `target`, and return what it measured."""
    if target.is_dir():
        shutil.rmtree(target)
    command = [sys.executable, __file__, "--one", way, recipe, str(source), str(target), *settings]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way} {recipe} failed:\n{done.stderr[-3000:]}")
    result: Measured = json.loads(done.stdout.splitlines()[-1])
    return result


def one(way: str, recipe: str, source: str, target: str, settings: list[str]) -> Measured:
    """Do one thing in this process, and return seconds and peak memory (bytes), or the quality of an artifact."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    ways: dict[str, Callable[[str, Path, Path, list[str]], Any]] = {
        "quantgate": prepare_quantgate,
        "llmcompressor": prepare_oneshot,
        "engine": prepare_engine,
        "model_free_ptq": prepare_model_free,
        "cp": prepare_copy,
        "reference": lambda *_: lambda: write_reference(Path(source), Path(target), settings),
    }
    if way == "quality":
        return quality(Path(source), Path(target), settings)
    work = ways[way](recipe, Path(source), Path(target), settings)
    start = time.perf_counter()
    elsewhere = work()
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()  # not ru_maxrss: a process inherits its parent's
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": seconds, "peak": float(elsewhere or peak), "gpu": float(gpu)}


def prepare_quantgate(recipe: str, source: Path, target: Path, settings: list[str]) -> Callable[[], Any]:
    """Return the work of our engine; plan and tokens are made before."""
    from pipelines.calibration.stage import calibrate
    from pipelines.planning.plan import CheckpointPlan
    from pipelines.planning.stage import make_plan
    from pipelines.quantization.engines import layerwise, streaming
    from pipelines.quantization.stage import write_companions
    from pipelines.recipe.load import load_recipe

    plan = make_plan(load_recipe(recipe, settings), source)
    assert isinstance(plan, CheckpointPlan)
    target.mkdir()

    def work() -> None:
        if plan.recipe.calibrate:
            written = layerwise.quantize(plan, calibrate(plan), target)
        else:
            written = streaming.quantize(plan, None, target)
        write_companions(plan.checkpoint, written, target)

    if plan.recipe.calibrate:
        calibrate(plan)
    return work


def prepare_engine(recipe: str, source: Path, target: Path, settings: list[str]) -> Callable[[], int]:
    """Return the work of another project's engine, in an environment that is made before.

    The work returns its own peak memory in bytes.
    """
    from pipelines.calibration.stage import calibrate
    from pipelines.environments import isolated
    from pipelines.planning.plan import CheckpointPlan
    from pipelines.planning.stage import make_plan
    from pipelines.quantization.engines import other_projects
    from pipelines.quantization.stage import write_companions
    from pipelines.recipe.load import load_recipe

    plan = make_plan(load_recipe(recipe, settings), source)
    assert isinstance(plan, CheckpointPlan)
    tokens = calibrate(plan)
    isolated.make(plan.recipe.engine)
    target.mkdir()

    def work() -> int:
        written = other_projects.quantize(plan, tokens, target)
        write_companions(plan.checkpoint, written, target)
        return written.peak_memory

    return work


def prepare_oneshot(recipe: str, source: Path, target: Path, settings: list[str]) -> Callable[[], Any]:
    """Return the work as one writes it with llmcompressor: load, oneshot, save."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    from pipelines.calibration.stage import calibrate
    from pipelines.calibration.tokens import read_tokens
    from pipelines.planning.stage import make_plan
    from pipelines.recipe.load import load_recipe

    plan = make_plan(load_recipe(recipe, settings), source)
    samples = read_tokens(calibrate(plan)) if plan.recipe.calibrate else []
    data = Dataset.from_dict({"input_ids": samples, "attention_mask": [[1] * len(sample) for sample in samples]})
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "dynamic": False}

    def groups(symmetric: bool) -> dict[str, Any]:
        return {"group_0": {"targets": ["Linear"], "weights": {**weights, "symmetric": symmetric}}}

    modifiers: dict[str, list[Any]] = {
        "fp8": [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])],
        "int8": [
            SmoothQuantModifier(smoothing_strength=0.8),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
        ],
        "int4-gptq": [GPTQModifier(config_groups=groups(True), ignore=["lm_head"])],
        "int4-awq": [AWQModifier(), QuantizationModifier(config_groups=groups(False), ignore=["lm_head"])],
    }
    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_, **__: None  # AWQ asks for it, and it asks for an accelerator

    def work() -> None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        sized = {"num_calibration_samples": len(samples), "max_seq_length": len(samples[0])} if samples else {}
        oneshot(
            model=model,
            dataset=data if samples else None,
            recipe=modifiers[recipe],
            shuffle_calibration_samples=False,
            **sized,
        )
        model.save_pretrained(target, save_compressed=True)
        for name in plan.checkpoint.companions:
            shutil.copyfile(source / name, target / name)

    return work


def prepare_model_free(recipe: str, source: Path, target: Path, settings: list[str]) -> Callable[[], Any]:
    """Return the work of llmcompressor's own streaming path."""
    assert recipe == "fp8" and settings == SAME["fp8"]
    from llmcompressor import model_free_ptq

    ignore = ["lm_head", "model.embed_tokens"]
    return lambda: model_free_ptq(str(source), str(target), scheme="FP8_DYNAMIC", ignore=ignore, device="cpu")


def prepare_copy(_: str, source: Path, target: Path, __: list[str]) -> Callable[[], Any]:
    """Return the work of `cp` and `sync`."""

    def work() -> None:
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
        subprocess.run(["sync"], check=True)

    return work


def write_reference(source: Path, target: Path, settings: list[str]) -> None:
    """Write the source's log-probabilities on held-out text into `target`."""
    from safetensors.torch import save_file

    save_file({"logprobs": log_probabilities(source, held_out(settings))}, target)


def quality(artifact: Path, reference: Path, settings: list[str]) -> Measured:
    """Return perplexity ratio and mean KL divergence (nats per token) of an artifact to the source."""
    from safetensors.torch import load_file

    tokens = held_out(settings)
    before, after = load_file(reference)["logprobs"], log_probabilities(artifact, tokens)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    targets = tokens[:, 1:, None]
    change = before[:, :-1].gather(-1, targets).mean() - after[:, :-1].gather(-1, targets).mean()
    return {"kl": float(divergence), "perplexity": float(change.exp())}


def held_out(settings: list[str]) -> Any:
    """Return token ids (samples, tokens), int64, of texts drawn with another seed than those for calibration."""
    import torch

    from pipelines.calibration.stage import calibrate
    from pipelines.calibration.tokens import read_tokens
    from pipelines.planning.stage import make_plan
    from pipelines.recipe.load import load_recipe

    return torch.tensor(read_tokens(calibrate(make_plan(load_recipe("int4-gptq", settings)))))


def log_probabilities(folder: Path, tokens: Any) -> Any:
    """Return the log-probabilities (samples, tokens, vocabulary) of the model in `folder`, float32."""
    import torch

    from pipelines.runtimes.loading import load_for_inference

    model = load_for_inference(folder, "cpu")
    with torch.inference_mode():
        return torch.cat([torch.log_softmax(model(batch).logits.float(), -1) for batch in tokens.split(4)])


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Write a Llama-shaped checkpoint of random bf16 weights, about `gigabytes` in shards of 352 MB."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    layers = max(1, round(gigabytes * 1e9 / (3 * 4096 * 14336 * 2)))
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        shapes = {"gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}
        tensors = {
            f"model.layers.{layer}.mlp.{name}.weight": torch.randn(shape).mul_(0.02).to(torch.bfloat16)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))


def make_wide(folder: Path, layers: int) -> None:
    """Write a whole model into `folder`, with the default model's tokenizer and Llama 3 8B's widths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.checkpoint.load import load_model

    tokenizer = load_model().folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="1GB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def sqnr(source: Path, target: Path) -> float:
    """Return the signal to noise ratio over all quantized weights, in decibels."""
    import math

    from safetensors import safe_open

    signal = noise = 0.0
    for file in source.glob("*.safetensors"):
        with safe_open(file, "pt") as before, safe_open(target / file.name, "pt") as after:
            for name in before.keys():  # noqa: SIM118 (not a dict)
                weight = before.get_tensor(name).float()
                stored = after.get_tensor(name).float() * after.get_tensor(f"{name}_scale").float()
                signal += float(weight.square().sum())
                noise += float((weight - stored).square().sum())
    return 10 * math.log10(signal / noise)


if __name__ == "__main__":
    main()
