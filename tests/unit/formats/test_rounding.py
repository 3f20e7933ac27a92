"""The arithmetic of the number formats: what is stored, against compressed-tensors' own reading and rounding of it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.formats import e2m1, mxfp4, nvfp4, rounding
from pipelines.formats.description import Scales
from pipelines.formats.rounding import DTYPES
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName, config_group, layout

NAMES: tuple[SchemeName, ...] = OWN_SCHEMES
STORED = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32",
}  # fmt: skip
MAGNITUDES = {"BF16": (-100, 100), "F16": (-14, 8), "F32": (-100, 100)}
"""Powers of two that weights are multiplied with; those of F16 stay where its scales do not underflow."""

every_scheme = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def make(rows: int, columns: int, dtype: str, seed: int = 0, magnitude: int = 0) -> torch.Tensor:
    """Weights with heavy tails, rows of very different size, a row of zeros, and zeros in half of another."""
    numbers = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).pow(3)
    numbers *= torch.logspace(-1, 0, rows).unsqueeze(1) * 2.0**magnitude
    numbers[0, : columns // 2] = 0
    if rows > 1:
        numbers[-1] = 0
    largest = torch.finfo(DTYPES[dtype]).max
    return numbers.clamp(-largest, largest).to(DTYPES[dtype])


def group_size(name: SchemeName, chosen: int = 32) -> int | None:
    """The scheme's own, or `chosen` where it is the recipe's to choose."""
    return chosen if SCHEMES[name].resizable else SCHEMES[name].weights.group_size


def find(weight: torch.Tensor, name: SchemeName, size: int | None) -> Scales:
    own = SCHEMES[name].weights.strategy == "tensor_group"
    return rounding.find_scales(weight, name, size, nvfp4.tensor_scale(weight.abs().amax()) if own else None)


def described(name: SchemeName, size: int | None) -> Any:
    """The scheme as compressed-tensors reads it from a config."""
    from compressed_tensors.quantization import QuantizationScheme

    return QuantizationScheme.model_validate(config_group(name, ["Linear"], size))


@st.composite
def weights(draw: st.DrawFn, name: SchemeName, dtype: str) -> tuple[torch.Tensor, int | None]:
    """A weight, and a group size that divides it: rows and columns of any number otherwise."""
    size = group_size(name, draw(st.sampled_from((12, 32))))
    few, odd = st.integers(1, 3), st.sampled_from((1, 3, 8, 12, 16, 19))
    rows = draw(few) * (size or 1) if SCHEMES[name].is_block else draw(odd)
    columns = draw(few) * size if size else draw(odd)
    seed, magnitude = draw(st.integers(0, 1 << 30)), draw(st.integers(*MAGNITUDES[dtype]))
    return make(rows, columns, dtype, seed, magnitude), size


# What is stored


@every_scheme
@every_dtype
def test_what_is_stored_is_what_the_layout_promises_and_what_compressed_tensors_reads(
    name: SchemeName, dtype: str
) -> None:
    from compressed_tensors.compressors import BaseCompressor

    @quick
    @given(weights(name, dtype))
    def check(drawn: tuple[torch.Tensor, int | None]) -> None:
        weight, size = drawn
        scales = find(weight, name, size)
        codes = rounding.quantize(weight, scales)
        parts = rounding.pack(codes, scales, name, weight.dtype)

        promised = layout(name, tuple(weight.shape), dtype, size)
        found = {suffix: (STORED[part.dtype], tuple(part.shape)) for suffix, part in parts.items()}
        assert found == {suffix: promised[suffix] for suffix in promised if suffix in found}
        rest = {suffix for suffix in promised if not suffix.startswith("input_")} - found.keys()
        assert rest == ({"weight_shape"} if "weight_packed" in found and scales.numbers.kind == "int" else set())
        assert all(part.reshape(-1).is_contiguous() and part.stride(-1) == 1 for part in parts.values())

        again, read = rounding.unpack(parts, name, size, weight.shape[1])
        assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))
        assert (read.numbers, read.group_size) == (scales.numbers, scales.group_size)
        for kept, stored in ((scales.scale, read.scale), (scales.zero, read.zero), (scales.tensor, read.tensor)):
            assert (kept is None and stored is None) or (kept is not None and torch.equal(kept, stored))  # type: ignore[arg-type]

        ours = rounding.dequantize(codes, scales)
        reader = BaseCompressor.get_value_from_registry(SCHEMES[name].format)
        theirs = reader.decompress(parts | {"weight_shape": torch.tensor(weight.shape)}, described(name, size))
        assert torch.equal(theirs["weight"], ours.to(theirs["weight"].dtype))  # it rounds to the dtype of the scales
        if dtype == "F32" and SCHEMES[name].family.name != "FP4":
            assert theirs["weight"].dtype == torch.float32
        if name == "MXFP4":
            assert torch.equal(theirs["weight"].float(), ours)

    check()


@every_scheme
def test_schemes_are_compressed_tensors_presets_of_the_same_name(name: SchemeName) -> None:
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import preset_name_to_scheme

    keys = (
        "num_bits", "type", "strategy", "symmetric", "dynamic", "group_size", "block_structure", "scale_dtype",
        "zp_dtype",
    )  # fmt: skip
    preset = preset_name_to_scheme({"FP8_STATIC": "FP8"}.get(name, name), ["Linear"])
    ours = described(name, SCHEMES[name].weights.group_size)
    chosen: dict[str, dict[str, Any]] = {
        "FP8_STATIC": {"strategy": "channel"},
        "W8A16": {"strategy": "channel", "group_size": None},
    }
    for which, changed in (("weights", chosen.get(name, {})), ("input_activations", {})):
        theirs, own = getattr(preset, which), getattr(ours, which)
        assert (theirs is None) == (own is None)
        if own is not None:
            expected = {key: getattr(theirs, key) for key in keys} | changed
            assert {key: getattr(own, key) for key in keys} == expected
    if name != "W4AFP8":  # compressed-tensors, if asked to choose, would give each of its codes a byte
        assert infer_module_format(torch.nn.Linear, preset).value == SCHEMES[name].format


# Scales and rounding


def their_scales(weight: torch.Tensor, name: SchemeName, size: int | None, tensor: torch.Tensor | None) -> Any:
    from compressed_tensors.quantization.utils import calculate_qparams

    rows, columns = weight.shape
    grouped = weight.view(rows, columns // (size or columns), -1)
    if SCHEMES[name].is_block and size:
        blocks = weight.view(rows // size, size, columns // size, size)
        grouped = blocks.transpose(1, 2).flatten(2)
    low, high = grouped.amin(-1), grouped.amax(-1)
    return calculate_qparams(low, high, described(name, size).weights, global_scale=tensor)


def spread(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A value for each group, repeated for each of its elements."""
    rows, columns = weight.shape
    repeated = value.repeat_interleave(rows // value.shape[0], 0)
    return repeated.repeat_interleave(columns // value.shape[1], 1).double()


def slack(weight: torch.Tensor, scales: Scales) -> torch.Tensor:
    """What float32 cannot tell: a quotient next to a tie, and the product of code and scale."""
    return 1e-6 * spread(scales.step, weight) + 1e-7 * weight.abs()


@every_scheme
@every_dtype
def test_scales_and_codes_are_compressed_tensors_own_or_closer(name: SchemeName, dtype: str) -> None:
    from compressed_tensors.quantization.lifecycle.forward import quantize

    size = group_size(name)
    weight = make(96, 192, dtype)
    scales = find(weight, name, size)
    codes = rounding.quantize(weight, scales)
    scale, zero = their_scales(weight, name, size, scales.tensor)
    units = quantize(weight, scale, zero, described(name, size).weights, global_scale=scales.tensor)

    used = spread(scale, weight) * (weight != 0) > 0  # in groups of zeros, the scale is anybody's choice
    same_scale = dtype == "F32" or (scales.numbers.symmetric and scales.numbers.strategy != "tensor_group")
    if same_scale:
        assert torch.equal(spread(scale, weight)[used], spread(scales.scale, weight)[used])
    if dtype == "F32":
        assert scales.zero is None or torch.equal(spread(zero, weight)[used], spread(scales.zero, weight)[used])
        assert torch.equal(units[used], scales.numbers.element.decode(codes)[used])

    step = scale.double() if scales.tensor is None else scale.double() / scales.tensor.double()
    theirs = (units.double() - spread(zero, weight)) * spread(step, weight)
    our_error = (rounding.dequantize(codes, scales).double() - weight.double()).abs()
    their_error = (theirs - weight.double()).abs()
    if same_scale:  # a quotient in 16 bits is rounded twice: it can only be farther away
        assert (our_error <= their_error + slack(weight, scales)).all()
    else:  # scales a bit apart, because theirs were found in 16 bits
        assert our_error.square().sum() <= 1.02 * their_error.square().sum()


@every_scheme
@every_dtype
def test_codes_are_the_nearest_of_all(name: SchemeName, dtype: str) -> None:
    size = group_size(name)
    weight = make(32, 96, dtype, seed=1)
    scales = find(weight, name, size)
    error = (rounding.dequantize(rounding.quantize(weight, scales), scales).double() - weight.double()).abs()
    if scales.numbers.kind == "int":
        values = torch.arange(-(2 ** (scales.numbers.bits - 1)), 2 ** (scales.numbers.bits - 1)).double()
    elif scales.numbers.bits == 4:
        values = torch.tensor([*e2m1.MAGNITUDES, *(-value for value in e2m1.MAGNITUDES)]).double()
    else:
        values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        values = values[values.isfinite()]
    zero = torch.zeros_like(scales.scale) if scales.zero is None else scales.zero
    all_of_them = (values - spread(zero, weight).unsqueeze(-1)) * spread(scales.step, weight).unsqueeze(-1)
    nearest = (all_of_them - weight.double().unsqueeze(-1)).abs().amin(-1)
    assert (error <= nearest + slack(weight, scales)).all()


@every_scheme
@every_dtype
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_of_a_group_is_not_clipped_by_much(name: SchemeName, dtype: str, sign: int) -> None:
    """By half a step, and by what the scale loses when it is stored."""
    size = group_size(name)
    weight = make(32, 64, dtype).abs().add(2.0**-6) * sign
    scales = find(weight, name, size)
    error = (rounding.dequantize(rounding.quantize(weight, scales), scales) - weight.float()).abs()
    width = {"FP8": 32, "FP4": 2}.get(SCHEMES[name].family.name, 1)  # of a step at the top, in units
    loss = {"tensor_group": 2.0**-4, "group": 2.0**-3 if scales.numbers.kind == "float" else 2.0**-8}
    allowed = width / 2 * spread(scales.step, weight) + loss.get(scales.numbers.strategy, 2.0**-8) * weight.abs()
    assert (error <= allowed * 1.001).all()


@every_scheme
@every_dtype
def test_zeros_stay_zeros_under_a_sound_scale(name: SchemeName, dtype: str) -> None:
    weight = torch.zeros(32, 64, dtype=DTYPES[dtype])
    for filled in (0, 1):
        weight[0, 0] = filled
        scales = find(weight, name, group_size(name))
        assert (scales.scale > 0).all()
        assert scales.scale.isfinite().all()
        restored = rounding.dequantize(rounding.quantize(weight, scales), scales)
        assert torch.equal(restored != 0, weight != 0)


@every_scheme
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_leaves_a_step_that_is_none(name: SchemeName, broken: float) -> None:
    """Engines see it there, without a second look at the weights."""
    weight = make(32, 64, "BF16")
    weight[3, 5] = broken
    assert not find(weight, name, group_size(name)).step.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if SCHEMES[name].weights.bits == 8])
