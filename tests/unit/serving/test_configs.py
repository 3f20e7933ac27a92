"""The file that each runtime reads, whole, and what is refused instead of being handed out."""

import json
from pathlib import Path

import pytest

from pipelines.core.errors import BadInput
from pipelines.formats.schemes import SchemeName
from pipelines.serving.configs import make_config
from pipelines.serving.loads import Runtime
from pipelines.serving.options import OPTIONS
from pipelines.serving.served import Served, read_served
from pipelines.serving.serving import GOALS, Draft, Serving, make_serving
from tests.helpers.paths import ROOT
from tests.helpers.served import write_checkpoint, write_gguf

ALL = Serving(
    context=4096,
    concurrency=8,
    kv_cache="fp8",
    prefix_caching=False,
    tensor=2,
    pipeline=3,
    data=4,
    draft=Draft(model=Path("/small"), tokens=3),
)
"""Everything that can be asked."""

VLLM = """\
# For vLLM 0.32, by quantgate serve-config.
max-model-len: 4096
max-num-seqs: 8
kv-cache-dtype: fp8
no-enable-prefix-caching: true
tensor-parallel-size: 2
pipeline-parallel-size: 3
data-parallel-size: 4
speculative-config:
  method: draft_model
  model: /small
  num_speculative_tokens: 3
"""
SGLANG = """\
# For SGLang 0.5.23, by quantgate serve-config.
context-length: 4096
max-running-requests: 8
kv-cache-dtype: fp8_e4m3
disable-radix-cache: true
tp-size: 2
pp-size: 3
dp-size: 4
speculative-algorithm: STANDALONE
speculative-draft-model-path: /small
speculative-num-steps: 3
speculative-eagle-topk: 1
speculative-num-draft-tokens: 4
"""
TENSORRT = """\
# For TensorRT-LLM main of 2026-11, by quantgate serve-config.
max_seq_len: 4096
max_batch_size: 8
kv_cache_config:
  dtype: fp8
  enable_block_reuse: false
tensor_parallel_size: 2
pipeline_parallel_size: 3
speculative_config:
  decoding_type: Draft_Target
  speculative_model: /small
  max_draft_len: 3
"""
LLAMA = """\
; For llama.cpp of llama-cpp-python 0.3.36, by quantgate serve-config.
version = 1

[Mine-Q8_0]
model = Mine-Q8_0.gguf
load-on-startup = true
ctx-size = 32768
parallel = 8
cache-type-k = q8_0
cache-type-v = q8_0
flash-attn = on
cache-prompt = false
split-mode = layer
spec-type = draft-simple
spec-draft-model = /small
spec-draft-n-max = 3
"""
OLLAMA = """\
# For Ollama 0.6 or later, by quantgate serve-config.
FROM ./Mine-Q8_0.gguf
PARAMETER num_ctx 4096
"""


@pytest.fixture
def fp8(tmp_path: Path) -> Served:
    return read_served(write_checkpoint(tmp_path / "fp8", ("FP8_DYNAMIC", None)))


@pytest.fixture
def gguf(tmp_path: Path) -> Served:
    return read_served(write_gguf(tmp_path / "Mine-Q8_0.gguf"))


@pytest.mark.parametrize(
    ("runtime", "left_out", "text"),
    [("vllm", {}, VLLM), ("sglang", {}, SGLANG), ("tensorrt-llm", {"data": 1}, TENSORRT)],
)
def test_a_checkpoints_config(runtime: Runtime, left_out: dict[str, object], text: str, fp8: Served) -> None:
    config = make_config(runtime, fp8, ALL.model_copy(update=left_out))
    assert config.text == text
    assert config.variables == {}
    assert any("without measured scales, and the gate has not judged that" in note for note in config.notes)


def test_llama_servers_preset_always_says_which_kind_of_draft(gguf: Served) -> None:
    config = make_config("llama.cpp", gguf, ALL.model_copy(update={"tensor": 1, "data": 1}), "Mine-Q8_0.gguf")
    assert config.text == LLAMA
    assert config.commands("Mine-Q8_0.gguf", "llama-server.ini") == ("llama-server --models-preset llama-server.ini",)
    guessed = make_config("llama.cpp", gguf, Serving(draft=Draft(model=None, tokens=5)))
    assert guessed.text.endswith("spec-type = ngram-simple\nspec-ngram-simple-size-m = 5\n")
    assert "\nparallel = 1\n" in make_config("llama.cpp", gguf, Serving(concurrency=1)).text, "a number, and no flag"


def test_ollamas_modelfile_and_the_variables_of_its_server(gguf: Served) -> None:
    serving = Serving(context=4096, concurrency=8, kv_cache="fp8", pipeline=2)
    config = make_config("ollama", gguf, serving, "./Mine-Q8_0.gguf")
    assert config.text == OLLAMA
    variables = "OLLAMA_NUM_PARALLEL=8 OLLAMA_KV_CACHE_TYPE=q8_0 OLLAMA_FLASH_ATTENTION=1 OLLAMA_SCHED_SPREAD=1"
    assert config.commands("Mine-Q8_0.gguf", "Modelfile") == (
        f"{variables} ollama serve",
        "ollama create mine-q8_0 --file Modelfile",
    )


