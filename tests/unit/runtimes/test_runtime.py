"""What evaluation runs against what transformers and compressed-tensors run by themselves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from pipelines.formats import rounding
from pipelines.formats.activations import input_rounder
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName
from pipelines.runtimes.loading import load_for_inference, unrounded
from tests.conftest import edit_json
from tests.helpers.artifacts import IDS, ROUNDED, activations, artifact, linear

DTYPES = list(rounding.DTYPES.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROUNDED)
def test_activations_are_rounded_as_by_compressed_tensors_bit_for_bit(name: SchemeName, dtype: torch.dtype) -> None:
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    for largest in (4.0, 100.0):  # outliers go beyond what calibration saw, as they will
        module = linear(name, largest, dtype)
        arguments = module.quantization_scheme.input_activations
        ours, *further = input_rounder(module, arguments)
        for kind, x in activations(dtype).items():
            before = x.clone()
            rounded = ours(x, *further)
            assert torch.equal(rounded, forward_quantize(module, x, "input", arguments)), kind
            assert (rounded.dtype, rounded.shape) == (x.dtype, x.shape)
            assert torch.equal(x, before), "the input itself was changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROUNDED)
def test_a_token_is_rounded_by_itself_and_what_is_no_number_stays_none(name: SchemeName, dtype: torch.dtype) -> None:
    """compressed-tensors takes one scale for all tokens where there is no dimension of samples, as of experts."""
    module = linear(name, 4.0, dtype)
    ours, *further = input_rounder(module, module.quantization_scheme.input_activations)
    for kind, x in activations(dtype).items():
        rounded = ours(x, *further)
        assert torch.equal(ours(x.flatten(0, 1), *further), rounded.flatten(0, 1)), kind
    broken = activations(dtype)["normal"]
    broken[1, 2, 5] = float("nan")
    assert ours(broken, *further)[1, 2, 5].isnan()


def in_dtype(dtype: torch.dtype, source: Path, folder: Path) -> Path:
    """A copy of the model `source` in another dtype."""
    folder.mkdir()
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(source / "config.json", folder / "config.json")
    edit_json(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


OTHERS: list[tuple[SchemeName, torch.dtype]] = [
    ("FP8_DYNAMIC", torch.float16), ("FP8_STATIC", torch.float32), ("W8A8", torch.float32), ("W8A16", torch.float16),
    ("W4A16_ASYM", torch.float16), ("FP8_BLOCK", torch.float32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.bfloat16) for name in OWN_SCHEMES), *OTHERS], ids=str)
def test_logits_equal_transformers_own_bit_for_bit(
    name: SchemeName, dtype: torch.dtype, tiny: Path, tmp_path: Path
) -> None:
    source = in_dtype(dtype, tiny, tmp_path / "source")
    made = artifact(name, source, tmp_path / "artifact")
    dequantized = CompressedTensorsConfig(dequantize=True)
    ours = logits(load_for_inference(made, "cpu"))
    theirs = logits(AutoModelForCausalLM.from_pretrained(made, quantization_config=dequantized))
    before = logits(load_for_inference(source, "cpu"))
    assert ours.dtype == theirs.dtype == before.dtype == dtype
    assert torch.equal(ours, theirs)
    assert 0 < (ours.float() - before.float()).norm() / before.float().norm() < 0.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [name for name in OWN_SCHEMES if SCHEMES[name].family.name == "FP4"])
def test_fp4_runs_in_the_dtype_of_the_model(name: SchemeName, dtype: torch.dtype, tiny: Path, tmp_path: Path) -> None:
    """compressed-tensors dequantizes it to bfloat16 always, which transformers does not multiply with another dtype."""
    made = artifact(name, in_dtype(dtype, tiny, tmp_path / "source"), tmp_path / "artifact")
    ours = load_for_inference(made, "cpu")
    dequantized = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(made, quantization_config=dequantized, dtype=torch.bfloat16)
    for key, parameter in theirs.named_parameters():
        if key.endswith("_proj.weight"):
            assert torch.equal(ours.get_parameter(key), parameter.to(dtype))
    found = logits(ours)
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "W4A16", "NVFP4"])
def test_all_of_a_model_goes_to_the_device_it_is_sent_to(name: SchemeName, tiny: Path, tmp_path: Path) -> None:
    """compressed-tensors would have every module go on computing where it was dequantized."""
    model = load_for_inference(artifact(name, tiny, tmp_path / "artifact"), "cpu").to("meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    with torch.inference_mode():
        assert model(IDS.to("meta")).logits.device.type == "meta"


def test_rounding_can_be_left_out_and_comes_back(tiny: Path, tmp_path: Path) -> None:
    """Then only the weights are those of the artifact."""
    made = artifact("FP8_DYNAMIC", in_dtype(torch.float32, tiny, tmp_path / "source"), tmp_path / "artifact")
    model = load_for_inference(made, "cpu")
    rounded = logits(model)
    with unrounded(model):
        plain = logits(model)
    assert torch.equal(logits(model), rounded) and not torch.equal(plain, rounded)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    assert torch.equal(logits(model), plain)


def test_layers_that_read_one_input_share_its_rounding_and_no_other(tiny: Path, tmp_path: Path) -> None:
    model = load_for_inference(artifact("NVFP4", tiny, tmp_path / "artifact"), "cpu")
    attention, x = model.model.layers[0].self_attn, torch.randn(1, 4, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        alone = {which: getattr(attention, which)(x.clone()) for which in ("q_proj", "k_proj")}
        assert all(torch.equal(getattr(attention, which)(x), rounded) for which, rounded in alone.items())
        other = x + 1
        assert not torch.equal(attention.q_proj(other), alone["q_proj"])
        attention.k_proj.forward(x)
        assert torch.equal(attention.q_proj(x), alone["q_proj"])
