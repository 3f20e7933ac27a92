"""Data-free FP8: quantgate's streaming engine against llmcompressor's `model_free_ptq` and `cp`, on the same files.

    python benchmarks/quantize.py [--gigabytes 2] [--runs 3]

Each measurement is a process of its own, started in turn, after the files were read once. Prints a Markdown table:
the median of seconds (imports not counted), as a ratio to `cp` and sync of the same files; peak memory; and the mean
SQNR of the quantized weights. Absolute seconds mean nothing on another machine; ratios from one idle run do.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
how, source, target = sys.argv[1:]
if how == "quantgate":
    import torch
    from pathlib import Path
    from pipelines.engines import streaming
    from pipelines.plan import make_plan
    from pipelines.recipe import load_recipe
    plan = make_plan(load_recipe("fp8", ["quantize.ignore=[lm_head]"]), source)
    Path(target).mkdir()
    start = time.perf_counter()
    streaming.quantize(plan, None, Path(target))
else:
    from llmcompressor import model_free_ptq
    start = time.perf_counter()
    model_free_ptq(source, target, scheme="FP8_DYNAMIC", ignore=["lm_head", "model.embed_tokens"], device="cpu")
seconds = time.perf_counter() - start
with open("/proc/self/status") as status:  # not ru_maxrss, which a process inherits from the one that started it
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def main() -> None:
    """Make a checkpoint, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the generated bf16 checkpoint")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        make_checkpoint(source, options.gigabytes)
        target = Path(scratch) / "target"
        rows: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.runs):
            for how in ("cp", "quantgate", "model_free_ptq"):
                shutil.rmtree(target, ignore_errors=True)
                rows.setdefault(how, []).append(measure(how, source, target))
        print_table(rows)


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """A Llama-shaped checkpoint of random bf16 weights in shards of 512 MB."""
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


def measure(how: str, source: Path, target: Path) -> dict[str, float]:
    """Seconds, peak memory and SQNR (decibels) of one way to write `target` from `source`."""
    if how == "cp":
        script = "import subprocess,time,json,sys; t=time.perf_counter(); "
        script += "subprocess.run(['cp','-r',*sys.argv[1:]],check=True); subprocess.run(['sync'],check=True); "
        script += "print(json.dumps({'seconds':time.perf_counter()-t,'peak':0}))"
        command = [sys.executable, "-c", script, str(source), str(target)]
    else:
        command = [sys.executable, "-c", MEASURED, how, str(source), str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result if how == "cp" else {**result, "sqnr": sqnr(source, target)}


def sqnr(source: Path, target: Path) -> float:
    """Signal to noise ratio over all quantized weights, in decibels."""
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


def print_table(rows: dict[str, list[dict[str, float]]]) -> None:
    """Medians, as Markdown."""
    copy = statistics.median(run["seconds"] for run in rows["cp"])
    print("| | seconds, relative to cp | peak memory | SQNR |\n|---|---|---|---|")
    for how, runs in rows.items():
        ratio = statistics.median(run["seconds"] for run in runs) / copy
        peak = statistics.median(run["peak"] for run in runs)
        quality = f"{runs[0]['sqnr']:.2f} dB" if "sqnr" in runs[0] else ""
        print(f"| {how} | {ratio:.2f} | {peak / 1e9:.2f} GB | {quality} |" if peak else f"| {how} | {ratio:.2f} | | |")


if __name__ == "__main__":
    main()