def test_nothing_asked_is_nothing_told(fp8: Served) -> None:
    assert make_config("vllm", fp8, Serving()).text == "# For vLLM 0.32, by quantgate serve-config.\n{}\n"


@pytest.mark.parametrize(
    ("runtime", "asked", "what"),
    [
        ("tensorrt-llm", {"data": 2}, "TensorRT-LLM has no copies of a model"),
        ("ollama", {"draft": Draft(model=None)}, "Ollama has no drafts"),
        ("ollama", {"prefix_caching": False, "data": 2}, r"turn prefix caching off\n.*\n.*no copies of a model"),
        ("llama.cpp", {"tensor": 2}, "llama.cpp has no matrices that GPUs share"),
    ],
)
def test_what_a_runtime_cannot_be_told_is_refused(
    runtime: Runtime, asked: dict[str, object], what: str, fp8: Served, gguf: Served
) -> None:
    served = fp8 if runtime == "tensorrt-llm" else gguf
    with pytest.raises(BadInput, match=what):
        make_config(runtime, served, Serving.model_validate(asked))


@pytest.mark.parametrize(
    ("runtime", "scheme", "size", "what"),
    [
        ("tensorrt-llm", "W8A8", None, r"takes the INT8 codes for FP8.*misread.*\n.*fp8-modelopt"),
        ("tensorrt-llm", "MXFP4", 32, "takes it for weights only.*misread"),
        ("tensorrt-llm", "FP8_STATIC", None, "wants activations with a scale for each token.*refused"),
        ("vllm", "FP8_BLOCK", 64, "of 128, and some here are of 64"),
        ("llama.cpp", "FP8_DYNAMIC", None, "reads GGUF only"),
    ],
)
def test_no_config_is_handed_out_for_what_is_refused_or_misread(
    runtime: Runtime, scheme: SchemeName, size: int | None, what: str, tmp_path: Path
) -> None:
    served = read_served(write_checkpoint(tmp_path / "mine", (scheme, size)))
    with pytest.raises(BadInput, match=what):
        make_config(runtime, served, Serving())


def test_goals_choose_what_is_not_given(fp8: Served, gguf: Served) -> None:
    throughput = make_serving("vllm", fp8, goal="throughput", gpus=4)
    assert (throughput.data, throughput.tensor, throughput.context) == (4, 1, 8192)
    assert make_serving("tensorrt-llm", fp8, goal="throughput", gpus=4).tensor == 4
    assert make_serving("llama.cpp", gguf, goal="throughput", gpus=4).pipeline == 4
    latency = make_serving("vllm", fp8, goal="latency", gpus=2, concurrency=3, context=100)
    assert (latency.tensor, latency.concurrency, latency.context) == (2, 3, 100)
    assert make_serving("vllm", fp8, goal="long-context").kv_cache == "fp8"
    assert make_serving("llama.cpp", gguf, goal="edge").context == 4096
    for goal in GOALS:
        pairs: dict[Runtime, Served] = {"vllm": fp8, "sglang": fp8, "llama.cpp": gguf, "ollama": gguf}
        for runtime, served in pairs.items():
            make_config(runtime, served, make_serving(runtime, served, goal=goal, gpus=2))


def test_keys_and_values_are_cached_as_they_were_judged(tmp_path: Path) -> None:
    served = read_served(write_checkpoint(tmp_path / "mine", ("FP8_DYNAMIC", None), kv_cache=True))
    config = make_config("vllm", served, make_serving("vllm", served))
    assert "kv-cache-dtype: fp8\n" in config.text
    assert not any("measured scales" in note for note in config.notes)


def test_more_context_than_the_model_reads_is_refused(fp8: Served) -> None:
    with pytest.raises(BadInput, match=r"--context 8193: is longer than what fp8 can read\n.*at most 8192"):
        make_serving("vllm", fp8, context=8193)


def test_each_name_is_told_once_for_each_runtime() -> None:
    for options in OPTIONS.values():
        alone = {setting: chosen for setting, chosen in options.items() if not setting.startswith(("ngram", "draft"))}
        names = [option.name for chosen in alone.values() for option in chosen]
        assert len(names) == len({*names})


@pytest.mark.parametrize("runtime", ["sglang", "llama.cpp"])
def test_its_names_are_options_of_the_pinned_version(runtime: Runtime) -> None:
    """All names of SGLang 0.5.23 (srt/arg_groups/fields) and of the pinned llama.cpp (common/arg.cpp) that a command
    line takes."""
    known = json.loads((ROOT / "tests" / "references" / "data" / "options.json").read_text())[runtime]
    told = {option.name for options in OPTIONS[runtime].values() for option in options}
    assert told <= {*known}
