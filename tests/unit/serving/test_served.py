"""An artifact's own files say how its weights are stored: every format that can be made here is known again."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pipelines.checkpoint.gguf_file import read_tokens
from pipelines.core.errors import BadInput
from pipelines.formats.packings import Form, quantization_config
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName
from pipelines.serving.served import read_served
from tests.helpers.served import write_checkpoint, write_config, write_gguf

GPTQ, AWQ = (Form(packing=name, scheme="W4A16_ASYM", group_size=64) for name in ("gptq", "awq"))


@pytest.mark.parametrize("scheme", OWN_SCHEMES)
def test_a_compressed_tensors_checkpoint(scheme: SchemeName, tmp_path: Path) -> None:
    size = 64 if SCHEMES[scheme].resizable else SCHEMES[scheme].weights.group_size
    found = read_served(write_checkpoint(tmp_path / "mine", (scheme, size)))
    assert (found.stored, found.formats) == ("compressed-tensors", ((scheme, size),))
    assert (found.name, found.positions, found.cached_in_fp8) == ("mine", 8192, False)


def test_a_mixed_one_with_scales_for_keys_and_values(tmp_path: Path) -> None:
    found = read_served(write_checkpoint(tmp_path, ("W4A16", 128), ("W8A16", None), kv_cache=True))
    assert {*found.formats} == {("W4A16", 128), ("W8A16", None)}
    assert found.cached_in_fp8


@pytest.mark.parametrize(
    ("described", "stored", "formats"),
    [
        (quantization_config(GPTQ, []), "gptq", (("W4A16_ASYM", 64),)),
        (quantization_config(AWQ, []), "awq", (("W4A16_ASYM", 64),)),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt", (("FP8_TENSOR", None),)),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt", (("NVFP4", 16),)),
    ],
)
def test_other_packings(described: Any, stored: str, formats: Any, tmp_path: Path) -> None:
    found = read_served(write_config(tmp_path, described))
    assert (found.stored, found.formats) == (stored, formats)


def test_a_gguf_by_its_file_or_its_folder(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Mine-Q8_0.gguf", positions=512)
    for place in (file, tmp_path):
        found = read_served(place)
        assert (found.model, found.stored, found.formats, found.positions) == (file, "gguf", (), 512)
        assert found.name == "Mine-Q8_0"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (None, "is no quantized checkpoint, and no GGUF"),
        ({"quant_method": "fp8"}, "is quantized in a way that is not known here: quant_method fp8"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": [], "weights": {}}}},
            "not known here",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 3}}, "not known here"),
    ],
)
def test_what_is_none_is_refused(config: Any, what: str, tmp_path: Path) -> None:
    if config:
        write_config(tmp_path, config)
    with pytest.raises(BadInput, match=what):
        read_served(tmp_path)


@pytest.mark.parametrize("text", ["x", ["x"]])
def test_a_config_of_other_types_sets_no_limit(text: Any, tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path / "mine", ("W8A8", None))
    config = json.loads((place / "config.json").read_text())
    config.pop("max_position_embeddings")
    (place / "config.json").write_text(json.dumps({**config, "text_config": text}))
    assert read_served(place).positions is None


@pytest.mark.parametrize("value", ["x", [1, 2], -7])
def test_a_gguf_of_other_types_sets_no_limit_and_has_no_vocabulary(value: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_key_value("llama.context_length", value, *_types(value))
    writer.add_uint32("tokenizer.ggml.tokens", 3)
    writer.add_tensor("x", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_served(tmp_path / "odd.gguf").positions is None
    with pytest.raises(BadInput, match="has no vocabulary"):
        read_tokens(tmp_path / "odd.gguf")


def _types(value: Any) -> tuple[gguf.GGUFValueType, ...]:
    match value:
        case str():
            return (gguf.GGUFValueType.STRING,)
        case list():
            return (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)
    return (gguf.GGUFValueType.INT32,)
