"""The streaming engine: its numbers against compressed-tensors', and its memory against the model's size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.engines import streaming
from pipelines.engines.streaming import fp8_codes, fp8_scale
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
from tests.conftest import make_tiny


def test_codes_are_the_nearest_fp8_values() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 96, dtype=torch.bfloat16)
    scale = fp8_scale(weight)
    codes = fp8_codes(weight, scale)
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = grid[torch.isfinite(grid)]
    wanted = weight.float() / scale.float()
    distance = (codes.float() - wanted.clamp(-448, 448)).abs()
    nearest = (grid.view(1, 1, -1) - wanted.clamp(-448, 448).unsqueeze(-1)).abs().amin(-1)
    assert torch.equal(distance, nearest)


def test_scale_is_the_rows_largest_magnitude() -> None:
    weight = torch.tensor([[1.0, -448.0], [0.5, 224.0], [0.0, 0.0]], dtype=torch.bfloat16)
    scale = fp8_scale(weight)
    assert scale.flatten().tolist() == [1.0, 0.5, 1.0]  # a row of zeros gets a scale that is not zero
    assert fp8_codes(weight, scale).float()[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_as_close_as_compressed_tensors_own(
    tmp_path: Path, smollm2: Checkpoint, dtype: torch.dtype
) -> None:
    """Against `model_free_ptq`: the same scales, and an error that is never larger (it rounds bfloat16 twice)."""
    from llmcompressor import model_free_ptq

    source = make_tiny(tmp_path / "source", smollm2, hidden_size=128)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    ignore = ["lm_head", "model.embed_tokens"]
    model_free_ptq(str(source), str(tmp_path / "theirs"), scheme="FP8_DYNAMIC", ignore=ignore, device="cpu")
    (tmp_path / "ours").mkdir()
    streaming.quantize(make_plan(load_recipe("fp8", ["quantize.ignore=[lm_head]"]), source), None, tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        if f"{name}_scale" not in ours:
            assert name.endswith("_scale") or torch.equal(tensor, theirs[name])
            continue
        assert torch.allclose(ours[f"{name}_scale"].float(), theirs[f"{name}_scale"].float(), rtol=2**-8)
        error = (tensor.double() * ours[f"{name}_scale"].double() - tensors[name].double()).norm()
        reference = (theirs[name].double() * theirs[f"{name}_scale"].double() - tensors[name].double()).norm()
        assert error <= reference * 1.001


def test_shards_stay_shards(tmp_path: Path, smollm2: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM

    source = make_tiny(tmp_path / "source", smollm2)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    plan = make_plan("fp8", tmp_path / "sharded")
    assert len(plan.checkpoint.weight_files) > 1
    (tmp_path / "ours").mkdir()
    streaming.quantize(plan, None, tmp_path / "ours")
    written = {path.name for path in (tmp_path / "ours").iterdir()}
    assert written == {*plan.checkpoint.weight_files, "model.safetensors.index.json"}
    (tmp_path / "ours" / "config.json").write_text("{}")
    stored = read_checkpoint(tmp_path / "ours")
    assert stored.weight_bytes == plan.bytes_after


def test_nan_weights_are_refused(tmp_path: Path, smollm2: Checkpoint) -> None:
    source = make_tiny(tmp_path / "source", smollm2)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "ours").mkdir()
    with pytest.raises(Exception, match=r"layers.1.mlp.up_proj.weight holds NaN"):
        streaming.quantize(make_plan("fp8", source), None, tmp_path / "ours")


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from pipelines.engines import streaming
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
plan = make_plan("fp8", sys.argv[1])
streaming.fp8_scale(torch.ones(64, 64, dtype=torch.bfloat16))  # what torch allocates once
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
limit = used + (192 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
streaming.quantize(plan, None, Path(sys.argv[2]))
print(plan.bytes_before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path, smollm2: Checkpoint) -> None:
    """A checkpoint of 1.2 GB goes through 192 MB of memory, which the kernel enforces."""
    source = make_tiny(tmp_path / "source", smollm2)
    big = {
        f"model.layers.{layer}.mlp.{name}.weight": torch.randn(8192, 4096, dtype=torch.bfloat16)
        for layer in range(6)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    save_file(big, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "ours").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "ours")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5 * (192 << 20)
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as stored:
        assert len(stored.keys()) == 2 * 12 + 6  # the first and the last of the six layers are kept
