"""The table of what loads where: whole, each entry with its source, and with the answers that must never be lost."""

from itertools import product
from typing import get_args

import pytest

from pipelines.formats.packings import HOLDS
from pipelines.formats.schemes import OWN_SCHEMES, SchemeName
from pipelines.serving.loads import TABLE, Answer, Place, Runtime, Stored, find, loads, loads_all

COMPUTED: tuple[tuple[Stored, SchemeName | None], ...] = (
    *(("compressed-tensors", scheme) for scheme in OWN_SCHEMES),
    *((packing, scheme) for packing, schemes in HOLDS.items() for scheme in schemes),
    ("gguf", None),
)
"""How weights are stored, and their scheme: everything that can be made here."""


def test_each_entry_names_its_source_and_answers_for_something_that_can_be_made() -> None:
    for entry in TABLE:
        assert entry.source
        assert any(find(entry.runtime, stored, scheme) is entry for stored, scheme in COMPUTED), entry


@pytest.mark.parametrize("runtime", get_args(Runtime))
def test_only_what_was_never_read_is_unknown_without_a_source(runtime: Runtime) -> None:
    unread = {(stored, scheme) for stored, scheme in COMPUTED if find(runtime, stored, scheme) is None}
    assert unread == {
        "sglang": {("gptq", "W4A16_ASYM")},
        "tensorrt-llm": {("awq", "W4A16"), ("awq", "W4A16_ASYM"), ("bitsandbytes", "NF4")},
    }.get(runtime, set())


@pytest.mark.parametrize("place", [7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 10.3, 12.0, "MI300", "cpu"])
def test_what_tensorrt_llm_misreads_is_misread_everywhere(place: Place) -> None:
    assert loads("tensorrt-llm", "compressed-tensors", "W8A8", place).answer == "misread"
    assert loads("tensorrt-llm", "compressed-tensors", "MXFP4", place).answer == "misread"


@pytest.mark.parametrize(
    ("runtime", "stored", "scheme", "place", "answer"),
    [
        ("vllm", "compressed-tensors", "FP8_DYNAMIC", 9.0, "native"),
        ("vllm", "compressed-tensors", "FP8_DYNAMIC", 8.6, "emulated"),
        ("vllm", "compressed-tensors", "FP8_DYNAMIC", 7.0, "refused"),
        ("vllm", "compressed-tensors", "FP8_DYNAMIC", "MI300", "native"),
        ("vllm", "compressed-tensors", "NVFP4", 9.0, "emulated"),
        ("vllm", "compressed-tensors", "NVFP4", 10.0, "native"),
        ("vllm", "compressed-tensors", "W8A8", 12.0, "refused"),
        ("vllm", "compressed-tensors", "W8A8", "MI300", "unknown"),
        ("vllm", "compressed-tensors", "W4AFP8", 8.9, "refused"),
        ("vllm", "gptq", "W4A16_ASYM", 9.0, "refused"),
        ("vllm", "bitsandbytes", "NF4", 9.0, "refused"),
        ("vllm", "gguf", None, 9.0, "refused"),
        ("sglang", "compressed-tensors", "NVFP4", 9.0, "emulated"),
        ("sglang", "compressed-tensors", "W8A8", 10.0, "unknown"),
        ("tensorrt-llm", "compressed-tensors", "FP8_DYNAMIC", 8.9, "refused"),
        ("tensorrt-llm", "modelopt", "FP8_TENSOR", 8.9, "native"),
        ("tensorrt-llm", "modelopt", "W4A16", 10.0, "refused"),
        ("llama.cpp", "gguf", None, "cpu", "native"),
        ("ollama", "compressed-tensors", "W4A16", "cpu", "refused"),
    ],
)
def test_what_a_runtime_does(
    runtime: Runtime, stored: Stored, scheme: SchemeName | None, place: Place, answer: Answer
) -> None:
    found = loads(runtime, stored, scheme, place)
    assert (found.answer, bool(found.source)) == (answer, True)


def test_blocks_of_another_size_than_the_kernels_have_are_refused() -> None:
    assert loads("vllm", "compressed-tensors", "FP8_BLOCK", 9.0, 128).answer == "native"
    refused = loads("vllm", "compressed-tensors", "FP8_BLOCK", 9.0, 64)
    assert refused.answer == "refused"
    assert "of 128, and some here are of 64" in refused.reason


def test_the_worst_of_several_schemes_decides() -> None:
    mixed: list[tuple[SchemeName, int | None]] = [("W4A16", 128), ("W8A16", None)]
    assert loads_all("vllm", "compressed-tensors", mixed, 8.0).answer == "native"
    assert loads_all("vllm", "compressed-tensors", mixed, "cpu").answer == "refused"
    assert loads_all("llama.cpp", "gguf", [], "cpu").answer == "native"


def test_what_serves_needs_no_excuse_and_what_does_not_gives_one() -> None:
    places: tuple[Place, ...] = (7.0, 7.5, 8.0, 8.9, 9.0, 10.0, 12.0, "MI300", "MI350", "cpu")
    for runtime, (stored, scheme), place in product(get_args(Runtime), COMPUTED, places):
        found = loads(runtime, stored, scheme, place)
        assert found.reason or found.answer == "native", (runtime, stored, scheme, place)