def test_rows_whose_scale_underflows_in_fp16_lose_no_more_than_in_compressed_tensors(name: SchemeName) -> None:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    weight = make(32, 64, "F16") * 2.0**-21
    size = group_size(name)
    scales = find(weight, name, size)
    theirs = fake_quantize(weight, *their_scales(weight, name, size, None), described(name, size).weights)
    ours = rounding.dequantize(rounding.quantize(weight, scales), scales)
    assert (ours - weight).norm() <= (theirs.float() - weight).norm()


def test_a_power_of_two_is_found_and_stored_over_the_whole_range_of_e8m0() -> None:
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

    largest = torch.cat([torch.exp2(torch.arange(-124.0, 127)) * mantissa for mantissa in (1, 1.7499, 1.75, 1.9999)])
    assert torch.equal(mxfp4.exponent(largest).float(), generate_mx_scales(largest))
    every = torch.arange(255, dtype=torch.uint8).unsqueeze(1)
    codes = torch.arange(16, dtype=torch.uint8).repeat(255, 2)
    _, scales = rounding.unpack({"weight_packed": codes[:, ::2], "weight_scale": every}, "MXFP4", 32, 32)
    assert torch.equal(rounding.pack(codes, scales, "MXFP4", torch.bfloat16)["weight_scale"], every)


