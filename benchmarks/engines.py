"""The engines that quantize to INT4, on the same model, group size, text and machine, one process after another.

    python -m benchmarks.engines [--samples 32] [--seq-len 256] [--methods gptq awq]

Seconds are those of whole processes, imports included, since an engine in an environment of its own imports there; peak
memory is that of the process that quantizes. Quality is measured as in `quantize.py`: perplexity ratio and KL
divergence (nats per token) to the source on held-out text. Absolute seconds mean nothing on another machine; ratios
from one idle run do.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.quantize import HELD_OUT, SAME, measure

ENGINES = {
    "gptq": [
        ("llmcompressor", "llmcompressor", "int4-gptq", SAME["int4-gptq"]),
        ("quantgate", "quantgate", "int4-gptq", SAME["int4-gptq"]),
        ("GPTQModel", "engine", "gptq-gptqmodel", []),
        ("AutoGPTQ, experimental on a CPU", "engine", "gptq-autogptq", ["quantize.experimental_cpu=true"]),
    ],
    "awq": [
        ("llmcompressor", "llmcompressor", "int4-awq", SAME["int4-awq"]),
        ("quantgate", "quantgate", "int4-awq", SAME["int4-awq"]),
        ("Model Optimizer, symmetric", "engine", "int4-awq-modelopt", []),
        ("AutoAWQ", "engine", "awq-autoawq", []),
        ("GPTQModel", "engine", "awq-gptqmodel", []),
    ],
}
"""Method → engines, each with the way of `quantize.py`, the recipe, and the settings that ask for groups of 64."""


def main() -> None:
    """Measure, and print the table as Markdown, a line as soon as it is known."""
    from pipelines.checkpoint.headers import read_checkpoint
    from pipelines.checkpoint.load import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--methods", nargs="*", default=[*ENGINES], choices=[*ENGINES])
    options = parser.parse_args()
    calibrate = [f"calibrate.samples={options.samples}", f"calibrate.seq_len={options.seq_len}"]
    source = load_model()
    print(
        "| method | engine | seconds | against llmcompressor | peak memory | bits per weight | perplexity ratio | KL |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        reference, artifact = Path(scratch) / "reference.safetensors", Path(scratch) / "artifact"
        measure("reference", "int4-gptq", source.folder, reference, HELD_OUT)
        for method in options.methods:
            theirs = 0.0
            for who, way, recipe, same in ENGINES[method]:
                start = time.perf_counter()
                peak = measure(way, recipe, source.folder, artifact, [*same, *calibrate])["peak"]
                seconds = time.perf_counter() - start
                theirs = theirs or seconds
                quality = measure("quality", "int4-gptq", artifact, reference, HELD_OUT)
                bits = read_checkpoint(artifact).weight_bytes * 8 / source.parameters
                print(
                    f"| {method} | {who} | {seconds:.0f} | {seconds / theirs:.2f} | {peak / 1e9:.2f} GB | {bits:.2f} "
                    f"| {quality['perplexity']:.4f} | {quality['kl']:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
