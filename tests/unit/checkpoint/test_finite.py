"""A source whose numbers are none is to blame itself, by the name of the tensor, before an artifact is made of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.checkpoint.finite import BLOCK, check_finite
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.errors import BadInput
from pipelines.planning.stage import make_plan
from pipelines.quantization.gguf import convert
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from tests.conftest import Cli, spoil

NAN, INFINITE = float("nan"), float("inf")


def checkpoint(folder: Path, **tensors: torch.Tensor) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return read_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_tensor_with_a_number_that_is_none_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    large = torch.zeros(BLOCK // dtype.itemsize + 1, dtype=dtype)  # the last is in a block of its own
    tensors = {name: torch.ones(3, dtype=dtype) for name in ("a", "b", "c")} | {"large": large}
    tensors["a"][1], tensors["b"][2], tensors["large"][-1] = NAN, -INFINITE, INFINITE
    tensors["c"][:] = torch.finfo(dtype).max
    found = checkpoint(tmp_path, **tensors)
    with pytest.raises(BadInput) as error:
        check_finite(found, found.tensors)
    what = "holds NaN or infinite numbers; the source checkpoint is broken"
    assert [f"{problem.where}: {problem.what}" for problem in error.value.problems] == [
        f"model.safetensors: tensor {name} {what}" for name in ("a", "b", "large")
    ]


def test_what_masks_are_filled_with_may_be_infinite_but_a_number(tmp_path: Path) -> None:
    numbers = {"mask": torch.tensor(-INFINITE), "counts": torch.tensor([1, 2]), "none": torch.empty(0)}
    found = checkpoint(tmp_path, **numbers)
    check_finite(found, found.tensors)
    found = checkpoint(tmp_path, mask=torch.tensor(NAN))
    with pytest.raises(BadInput, match="tensor mask holds NaN"):
        check_finite(found, found.tensors)


@pytest.mark.parametrize("recipe", ["fp8", "int8", "nvfp4-weight-only"])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.2.input_layernorm.weight", "model.embed_tokens.weight"]
)
def test_a_kept_tensor_is_blamed_before_the_work(tiny_copy: Path, recipe: str, name: str) -> None:
    spoil(tiny_copy, name, NAN)
    overrides = ["calibrate.samples=1", "calibrate.seq_len=16"] if recipe == "int8" else []
    with pytest.raises(BadInput, match=f"^model.safetensors: tensor {name} holds NaN or infinite numbers; the source"):
        quantize(make_plan(load_recipe(recipe, overrides), tiny_copy))


def test_a_weight_that_is_quantized_is_blamed_by_the_calibrated_engine(tiny_copy: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    spoil(tiny_copy, name, INFINITE)
    with pytest.raises(BadInput, match=f"tensor {name} holds NaN or infinite numbers"):
        quantize(make_plan(load_recipe("int8", ["calibrate.samples=1", "calibrate.seq_len=16"]), tiny_copy))


def test_a_gguf_is_not_made_of_it(tiny_copy: Path) -> None:
    spoil(tiny_copy, "model.norm.weight", NAN)
    with pytest.raises(BadInput, match=r"tensor model.norm.weight holds NaN"):
        convert.convert(read_checkpoint(tiny_copy))


def test_a_broken_source_is_bad_input(cli: Cli, tiny_copy: Path) -> None:
    spoil(tiny_copy, "model.norm.weight", NAN)
    done = cli("quantize", "fp8", "--model", tiny_copy)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: model.safetensors: tensor model.norm.weight holds NaN or infinite numbers" in done.stderr
    assert "Traceback" not in done.stderr