@every_scheme
def test_rows_can_be_quantized_apart(name: SchemeName) -> None:
    size = group_size(name)
    weight = make(96, 64, "BF16")
    scales = find(weight, name, size)
    per = 32 if SCHEMES[name].is_block else 1
    apart = [
        rounding.quantize(weight[first : first + 32], scales.rows(first // per, (first + 32) // per))
        for first in range(0, 96, 32)
    ]
    assert torch.equal(torch.cat(apart).view(torch.uint8), rounding.quantize(weight, scales).view(torch.uint8))


@every_scheme
def test_a_scale_that_covers_half_of_the_range_is_half_as_large(name: SchemeName) -> None:
    weight = make(32, 64, "F32").abs().add(1)
    size, tensor = group_size(name), nvfp4.tensor_scale(torch.tensor(60.0))
    whole, half = (rounding.find_scales(weight, name, size, tensor, shrink=shrink) for shrink in (1.0, 0.5))
    assert torch.allclose(whole.step, half.step * 2)


# Rounding to one number format

FORMATS = {
    f"{numbers.kind}{numbers.bits}": numbers
    for scheme in SCHEMES.values()
    for numbers in (scheme.weights, scheme.activations)
    if numbers and numbers.kind != "normal"  # which is bitsandbytes' to round
}


@pytest.mark.parametrize("numbers", FORMATS.values(), ids=FORMATS.keys())
@quick
@given(
    st.lists(
        st.one_of(
            st.floats(width=32, allow_nan=False),
            st.integers(-2048, 2048).map(lambda eighths: eighths / 8),
            st.integers(-1024, 1024).map(lambda number: number + 0.5),
        ),
        min_size=1,
    )
)
def test_snapping_is_encoding_and_decoding(numbers: Any, values: list[float]) -> None:
    units = torch.tensor([values])
    through_codes = numbers.element.decode(numbers.element.encode(units.clone()))
    assert torch.equal(numbers.element.snap(units.clone()), through_codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp4_rounds_every_16_bit_number_to_the_nearest_and_ties_to_even(dtype: torch.dtype) -> None:
    from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA

    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    grid = torch.tensor(e2m1.MAGNITUDES).double()
    distance = (values.double().abs().clamp(max=8).unsqueeze(1) - grid).abs()
    near = distance == distance.amin(1, keepdim=True)
    odd = torch.arange(8) % 2
    index = (near * (2 - odd)).argmax(1)  # of two that are equally near, the even one
    wanted = grid[index].copysign(values.double())
    assert torch.equal(e2m1.snap(values.clone()).double(), wanted)
    numbers = SCHEMES["NVFP4"].weights
    codes = numbers.element.encode(values.float())
    assert torch.equal(codes & 7, index.to(torch.uint8))
    assert torch.equal(numbers.element.decode(codes).double(), wanted)
    assert torch.equal(FP4_E2M1_DATA.cast_to_fp4(values.clamp(-6, 6)).double(), wanted)
