"""quantgate's GGUF against llama.cpp's own tools, on the same checkpoint, text and machine, one after another.

    python -m benchmarks.gguf_files

First table: the importance matrix, by us in transformers and by `llama-imatrix` on as many tokens. Second: quantizing
the F16 file, and whether every tensor has the bytes that llama.cpp's own tool gives it. Third: the converter's peak
memory, for the default model and for a larger one. Absolute seconds mean nothing on another machine.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.calibration.held_out import held_out
from pipelines.calibration.stage import calibrate
from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.gguf_file import IMATRIX
from pipelines.checkpoint.load import load_model
from pipelines.environments import isolated, llama_build
from pipelines.planning.plan import GgufPlan
from pipelines.planning.stage import make_plan
from pipelines.quantization.engines.llama_cpp import run_tool
from pipelines.quantization.gguf.convert import convert
from pipelines.quantization.gguf.imatrix import write_imatrix
from pipelines.recipe.load import load_recipe
from pipelines.runtimes import llama_cpp

TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "iq3_m", "iq2_m")


def main() -> None:
    """Measure, and print the tables."""
    checkpoint = load_model()
    source = convert(checkpoint).file
    plan = make_plan(load_recipe("gguf-q4_k_m"), checkpoint)
    tokens = calibrate(plan)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifact"
        folder.mkdir()
        assert isinstance(plan, GgufPlan)
        print_imatrix(plan, tokens, source, folder)
        print_types(tokens, source, folder)
        print_memory(Path(scratch))


def print_imatrix(plan: GgufPlan, tokens: CalibrationTokens, source: Path, folder: Path) -> None:
    """Print the time for the importance matrix, and leave ours in `folder`."""
    ours = timed(write_imatrix, plan, tokens, folder / IMATRIX)
    chunk = tokens.tokens // tokens.samples
    (folder / "text.txt").write_text(held_out(None, 8 * tokens.tokens), encoding="utf-8")
    sizes = ["-c", str(chunk), "--chunks", str(tokens.samples), "-t", str(llama_cpp.threads()), "--no-ppl"]
    files = ["-m", str(source), "-f", str(folder / "text.txt"), "-o", str(folder / "theirs.gguf")]
    theirs = timed(run, [str(isolated.make("llama-server") / "llama-imatrix"), *files, *sizes])
    print(f"| importance matrix, {tokens.tokens:,} tokens | time, relative to llama-imatrix |\n|---|---|")
    print(f"| llama-imatrix | 1.00 |\n| quantgate | {ours / theirs:.2f} |\n", flush=True)


def print_types(tokens: CalibrationTokens, source: Path, folder: Path) -> None:
    """Print the time to quantize to each type, and how many tensors have the same bytes."""
    print("| recipe | time, relative to llama-quantize | tensors with the same bytes |\n|---|---|---|")
    for name in TYPES:
        plan = make_plan(load_recipe(f"gguf-{name}"), load_model())
        assert isinstance(plan, GgufPlan)
        method = plan.method
        options = ["--imatrix", str(folder / IMATRIX)] if method.imatrix else []
        command = [llama_cpp.program("llama-quantize"), *options, str(source), str(folder / "theirs.gguf")]
        theirs = timed(run, [*command, method.type, str(llama_cpp.threads())])
        ours = timed(run_tool, plan, tokens if method.imatrix else None, source, folder)
        (made,) = folder.glob("*-*.gguf")
        same, count = compare(made, folder / "theirs.gguf")
        print(f"| gguf-{name} | {ours / theirs:.2f} | {same} of {count} |", flush=True)
        made.unlink()


def compare(first: Path, second: Path) -> tuple[int, int]:
    """Return how many tensors are the same in type and bytes, and how many there are."""
    import gguf

    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(first).tensors}
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(second).tensors}
    assert ours.keys() == theirs.keys()
    return sum(alike(ours[name], theirs[name]) for name in ours), len(ours)


def alike(first: Any, second: Any) -> bool:
    """Tell whether two tensors have the same type and bytes."""
    return bool(first.tensor_type == second.tensor_type and first.data.tobytes() == second.data.tobytes())


def print_memory(scratch: Path) -> None:
    """Print the converter's peak memory for a small and a large checkpoint."""
    print("\n| converted | weights | peak memory of the converter |\n|---|---|---|")
    large = scratch / "large"
    write_large(large)
    for label, folder in (("the default model", load_model().folder), ("random weights", large)):
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        script = str(llama_build.source() / "convert_hf_to_gguf.py")
        command = [sys.executable, script, str(folder), "--outfile", str(scratch / "f16.gguf"), "--outtype", "f16"]
        peak = peak_memory(command)
        print(f"| {label} | {size / 1e6:.0f} MB | {peak / 1e6:.0f} MB |", flush=True)


def peak_memory(command: list[str]) -> int:
    """Run `command`, and return its peak memory in bytes; not ru_maxrss, of which a process inherits its parent's."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            peak = max(peak, int(found[1]) * 1024 if found else 0)
            time.sleep(0.02)
    assert process.returncode == 0
    return peak


def write_large(folder: Path) -> None:
    """Write a Llama of random weights in shards into `folder`, with the default model's tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=1024, intermediate_size=4096, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="300MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(load_model().folder / name, folder / name)


def run(command: list[str]) -> None:
    """Run one of llama.cpp's programs."""
    subprocess.run(command, check=True, capture_output=True)


def timed(work: Callable[..., object], *arguments: Any) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
