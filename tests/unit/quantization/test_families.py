"""Families of models, small and random but of transformers' own classes: planned, quantized, verified and loaded.

Norms, biases and the spread of the inputs are drawn so that every term counts: with weights as transformers initializes
them, a model would hardly notice a missing bias, a norm without its offset or a column scaled twice.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from docs.models import write_tokenizer
from pipelines.checkpoint.limits import positions
from pipelines.core.errors import BadInput
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.engines.loading import load_for_calibration
from pipelines.quantization.engines.stream import Stream
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from pipelines.recipe.recipe import Recipe
from pipelines.runtimes.loading import load_for_inference
from pipelines.verification.stage import verify
from tests.helpers.families import (
    ALL_HEADS,
    COMMON,
    EXPERTS,
    GEMMA,
    MIXTRAL,
    TEXT,
    UNTIED,
    Make,
    enliven,
    make,
    tensors,
    text,
)
from tests.helpers.plans import plan_checkpoint

assert make and text  # fixtures

BLOOM = {"n_head": 4, "n_layer": 3}
MPT = {"d_model": 64, "n_heads": 2, "n_layers": 3, "max_seq_len": 512}
"""As many heads as samples are compared, which could be taken for one another."""
FALCON = {"head_dim": None}
"""Which it works out, and takes from nobody."""
GPTJ = {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 512, "rotary_dim": 8, **UNTIED}
OPT = {"word_embed_proj_dim": 64, "ffn_dim": 128}
AWQ8 = ("quantize={method: awq, scheme: W8A16}",)
"""AWQ in a format that loses next to nothing, so that a smoothing that changes the model shows."""
GROUPS = ("quantize.group_size=32",)
EVERY_LAYER = ("quantize.ignore=[lm_head]",)


def recipe_for(name: str, text: tuple[str, ...], overrides: tuple[str, ...] = ()) -> Recipe:
    overrides = (*overrides, *text) if name != "fp8" else overrides
    return load_recipe(name, overrides)


def logits(folder: Path) -> torch.Tensor:
    """Of a fixed text, longer than the sliding windows; (1, tokens, vocabulary) in float32."""
    model = load_for_inference(folder, "cpu")
    ids = torch.tensor([list(TEXT[: min(96, positions(model.config) or 96)].encode())])
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits.float()
    return found


def distance(source: Path, artifact: Path) -> float:
    """Of the logits, relative to the source's."""
    before, after = logits(source), logits(artifact)
    return float((after - before).norm() / before.norm())


