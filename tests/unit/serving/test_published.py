"""The configs that a published artifact carries: those of the runtimes that are known to serve it, and no others."""

from pathlib import Path

import yaml

from pipelines.serving.published import published_configs
from tests.helpers.served import write_checkpoint, write_config, write_gguf


def test_a_checkpoint_has_those_of_three_or_fewer(tmp_path: Path) -> None:
    fp8 = published_configs(write_checkpoint(tmp_path / "fp8", ("FP8_DYNAMIC", None), kv_cache=True))
    assert {*fp8} == {"serve/vllm.yaml", "serve/sglang.yaml", "serve/tensorrt-llm.yaml"}
    assert yaml.safe_load(fp8["serve/vllm.yaml"]) == {"max-model-len": 8192, "kv-cache-dtype": "fp8"}
    assert str(tmp_path) not in "".join(fp8.values()), "a path of this machine means nothing elsewhere"
    int8 = published_configs(write_checkpoint(tmp_path / "int8", ("W8A8", None)))
    assert {*int8} == {"serve/vllm.yaml", "serve/sglang.yaml"}


def test_a_gguf_is_named_as_its_runtime_looks_for_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "Mine-Q8_0.gguf")
    write_gguf(tmp_path / "imatrix.gguf")
    found = published_configs(tmp_path)
    assert {*found} == {"serve/llama-server.ini", "serve/Modelfile"}
    assert "\nmodel = Mine-Q8_0.gguf\n" in found["serve/llama-server.ini"]
    assert "\nFROM ../Mine-Q8_0.gguf\n" in found["serve/Modelfile"]
    assert str(tmp_path) not in "".join(found.values())


def test_what_is_known_to_load_nowhere_has_none(tmp_path: Path) -> None:
    described = {"quant_method": "modelopt", "quant_algo": "W8A8_SQ_PER_CHANNEL"}
    assert published_configs(write_config(tmp_path, described)) == {}
