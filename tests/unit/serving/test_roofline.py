"""The roofline against figures that others measured: NVIDIA's on an H200, and llama.cpp's own."""

import pytest

from pipelines.serving.hardware import GPUS, Numbers
from pipelines.serving.roofline import (
    F16_RATE,
    GGUF_RATES,
    PRIOR,
    READING_BITS,
    SIXTEEN_BITS,
    Measured,
    Traffic,
    Weights,
    Work,
    fit,
    times,
)
from tests.helpers.paths import ROOT

BODY, HEAD = 6_979_321_856, 525_336_576
"""Weights of Llama-3.1-8B's layers, and of its head, which is kept in 16 bits."""
NVIDIA = {1: (173.80, 245.03, 231.75), 8: (803.11, 1051.17, 599.72), 64: (1679.74, 2190.93, 1392.78)}
"""Batch → tokens/s of Llama-3.1-8B in BF16, FP8 and INT4 AWQ: Model-Optimizer, examples/benchmark.md (H200,
TensorRT-LLM 0.15, 2048 tokens in, 128 out)."""
LLAMA_CPP = {"F16": (14.96, 29.17), "Q8_0": (7.95, 50.93), "Q6_K": (6.14, 58.67), "Q4_K_M": (4.58, 71.93)}
"""Type → GiB and tokens/s of Llama-3.1-8B: llama.cpp, tools/quantize/README.md (one GPU, which it does not name)."""
LLAMA_8B = 8_030_261_248


def llama(bits: float, numbers: Numbers = "16 bits", *, unpacked: bool = False) -> Work:
    body = Weights(count=BODY, bytes=BODY * bits / 8, share=PRIOR.share(bits), numbers=numbers, unpacked=unpacked)
    head = Weights(count=HEAD, bytes=2.0 * HEAD, share=PRIOR.share(16))
    return Work(weights=(body, head), layers=32, cache_bytes=131072)


def speed(work: Work, batch: int) -> float:
    traffic = Traffic(concurrency=batch, read=2048, written=128)
    return times(work, GPUS["H200"], 1, traffic).tokens_per_second


BF16, FP8, INT4 = llama(16), llama(8, "FP8"), llama(4.16, unpacked=True)


@pytest.mark.parametrize("batch", NVIDIA)
def test_nvidia_s_order_of_formats_on_an_h200_is_kept(batch: int) -> None:
    seen = dict(zip(("BF16", "FP8", "INT4"), NVIDIA[batch], strict=True))
    foretold = {"BF16": speed(BF16, batch), "FP8": speed(FP8, batch), "INT4": speed(INT4, batch)}
    assert (foretold["INT4"] > foretold["BF16"]) == (seen["INT4"] > seen["BF16"]) == (batch == 1)
    assert foretold["FP8"] > foretold["BF16"] and seen["FP8"] > seen["BF16"]
    assert foretold["BF16"] == pytest.approx(seen["BF16"], rel=0.1)
    assert foretold["FP8"] / foretold["BF16"] == pytest.approx(seen["FP8"] / seen["BF16"], rel=0.1)
    within = 0.25 if batch == 1 else 0.15
    assert foretold["INT4"] / foretold["BF16"] == pytest.approx(seen["INT4"] / seen["BF16"], rel=within)


def test_the_page_has_these_figures() -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    for batch, (plain, fp8, int4) in NVIDIA.items():
        ours = [speed(served, batch) for served in (BF16, FP8, INT4)]
        ratios = f"{fp8 / plain:.2f}x | {ours[1] / ours[0]:.2f}x | {int4 / plain:.2f}x | {ours[2] / ours[0]:.2f}x"
        assert f"| {batch} | {plain:.0f} | {ours[0]:.0f} | {ratios} |" in page
    rates = fit(measured("F16", "Q8_0"), LLAMA_8B, 1e12)
    for one in measured("Q6_K", "Q4_K_M"):
        foretold = rates.share(one.bytes * 8 / LLAMA_8B) * 1e12 / one.bytes
        assert f"| {one.recipe} | {one.tokens_per_second:.1f} | {foretold:.1f} |" in page


def measured(*kinds: str) -> list[Measured]:
    return [
        Measured(recipe=kind, runtime="llama.cpp", concurrency=1, tokens_per_second=rate, bytes=int(size * 2**30))
        for kind, (size, rate) in LLAMA_CPP.items()
        if kind in kinds
    ]


@pytest.mark.parametrize("third", ["Q6_K", "Q4_K_M"])
def test_fitted_on_two_it_foretells_the_third_within_a_fifth(third: str) -> None:
    bandwidth = 1e12  # of a GPU that is not named: it cancels out
    rates = fit(measured("F16", "Q8_0"), LLAMA_8B, bandwidth)
    size, rate = LLAMA_CPP[third]
    bits = size * 2**30 * 8 / LLAMA_8B
    assert rates.share(bits) * bandwidth / (size * 2**30) == pytest.approx(rate, rel=0.2)
    assert rates.reading_bits == pytest.approx(READING_BITS, abs=0.01), "the roofline's own figure is this one"


def test_two_speeds_come_out_as_they_went_in() -> None:
    rates = fit(measured("F16", "Q4_K_M"), LLAMA_8B, 1e12)
    for one in measured("F16", "Q4_K_M"):
        bits = one.bytes * 8 / LLAMA_8B
        assert rates.share(bits) * 1e12 / one.bytes == pytest.approx(one.tokens_per_second)


def test_speeds_that_no_roofline_has_are_not_fitted() -> None:
    small, large = measured("F16", "Q4_K_M")
    swapped = [small.model_copy(update={"bytes": large.bytes}), large.model_copy(update={"bytes": small.bytes})]
    with pytest.raises(ValueError, match="larger weights were not slower"):
        fit(swapped, LLAMA_8B, 1e12)


def test_fewer_bits_reach_less_of_the_bandwidth_and_types_of_llama_cpp_what_it_measured() -> None:
    shares = [PRIOR.share(bits) for bits in (2, 4, 8, 16)]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(SIXTEEN_BITS)
    for kind in ("Q8_0", "Q6_K", "Q4_K_M"):
        size, rate = LLAMA_CPP[kind]
        assert GGUF_RATES[kind] / F16_RATE == pytest.approx(size * rate / (14.96 * 29.17), rel=0.005)


def test_a_token_of_a_mixture_reads_its_own_experts_and_a_prompt_all() -> None:
    def experts(active: float) -> Work:
        weights = Weights(count=10**9, bytes=2e9, share=1.0, active=active)
        return Work(weights=(weights,), layers=0, cache_bytes=0)

    def step(active: float, batch: int) -> float:
        return times(experts(active), GPUS["H200"], 1, Traffic(concurrency=batch, read=8, written=8)).step

    assert step(0.25, 1) == pytest.approx(step(1.0, 1) / 4)
    assert step(0.25, 8) == pytest.approx(step(1.0, 8))