EXPECTED = {
    "fp8": (30, 0.2),
    "fp8-static": (30, 0.2),
    "fp8-kv": (30, 0.2),
    "int8": (35, 0.08),
    "int4-gptq": (13, 0.6),
    "int4-awq": (17, 0.6),
    "nvfp4": (13, 0.6),
}
"""Recipe → decibels that every weight keeps, and how far logits may move relative to their size."""
FAMILIES: list[tuple[str, dict[str, Any], str, str | None, str, tuple[str, ...]]] = [
    # model type, settings, dtype, size of shards, recipe, overrides
    ("llama", {}, "bfloat16", None, "fp8", EVERY_LAYER),
    ("llama", UNTIED, "float32", "100KB", "int4-gptq", ()),
    ("llama", ALL_HEADS, "bfloat16", None, "int4-awq", ()),
    ("qwen2", UNTIED, "float16", "100KB", "fp8", ()),
    ("qwen2", ALL_HEADS, "bfloat16", None, "int8", AWQ8),  # biases, of the values too
    ("qwen2", {}, "bfloat16", "100KB", "nvfp4", ()),
    ("qwen3", {}, "bfloat16", None, "int8", ()),  # norms of queries and keys
    ("qwen3", {}, "bfloat16", None, "fp8-kv", EVERY_LAYER),
    ("mistral", {"sliding_window": 32, **UNTIED}, "float16", None, "fp8-static", EVERY_LAYER),
    ("mistral", {"sliding_window": 32}, "bfloat16", "100KB", "int4-gptq", ()),
    ("gemma2", GEMMA, "bfloat16", None, "int8", ()),  # norms with an offset, masks of two kinds
    ("gemma2", GEMMA, "float32", None, "int8", AWQ8),
    ("gemma3_text", {**GEMMA, "sliding_window_pattern": 2}, "bfloat16", None, "int8", AWQ8),
    ("gemma3_text", {**GEMMA, "sliding_window_pattern": 2}, "bfloat16", "100KB", "fp8-kv", ()),
    ("phi3", ALL_HEADS, "bfloat16", None, "int8", AWQ8),  # fused projections
    ("phi3", {}, "float16", None, "fp8-kv", ()),
    ("phi3", ALL_HEADS, "bfloat16", None, "nvfp4", ()),
    ("starcoder2", {}, "bfloat16", None, "int8", ()),  # norms with a bias
    ("nemotron", {}, "bfloat16", None, "int8", AWQ8),  # with bias and offset; no gate but a square
    ("olmo2", {}, "bfloat16", None, "int8", ()),  # norms behind attention and MLP
    ("phi", UNTIED, "bfloat16", None, "int8", AWQ8),  # attention and MLP read the same norm
    ("bloom", BLOOM, "bfloat16", None, "int4-gptq", GROUPS),  # alibi, with a row for each head of each sample
    ("bloom", BLOOM, "float32", None, "int8", ()),
    ("falcon", {**FALCON, "alibi": True}, "bfloat16", None, "int8", ()),
    ("falcon", {**FALCON, "alibi": False}, "bfloat16", None, "fp8-static", ()),
    ("mpt", MPT, "bfloat16", None, "int4-gptq", GROUPS),  # alibi, the same for all samples
    ("mpt", MPT, "bfloat16", None, "int8", ()),
    ("gptj", GPTJ, "bfloat16", None, "int4-gptq", GROUPS),
    ("gpt_neox", UNTIED, "bfloat16", None, "int4-gptq", GROUPS),
    ("opt", OPT, "bfloat16", None, "int4-gptq", GROUPS),  # learned positions
    ("opt", {**OPT, "max_position_embeddings": 32}, "float32", None, "int8", ()),  # fewer than tokens asked for
    ("stablelm", UNTIED, "bfloat16", None, "int8", AWQ8),
    ("mixtral", MIXTRAL, "bfloat16", "100KB", "fp8", EVERY_LAYER),
    ("mixtral", {**MIXTRAL, "intermediate_size": 64}, "bfloat16", None, "int8", AWQ8),
    ("qwen3_moe", EXPERTS, "bfloat16", None, "fp8-static", EVERY_LAYER),
    ("qwen3_moe", EXPERTS, "float32", None, "int4-gptq", ()),
]


@pytest.mark.parametrize(
    ("kind", "settings", "dtype", "shards", "name", "overrides"),
    FAMILIES,
    ids=[f"{row[0]}-{row[2]}-{row[4]}{'-awq8' if row[5] == AWQ8 else ''}" for row in FAMILIES],
)
def test_from_checkpoint_to_logits(
    make: Make,
    text: tuple[str, ...],
    kind: str,
    settings: dict[str, Any],
    dtype: str,
    shards: str | None,
    name: str,
    overrides: tuple[str, ...],
) -> None:
    source = make(kind, dtype, shards, **settings)
    plan = plan_checkpoint(recipe_for(name, text, overrides), source)
    artifact = quantize(plan)
    assert (len(plan.checkpoint.weight_files) > 1) == bool(shards)
    done = verify(artifact)
    assert (done.quantized, done.dropped) == (len(plan.quantized), ())
    assert done.quantized + done.kept == len(plan.checkpoint.tensors)
    sqnr, allowed = EXPECTED[name]
    assert min(layer.sqnr for layer in done.layers) > sqnr
    assert distance(source, artifact.checkpoint) < allowed


