"""INT4 in other projects' packings: bit by bit against their own definitions, exactly or not at all."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipelines.checkpoint.headers import read_checkpoint
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.formats import rounding
from pipelines.formats.description import Scales
from pipelines.formats.packings import Form, Packing, form_of, layout
from pipelines.formats.repack import pack, repack, unpack
from pipelines.formats.schemes import SCHEMES, SchemeName
from pipelines.planning.stage import make_plan
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from pipelines.runtimes.loading import load_for_inference
from pipelines.verification.stage import verify
from tests.conftest import edit_json

OTHERS: tuple[Packing, ...] = ("gptq", "awq")


def drawn(seed: int, rows: int, columns: int, size: int, symmetric: bool) -> tuple[torch.Tensor, Scales]:
    """Random codes, float16 scales and zero points from 1 to 15 (which gptq can hold)."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), generator=draw, dtype=torch.int8)
    scale = (torch.rand(rows, columns // size, generator=draw) + 1e-3).half().float()
    zero = torch.randint(-7, 8, scale.shape, generator=draw).float()
    numbers = SCHEMES["W4A16" if symmetric else "W4A16_ASYM"].weights
    return codes, Scales(numbers, size, scale, zero=None if symmetric else zero)


@settings(max_examples=40, deadline=None)
@given(
    packing=st.sampled_from(OTHERS),
    symmetric=st.booleans(),
    rows=st.integers(1, 6).map(lambda n: 8 * n),
    groups=st.integers(1, 4),
    size=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 1 << 20),
)
def test_what_is_packed_is_unpacked_bit_for_bit(
    packing: Packing, symmetric: bool, rows: int, groups: int, size: int, seed: int
) -> None:
    codes, scales = drawn(seed, rows, groups * size, size, symmetric)
    scheme: SchemeName = "W4A16" if symmetric and packing == "gptq" else "W4A16_ASYM"
    form = Form(packing=packing, scheme=scheme, group_size=size)
    parts = pack(codes, scales, form, torch.bfloat16)
    expected = layout(packing, scheme, (rows, groups * size), "BF16", size)
    names = {torch.int32: "I32", torch.float16: "F16"}
    assert {suffix: (names[part.dtype], tuple(part.shape)) for suffix, part in parts.items()} == expected
    again, found = unpack(parts, form, groups * size)
    assert torch.equal(again, codes)
    assert torch.equal(rounding.dequantize(again, found), rounding.dequantize(codes, scales))


def test_gptq_is_what_autogptq_defines() -> None:
    """Its `QuantLinear.pack`: code of input i and output o in bits 4 (i mod 8) of word (i / 8, o); zeros less one."""
    codes, scales = drawn(1, 16, 64, 32, symmetric=False)
    assert scales.zero is not None
    parts = pack(codes, scales, Form(packing="gptq", scheme="W4A16_ASYM", group_size=32), torch.bfloat16)
    for i, o in ((0, 0), (13, 5), (63, 15)):
        assert int(parts["qweight"][i // 8, o]) >> 4 * (i % 8) & 15 == int(codes[o, i]) + 8
        assert int(parts["qzeros"][i // 32, o // 8]) >> 4 * (o % 8) & 15 == int(scales.zero[o, i // 32]) + 8 - 1
        assert float(parts["scales"][i // 32, o]) == float(scales.scale[o, i // 32])
        assert int(parts["g_idx"][i]) == i // 32


def test_awq_is_what_autoawq_defines() -> None:
    """Its `WQLinear_GEMM.from_linear`: bits 4 k of word (i, w) hold output 8 w + [0, 2, 4, 6, 1, 3, 5, 7][k]."""
    codes, scales = drawn(2, 16, 64, 32, symmetric=False)
    assert scales.zero is not None
    parts = pack(codes, scales, Form(packing="awq", scheme="W4A16_ASYM", group_size=32), torch.bfloat16)
    for i, word in ((0, 0), (33, 1)):
        for k, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            o = 8 * word + output
            assert int(parts["qweight"][i, word]) >> 4 * k & 15 == int(codes[o, i]) + 8
            assert int(parts["qzeros"][i // 32, word]) >> 4 * k & 15 == int(scales.zero[o, i // 32]) + 8


def test_what_cannot_be_exact_is_refused() -> None:
    codes, scales = drawn(3, 8, 32, 32, symmetric=False)
    gptq = Form(packing="gptq", scheme="W4A16_ASYM", group_size=32)
    awq = gptq.model_copy(update={"packing": "awq"})
    assert scales.zero is not None
    scales.zero[0, 0] = -8
    with pytest.raises(QuantgateError, match="zero point is 0"):
        pack(codes, scales, gptq, torch.bfloat16)
    pack(codes, scales, awq, torch.bfloat16)
    scales.scale[1, 0] = 3e-9
    with pytest.raises(QuantgateError, match="3e-09 cannot be held exactly in float16"):
        pack(codes, scales, awq, torch.bfloat16)


def test_act_order_and_false_symmetry_are_refused() -> None:
    codes, scales = drawn(4, 8, 64, 32, symmetric=True)
    form = Form(packing="gptq", scheme="W4A16", group_size=32)
    parts = pack(codes, scales, form, torch.bfloat16)
    with pytest.raises(QuantgateError, match="act-order"):
        unpack({**parts, "g_idx": parts["g_idx"].flip(0)}, form, 64)
    with pytest.raises(QuantgateError, match="zero points other than 8"):
        unpack({**parts, "qzeros": parts["qzeros"] + 1}, form, 64)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"quant_method": "gptq", "bits": 8, "group_size": 64}, "bits 8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}, "desc_act True"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "without groups"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, "version gemv"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo W4A8_AWQ"),
    ],
)
def test_variants_that_are_not_read(config: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        form_of(config)


# Through the pipeline


def exported(tiny: Path, export: str, scheme: str) -> Artifact:
    asymmetric = {"scheme": scheme, "group_size": 32, "on_indivisible": "error"}
    recipe = load_recipe("int4-gptq", [f"quantize.{key}={value}" for key, value in asymmetric.items()])
    calibrate = recipe.calibrate.model_copy(update={"samples": 4, "seq_len": 64}) if recipe.calibrate else None
    recipe = recipe.model_copy(update={"calibrate": calibrate, "export": None if export == "none" else export})
    return quantize(make_plan(recipe, tiny))


@pytest.mark.parametrize(("export", "scheme"), [("autogptq", "W4A16"), ("autoawq", "W4A16"), ("autoawq", "W4A16_ASYM")])
def test_an_exported_artifact_computes_the_same_to_the_last_bit(tiny: Path, export: str, scheme: str) -> None:
    own, other = exported(tiny, "none", scheme), exported(tiny, export, scheme)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        before, after = (load_for_inference(a.checkpoint, "cpu")(ids).logits for a in (own, other))
    assert torch.equal(before, after)
    seen = verify(other, "cpu")
    assert seen.bytes_after == other.plan.bytes_after
    assert seen.layers == verify(own, "cpu").layers
    config = json.loads((other.checkpoint / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == export.removeprefix("auto")
    beside = {"autogptq": "quantize_config.json", "autoawq": "quant_config.json"}[export]
    assert json.loads((other.checkpoint / beside).read_text()) == config


def test_a_damaged_export_is_found(tiny: Path) -> None:
    artifact = exported(tiny, "autogptq", "W4A16")
    file = artifact.checkpoint / "model.safetensors"
    parts = load_file(file)
    name = next(name for name in parts if name.endswith(".scales"))
    start = next(tensor.start for tensor in read_checkpoint(artifact.checkpoint).tensors if tensor.name == name)
    damaged = bytearray(file.read_bytes())
    damaged[start : start + 2] = b"\x00\x7c"  # infinity
    file.write_bytes(damaged)
    with pytest.raises(QuantgateError, match=f"{name} holds zeros, negative numbers, NaN or infinities"):
        verify(artifact.model_copy(update={"files": {**artifact.files, "model.safetensors": "changed"}}), "cpu")


def test_llmcompressors_own_artifact_becomes_another_layout_and_back(tiny: Path, tmp_path: Path) -> None:
    """Its W4A16 by round to nearest, written by its own saving, repacked both ways."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    theirs = tmp_path / "theirs"
    scheme = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}}
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    oneshot(model=model, recipe=QuantizationModifier(config_groups=scheme, ignore=["lm_head"]))
    model.save_pretrained(theirs, save_compressed=True)
    source = read_checkpoint(theirs)
    own = Form(packing="compressed-tensors", scheme="W4A16", group_size=32)
    packed = [t.name.removesuffix(".weight_packed") for t in source.tensors if t.name.endswith(".weight_packed")]
    original = {tensor.name: tensor.shape for tensor in read_checkpoint(tiny).tensors}
    shapes = {name: (original[f"{name}.weight"][0], original[f"{name}.weight"][1]) for name in packed}
    assert len(shapes) == 28
    for packing in OTHERS:
        form = Form(packing=packing, scheme="W4A16_ASYM" if packing == "awq" else "W4A16", group_size=32)
        there, back = tmp_path / packing, tmp_path / f"{packing}-back"
        for folder in (there, back):
            folder.mkdir()
            edit_json_copy(theirs, folder)
        repack(source, shapes, "BF16", own, form, there)
        again = form.model_copy(update={"packing": "compressed-tensors"})
        repack(read_checkpoint(there), shapes, "BF16", form, again, back)
        before, after = load_file(theirs / "model.safetensors"), load_file(back / "model.safetensors")
        for name, shape in shapes.items():
            one = unpack({s: before[f"{name}.{s}"] for s in ("weight_packed", "weight_scale")}, own, shape[1])
            suffixes = layout("compressed-tensors", again.scheme, shape, "BF16", 32)
            two = unpack({s: after[f"{name}.{s}"] for s in suffixes}, again, shape[1])
            assert torch.equal(rounding.dequantize(*one), rounding.dequantize(*two))


def edit_json_copy(source: Path, folder: Path) -> None:
    (folder / "config.json").write_text((source / "config.json").read_text())
    edit_json(folder / "config.json", quantization_config=None)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["quantize.scheme=W8A16", "quantize.group_size=null"], "export autogptq holds W4A16, W4A16_ASYM, not W8A16"),
        (["quantize.rules=[{match: ['layer:0'], scheme: W4A16, group_size: 16}]"], "has one scheme and group size"),
    ],
)
def test_what_an_export_cannot_hold_is_refused_by_the_plan(tiny: Path, overrides: list[str], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        make_plan(load_recipe("int4-gptq", ["export=autogptq", "quantize.group_size=32", *overrides]), tiny)
