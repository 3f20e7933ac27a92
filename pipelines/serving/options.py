"""The names that runtimes give to what a `Serving` says, as data: each belongs to the version in `loads.VERSIONS`.

A dot in a name nests it: `a.b` is the key b below a. What a runtime has no name for, it cannot be told.
"""

from typing import Literal

from pipelines.core.strict_yaml import Frozen
from pipelines.serving.loads import Runtime

Setting = Literal[
    "context", "concurrency", "kv_cache", "no_prefix_caching", "tensor", "pipeline", "data", "draft", "ngram",
    "draft_tokens", "ngram_tokens",
]  # fmt: skip
Value = str | int | bool


class Option(Frozen):
    """An option of a runtime, or a part of one."""

    name: str
    value: Value | None = None
    """What it is set to; the setting's own value unless given."""
    more: int = 0
    """What is added to the setting's own value."""


OPTIONS: dict[Runtime, dict[Setting, tuple[Option, ...]]] = {
    # vLLM 0.32.0: engine/arg_utils.py, config/speculative.py
    "vllm": {
        "context": (Option(name="max-model-len"),),
        "concurrency": (Option(name="max-num-seqs"),),
        "kv_cache": (Option(name="kv-cache-dtype", value="fp8"),),
        # `enable-prefix-caching: false` is read by nobody: the subcommand's parser is not asked whether it knows the no
        "no_prefix_caching": (Option(name="no-enable-prefix-caching", value=True),),
        "tensor": (Option(name="tensor-parallel-size"),),
        "pipeline": (Option(name="pipeline-parallel-size"),),
        "data": (Option(name="data-parallel-size"),),
        "draft": (
            Option(name="speculative-config.method", value="draft_model"),
            Option(name="speculative-config.model"),
        ),
        "ngram": (
            Option(name="speculative-config.method", value="ngram"),
            Option(name="speculative-config.prompt_lookup_max", value=4),
        ),
        "draft_tokens": (Option(name="speculative-config.num_speculative_tokens"),),
        "ngram_tokens": (Option(name="speculative-config.num_speculative_tokens"),),
    },
    # SGLang 0.5.23: srt/arg_groups/fields
    "sglang": {
        "context": (Option(name="context-length"),),
        "concurrency": (Option(name="max-running-requests"),),
        "kv_cache": (Option(name="kv-cache-dtype", value="fp8_e4m3"),),
        "no_prefix_caching": (Option(name="disable-radix-cache", value=True),),
        "tensor": (Option(name="tp-size"),),
        "pipeline": (Option(name="pp-size"),),
        "data": (Option(name="dp-size"),),
        "draft": (
            Option(name="speculative-algorithm", value="STANDALONE"),
            Option(name="speculative-draft-model-path"),
        ),
        "ngram": (Option(name="speculative-algorithm", value="NGRAM"),),
        "draft_tokens": (
            Option(name="speculative-num-steps"),
            Option(name="speculative-eagle-topk", value=1),
            Option(name="speculative-num-draft-tokens", more=1),
        ),
        "ngram_tokens": (Option(name="speculative-num-draft-tokens"),),
    },
    # TensorRT-LLM, main of 2026-11: llmapi/llm_args.py
    "tensorrt-llm": {
        "context": (Option(name="max_seq_len"),),
        "concurrency": (Option(name="max_batch_size"),),
        "kv_cache": (Option(name="kv_cache_config.dtype", value="fp8"),),
        "no_prefix_caching": (Option(name="kv_cache_config.enable_block_reuse", value=False),),
        "tensor": (Option(name="tensor_parallel_size"),),
        "pipeline": (Option(name="pipeline_parallel_size"),),
        "draft": (
            Option(name="speculative_config.decoding_type", value="Draft_Target"),
            Option(name="speculative_config.speculative_model"),
        ),
        "ngram": (
            Option(name="speculative_config.decoding_type", value="NGram"),
            Option(name="speculative_config.max_matching_ngram_size", value=4),
        ),
        "draft_tokens": (Option(name="speculative_config.max_draft_len"),),
        "ngram_tokens": (Option(name="speculative_config.max_draft_len"),),
    },
    # llama.cpp of llama-cpp-python 0.3.36: common/arg.cpp. A draft without `spec-type` is loaded and never used.
    "llama.cpp": {
        "context": (Option(name="ctx-size"),),
        "concurrency": (Option(name="parallel"),),
        "kv_cache": (
            Option(name="cache-type-k", value="q8_0"),
            Option(name="cache-type-v", value="q8_0"),
            Option(name="flash-attn", value="on"),
        ),
        "no_prefix_caching": (Option(name="cache-prompt", value=False),),
        "pipeline": (Option(name="split-mode", value="layer"),),
        "draft": (Option(name="spec-type", value="draft-simple"), Option(name="spec-draft-model")),
        "ngram": (Option(name="spec-type", value="ngram-simple"),),
        "draft_tokens": (Option(name="spec-draft-n-max"),),
        "ngram_tokens": (Option(name="spec-ngram-simple-size-m"),),
    },
    # Ollama: docs/modelfile.md; the rest are variables of its server, docs/faq.md
    "ollama": {
        "context": (Option(name="num_ctx"),),
        "concurrency": (Option(name="OLLAMA_NUM_PARALLEL"),),
        "kv_cache": (
            Option(name="OLLAMA_KV_CACHE_TYPE", value="q8_0"),
            Option(name="OLLAMA_FLASH_ATTENTION", value=1),
        ),
        "pipeline": (Option(name="OLLAMA_SCHED_SPREAD", value=1),),
    },
}
"""Runtime → setting → its options."""