@pytest.mark.parametrize(
    ("kind", "settings", "name", "told"),
    [
        (
            "falcon",
            FALCON,
            "int4-gptq",
            r"^recipe int4-gptq: transformers cannot load what it makes of .*\n    it could load what fp8 makes",
        ),
        ("falcon", FALCON, "nvfp4", "^recipe nvfp4: transformers cannot load what it makes of"),
        (
            "bloom",
            BLOOM,
            "fp8-kv",
            "^recipe fp8-kv: transformers cannot load .* transformer.h.0.self_attention.k_scale\n    it could",
        ),
        (
            "codegen",
            {**GPTJ, "head_dim": None},
            "fp8-kv",
            "^recipe fp8-kv: transformers cannot load .* transformer.h.0.attn.k_scale",
        ),
    ],
)
def test_what_transformers_cannot_do_with_a_family_is_refused(
    make: Make, text: tuple[str, ...], kind: str, settings: dict[str, Any], name: str, told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        plan_checkpoint(recipe_for(name, text, GROUPS if name == "int4-gptq" else ()), make(kind, **settings))


def test_arguments_of_layers_are_those_of_the_batch(make: Make, text: tuple[str, ...]) -> None:
    """Batches of several lengths and sizes, of a model whose layers get a row for each head of each sample."""
    source = make("bloom", "float32", **BLOOM)
    with torch.inference_mode():
        model = load_for_calibration(plan_checkpoint(recipe_for("int8", text), source)).model
        batches = [torch.randint(2, 258, shape) for shape in ((5, 24), (2, 24), (1, 24), (4, 7))]
        stream = Stream(model, list(model.transformer.h), batches, torch.device("cpu"))
        for number in range(len(model.transformer.h)):
            stream.advance(number)
        for batch, hidden in zip(batches, stream.hidden, strict=True):
            expected = model(batch, output_hidden_states=True, use_cache=False).logits
            found = model.lm_head(model.transformer.ln_f(hidden))
            assert torch.allclose(found, expected, atol=1e-5)


def linear_experts(plan: CheckpointPlan) -> set[str]:
    return {name for name in plan.quantized if ".experts." in name}


@pytest.mark.parametrize(
    ("kind", "settings", "inside", "router"),
    [
        ("mixtral", MIXTRAL, "block_sparse_moe.experts.{}.{}", "block_sparse_moe.gate"),
        ("qwen3_moe", EXPERTS, "mlp.experts.{}.{}", "mlp.gate"),
    ],
)
def test_every_expert_is_quantized_and_measured(
    make: Make, text: tuple[str, ...], kind: str, settings: dict[str, Any], inside: str, router: str
) -> None:
    """Sixteen experts for eight tokens, one each: most are never chosen, and all have seen every token."""
    count = {"num_experts": 16, "num_local_experts": 16, "num_experts_per_tok": 1}
    source = make(kind, **{**settings, **count})
    gate, down, up = ("w1", "w2", "w3") if kind == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    few = (*EVERY_LAYER, *text, "calibrate.samples=1", "calibrate.seq_len=8")
    plan = plan_checkpoint(load_recipe("fp8-static", few), source)
    expected = {
        f"model.layers.{layer}.{inside.format(expert, projection)}"
        for layer in range(3)
        for expert in range(16)
        for projection in (gate, down, up)
    }
    assert linear_experts(plan) == expected
    assert {m.name: m.reason for m in plan.modules}[f"model.layers.0.{router}"] == "routes tokens to experts"
    artifact = quantize(plan)
    assert verify(artifact).quantized == 3 * (3 * 16 + 4)
    weights, stored = tensors(source), tensors(artifact.checkpoint)
    assert torch.equal(stored[f"model.layers.0.{router}.weight"], weights[f"model.layers.0.{router}.weight"])
    x = first_experts_input(source, artifact)
    for expert in range(16):
        name = f"model.layers.0.{inside.format(expert, '{}')}"
        gated = torch.nn.functional.silu(x @ weights[f"{name.format(gate)}.weight"].T)
        between = gated * (x @ weights[f"{name.format(up)}.weight"].T)
        for projection, read in ((gate, x), (up, x), (down, between)):
            scale = stored[f"{name.format(projection)}.input_scale"].float()
            assert torch.allclose(scale, read.abs().max().float() / 448, rtol=0.02)


def first_experts_input(source: Path, artifact: Artifact) -> torch.Tensor:
    """What the experts of the first layer read in calibration, (tokens, features)."""
    from pipelines.calibration.tokens import read_tokens

    assert artifact.calibration
    seen: list[torch.Tensor] = []
    model = load_for_inference(source, "cpu")
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        model(torch.tensor(read_tokens(artifact.calibration)))
    return seen[0].flatten(0, 1)


@pytest.mark.parametrize(
    ("name", "overrides", "sqnr", "allowed"),
    [
        ("int4-awq", ("quantize.scheme=W4A16",), 13, 0.6),
        ("mxfp4", (), 13, 0.7),
        ("fp8-kv", (), 28, 0.2),
        ("int4-gptq", ("quantize.rules=[{match: ['re:.*self_attn'], scheme: W8A16}]",), 13, 0.6),
    ],
)
def test_experts_in_formats_that_transformers_reads(
    make: Make, text: tuple[str, ...], name: str, overrides: tuple[str, ...], sqnr: float, allowed: float
) -> None:
    source = make("qwen3_moe", **EXPERTS)
    artifact = quantize(plan_checkpoint(recipe_for(name, text, (*EVERY_LAYER, *overrides)), source))
    done = verify(artifact)
    assert linear_experts(artifact.plan) < {layer.module for layer in done.layers}
    assert min(layer.sqnr for layer in done.layers) > sqnr
    assert distance(source, artifact.checkpoint) < allowed


def test_inputs_of_experts_are_rounded(make: Make, text: tuple[str, ...]) -> None:
    """One token, one layer that counts: what an expert makes of it is what its rounded weights make of it rounded."""
    from pipelines.formats.fp8 import round_tokens

    source = make("qwen3_moe", **EXPERTS)
    artifact = quantize(plan_checkpoint(recipe_for("fp8", text, EVERY_LAYER), source))
    model = load_for_inference(artifact.checkpoint, "cpu")
    found = [m for name, m in model.named_modules() if ".experts." in name and isinstance(m, torch.nn.Linear)]
    assert len(found) == len(linear_experts(artifact.plan))
    x = torch.randn(3, found[0].in_features, dtype=torch.bfloat16)
    assert torch.equal(found[0](x), torch.nn.functional.linear(round_tokens(x), found[0].weight))
    assert not torch.equal(found[0](x), torch.nn.functional.linear(x, found[0].weight))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 that sees: vision tower, projector, language model."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={**COMMON, **GEMMA, "sliding_window_pattern": 2},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    enliven(model)
    folder = tmp_path_factory.mktemp("multimodal")
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", ["int8", "fp8", "int4-gptq", "fp8-kv"])
def test_what_sees_is_kept_and_what_reads_is_quantized(gemma3: Path, text: tuple[str, ...], name: str) -> None:
    """Towers stay as they are, byte for byte, under the hub's names, which are not those of the model in memory."""
    plan = plan_checkpoint(recipe_for(name, text), gemma3)
    assert all(name.startswith("language_model.model.layers.") for name in plan.quantized)
    beside = [module for module in plan.modules if module.name.startswith("vision_tower.")]
    assert len(beside) == 3 * 6 + 3 and not any(module.quantized for module in beside)
    artifact = quantize(plan)
    weights, stored = tensors(gemma3), tensors(artifact.checkpoint)
    towers = {tensor for tensor in weights if tensor.startswith(("vision_tower.", "multi_modal_projector."))}
    assert all(torch.equal(weights[tensor], stored[tensor]) for tensor in towers)
    done = verify(artifact)
    assert (done.quantized, done.kept) == (len(plan.quantized), len(weights) - len(plan.quantized))
    sqnr, allowed = EXPECTED[name]
    assert min(layer.sqnr for layer in done.layers) > sqnr
    assert distance(gemma3, artifact.checkpoint) < allowed
