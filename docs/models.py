"""The fate of every causal language model that transformers knows: `make models` builds a tiny one of each class,
takes it through three recipes, and writes docs/models.md (half an hour); `make models TYPES="llama gpt2"` does so for
these model types alone and leaves the other rows as they are.

Whatever is found is what transformers' own classes do with random weights: an artifact that loads with logits near the
source's, or a refusal before any weight is read.
"""

import contextlib
import gc
import io
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.core.errors import BadInput, QuantgateError, brief

HERE = Path(__file__).parent
SIZES: dict[int, tuple[str, ...]] = {
    64: ("hidden_size", "d_model", "n_embd", "dim", "hidden_dim", "embedding_size", "word_embed_proj_dim", "lru_width"),
    128: (
        "intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size",
        "intermediate_size_mlp", "dense_intermediate_size", "shared_expert_intermediate_size",
    ),
    32: ("moe_intermediate_size", "expert_dim", "moe_shared_expert_intermediate_size", "kv_lora_rank", "q_lora_rank"),
    3: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_blocks"),
    4: (
        "num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads",
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "mamba_n_heads", "mamba_num_heads",
        "state_size", "ssm_state_size", "mamba_d_state",
    ),
    2: ("num_key_value_heads", "num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"),
    1: (
        "n_group", "n_groups", "topk_group", "mamba_n_groups", "mamba_ngroups", "n_shared_experts",
        "first_k_dense_replace", "num_mem_blocks",
    ),
    16: (
        "head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "mamba_d_head", "mamba_head_dim",
        "linear_key_head_dim", "linear_value_head_dim", "qk_head_dim", "rotary_dim",
    ),
    258: ("vocab_size", "vocab_size_per_layer_input"),
    512: ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"),
}  # fmt: skip
"""Size → the keys of configs that get it."""
SUNG = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}}
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 256},
    "blt_local_decoder": {"hidden_size_global": 64},
    "blt_local_encoder": {"hidden_size_global": 64},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}, "num_key_value_heads": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"activation_sparsity_pattern": [0.95, 0.95, 0.0], "num_kv_shared_layers": 1},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text", "num_hidden_layers": 3, "num_kv_shared_layers": 3,
            "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0,
        },
        "backbone_hidden_size": 64,
    },
    "gemma4_unified_assistant": {
        "text_config": {"model_type": "gemma4_unified_text", "num_hidden_layers": 3, "num_kv_shared_layers": 3},
        "backbone_hidden_size": 64,
    },
    "git": {"max_position_embeddings": 1024},  # generation counts them twice
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "granitemoehybrid": {
        "mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"expert_ffn_hidden_size": 32, "zero_expert_num": 2, "qk_head_dim": 32},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "musicgen": SUNG,
    "musicgen_melody": SUNG,
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48]},
    "xlm": {"emb_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "attention_hidden_size": 128},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Model type, of a whole model or of a part → settings that it needs beside `SIZES`; a dict adds to what is there."""
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
RECIPES = ("fp8", "int4-gptq", "gguf-q8_0")
NEAR = {"fp8": 0.5, "int4-gptq": 0.8}
"""Recipe → largest distance of an artifact's logits from the source's, relative to their size."""


class Outcome(NamedTuple):
    """The result of each recipe with a model type."""

    kind: str
    architecture: str
    results: tuple[str, ...]
    """Result for each of `RECIPES`: `yes`, or the reason why not."""


def tiny_settings(default: Any) -> dict[str, Any]:
    """Return settings that make a `default` config small."""
    from transformers import PreTrainedConfig

    known = default.to_dict()
    settings: dict[str, Any] = {key: size for size, keys in SIZES.items() for key in keys if known.get(key) is not None}
    settings |= {key: value for key, value in TOKENS.items() if key in known}
    layers = next((settings[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in settings), 3)
    for key in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "attn_layers"):
        if isinstance(known.get(key), list) and known[key]:
            kinds = list(dict.fromkeys(known[key]))
            settings[key] = [kinds[number % len(kinds)] for number in range(layers)]
    if "kv_lora_rank" in settings and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = settings.get("num_attention_heads", 4)  # latent attention has no groups
    for key, value in known.items():
        inner = getattr(default, key) if isinstance(value, dict) else None
        if isinstance(inner, PreTrainedConfig):
            settings[key] = {**inner.to_diff_dict(), **tiny_settings(inner)}
            settings[key].pop("per_layer_config", None)  # which a config makes anew for its layers
    for key, value in EXTRA.get(default.model_type, {}).items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    return settings


def small_config(kind: str) -> Any:
    """Return the config of a small model of type `kind`."""
    from transformers import AutoConfig

    # some types have no config without those of their parts
    parts = {key: dict(value) for key, value in EXTRA.get(kind, {}).items() if isinstance(value, dict)}
    return AutoConfig.for_model(kind, **tiny_settings(AutoConfig.for_model(kind, **parts)))


def build(kind: str, folder: Path) -> str:
    """Write a tiny checkpoint of model type `kind`, of random weights, into `folder`; return its class.

    Raises:
        ValueError: transformers makes no small model of this type from a config alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    try:
        config = small_config(kind)
    except Exception as error:
        raise ValueError(f"its config: {told(str(error), folder)}") from None
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
        if size > 30_000_000:
            raise ValueError("its model is not small")
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.08) if parameter.ndim > 1 else parameter.add_(0.1)
        model.to(torch.bfloat16).save_pretrained(folder)
    except Exception as error:
        raise ValueError(f"AutoModelForCausalLM of {type(config).__name__}: {brief(error).split('. ')[0]}") from None
    write_tokenizer(folder)
    return type(model).__name__


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def outcome(kind: str, scratch: Path) -> Outcome:
    """Take a tiny model of type `kind` through all recipes."""
    folder = scratch / kind
    try:
        with quietly():
            architecture = build(kind, folder)
    except ValueError as error:
        return Outcome(kind, "-", (f"not built: {error}",) * len(RECIPES))
    with quietly():
        results = tuple(attempt(recipe, folder, scratch) for recipe in RECIPES)
    gc.collect()
    return Outcome(kind, architecture, results)


def attempt(recipe: str, folder: Path, scratch: Path) -> str:
    """Return `yes` for an artifact that transformers loads with logits near the source's, or why there is none."""
    from pipelines import make_plan, quantize
    from pipelines.planning.plan import GgufPlan
    from pipelines.recipe.load import load_recipe
    from pipelines.verification.stage import verify

    settings = ["quantize.on_indivisible=skip", f"calibrate={{set: {calibration(scratch)}, samples: 4, seq_len: 32}}"]
    try:
        plan = make_plan(load_recipe(recipe, settings if recipe == "int4-gptq" else []), folder)
        if isinstance(plan, GgufPlan):
            return "yes"
        artifact = quantize(plan)
        verify(artifact, "cpu")
        far = distance(folder, artifact.checkpoint)
    except BadInput as error:
        return f"refused: {told(error.problems[0].what, folder)}"
    except QuantgateError as error:
        return f"failed: {told(str(error), folder)}"
    except Exception as error:
        return f"failed: unexpected {type(error).__name__}: {told(str(error), folder)}"
    return "yes" if far < NEAR[recipe] else "failed: its logits are far from the source's"


def told(text: str, folder: Path) -> str:
    """Return what is said of a model in a line that is the same wherever it is said, fit for a cell of a table."""
    line = " ".join(text.replace(str(folder.parent), "").split())
    return re.sub(r"/\S*/stages/\S*", "…", line).replace("|", "/")[:240]


def calibration(scratch: Path) -> Path:
    """Return a calibration set of a few sentences."""
    (scratch / "ships.txt").write_text(
        "\n\n".join(f"In the year {1500 + n} the ship left with {n * n} barrels." for n in range(60))
    )
    path = scratch / "ships.yaml"
    path.write_text("{version: 1, name: ships, summary: x, source: {kind: files, paths: [ships.txt]}}")
    return path


def distance(source: Path, artifact: Path) -> float:
    """Return how far plain transformers' logits of `artifact` are from those of `source`, relative to their size."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.randint(2, 250, (1, 48), generator=torch.Generator().manual_seed(1))
    found = []
    for folder in (source, artifact):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        with torch.inference_mode():
            found.append(model(ids, use_cache=False).logits.float())
    before, after = found
    far = float((after - before).norm() / before.norm())
    return far if math.isfinite(far) else math.inf


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what libraries say of models that nobody uses to themselves."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def kinds() -> list[str]:
    """Return every model type of which transformers has a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


HEAD = """\
# Models

Made by `make models`, which builds a tiny model of random weights of every class that transformers {version} loads as a
causal language model, and takes it through three recipes; edit `docs/models.py` instead. "yes" is an artifact that
plain transformers loads, with logits near the source's (fp8, int4-gptq), or a plan for the file (gguf-q8_0; llama.cpp
is not run for it). Everything else is refused before a weight is read, with the reason that is given, but for the few
that begin with "failed": these end later than that, and nothing is published. What is "not built" ends in transformers
before there is a model, with the error that is given.

{counts}

| model type | class | {recipes} |
|---|---|{lines}|
"""


def render(outcomes: Sequence[Outcome]) -> str:
    """Return the page of all `outcomes`."""
    from importlib.metadata import version

    counts = "\n".join(f"- {name}: {_counted(outcomes, number)}" for number, name in enumerate(RECIPES))
    lines = "|".join("---" for _ in RECIPES)
    head = HEAD.format(version=version("transformers"), counts=counts, recipes=" | ".join(RECIPES), lines=lines)
    return head + "".join(f"| {' | '.join([one.kind, one.architecture, *one.results])} |\n" for one in outcomes)


def _counted(outcomes: Sequence[Outcome], number: int) -> str:
    """Return a phrase on how many model types a recipe works for, and how many end otherwise."""
    kinds = Counter(short(one.results[number]) for one in outcomes)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def short(result: str) -> str:
    """Return whether a result is `yes`, `refused`, `failed` or `not built`."""
    return result.partition(":")[0]


def read_outcomes() -> list[Outcome]:
    """Return the outcomes in the table of docs/models.md."""
    rows = [line.strip("|").split(" | ") for line in (HERE / "models.md").read_text("utf-8").splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == 2 + len(RECIPES)]
    return [Outcome(kind, architecture, tuple(results)) for kind, architecture, *results in cells[1:]]


def read_table() -> dict[str, tuple[str, ...]]:
    """Return the table of docs/models.md as a mapping: model type → the results of `RECIPES`."""
    return {one.kind: one.results for one in read_outcomes()}


def main(wanted: Sequence[str]) -> None:
    """Try the model types that are `wanted`, or all, print what becomes of them, and write it into the table."""
    known = kinds()
    if unknown := sorted(set(wanted) - set(known)):
        sys.exit(f"transformers knows no causal language model of type {', '.join(unknown)}")
    outcomes = {one.kind: one for one in read_outcomes() if one.kind in known} if wanted else {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in wanted or known:
            outcomes[kind] = outcome(kind, Path(scratch))
            print(json.dumps(outcomes[kind]), flush=True)
    (HERE / "models.md").write_text(render([outcomes[kind] for kind in sorted(outcomes)]), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
