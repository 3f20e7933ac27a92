"""What a plan knows of a model before any weight is read: what transformers makes of its config and its headers, and of
the artifact that is to be made."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from docs.models import build, write_tokenizer
from pipelines.checkpoint.headers import read_checkpoint
from pipelines.core.errors import BadInput
from pipelines.planning.anatomy import examine
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from pipelines.runtimes.distance import measure_distance, write_logprobs
from pipelines.runtimes.generation import generate
from pipelines.runtimes.loading import load_for_inference
from pipelines.verification.stage import verify
from tests.conftest import Cli, edit_json
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.families import EXPERTS, UNTIED, Make, make, text
from tests.helpers.plans import plan_checkpoint

assert all((make, text))  # fixtures
HEAD = "quantize.ignore=[lm_head]"
Weights = dict[str, torch.Tensor]


def changed(source: Path, folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(source, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def told(recipe: str, model: Path, *overrides: str) -> str:
    with pytest.raises(BadInput) as caught:
        plan_checkpoint(load_recipe(recipe, overrides), model)
    return str(caught.value)


def plan_of(recipe: str, model: Path, *overrides: str) -> CheckpointPlan:
    return plan_checkpoint(load_recipe(recipe, overrides), model)


def stock_distance(source: Path, artifact: Path) -> float:
    """How far plain transformers' logits of an artifact are from those of its source, relative to their size."""
    ids = torch.randint(2, 250, (1, 48), generator=torch.Generator().manual_seed(1))
    found = []
    for folder in (source, artifact):
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.inference_mode():
            found.append(model.eval()(ids).logits.float())
    return float((found[1] - found[0]).norm() / found[0].norm())


# Names


@pytest.mark.parametrize("recipe", ["fp8", "int4-int8-mixed"])
def test_names_may_lack_the_prefix_of_their_model(
    make: Make, text: tuple[str, ...], tmp_path: Path, recipe: str
) -> None:
    """As Qwen3-Embedding's do: an artifact keeps them, and its config names modules as the model has them."""
    bare = changed(make("llama"), tmp_path / "bare", lambda w: {k.removeprefix("model."): v for k, v in w.items()})
    plan = plan_of(recipe, bare, *(text if recipe != "fp8" else ()))
    assert {m.name: m.address for m in plan.modules}["layers.1.mlp.up_proj"] == "model.layers.1.mlp.up_proj"
    artifact = quantize(plan)
    verify(artifact)
    described = artifact.written.quantization_config
    targets = [name for group in described["config_groups"].values() for name in group["targets"]]
    named = {*described["ignore"], *targets}
    assert all(f"model.{name}" in named for name in named if name.startswith("layers."))
    assert stock_distance(bare, artifact.checkpoint) < (0.1 if recipe == "fp8" else 0.5)


def test_a_model_that_sees_images_is_loaded_by_its_own_class(tmp_path: Path) -> None:
    """transformers has no causal language model for it, and one that takes images, too: its tower is kept."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    sizes = {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "rope_parameters": rope,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = Qwen2_5_VLConfig(text_config=sizes, vision_config={**vision, "fullatt_block_indexes": [0]})
    Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(tmp_path / "vl")
    write_tokenizer(tmp_path / "vl")
    plan = plan_of("fp8", tmp_path / "vl", HEAD)
    assert plan.family == "AutoModelForImageTextToText"
    assert all("visual" not in name for name in plan.quantized) and len(plan.quantized) == 21
    assert verify(quantize(plan)).quantized == 21


# Tensors


def test_a_missing_head_is_not_made_up(make: Make, tmp_path: Path) -> None:
    def headless(weights: Weights) -> Weights:
        return {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}

    model = changed(make("llama", **UNTIED), tmp_path / "headless", headless)
    said = told("int8-weight-only", model)
    assert "lacks lm_head.weight of a LlamaForCausalLM, which would be made up at random" in said
    edit_json(model / "config.json", tie_word_embeddings=True)  # as the remedy says
    plan_of("int8-weight-only", model)


def test_a_head_may_be_the_embedding_by_default(make: Make, tmp_path: Path) -> None:
    """Gemma's config need not say so."""
    model = Path(shutil.copytree(make("gemma2", sliding_window=32, query_pre_attn_scalar=16), tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    del config["tie_word_embeddings"]
    (model / "config.json").write_text(json.dumps(config))
    assert examine(read_checkpoint(model)).head_is_embedding
    plan_of("fp8", model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: {**w, "model.layers.1.mlp.extra_proj.weight": torch.ones(2, 2)},
            "holds model.layers.1.mlp.extra_proj.weight that a LlamaForCausalLM does not read",
        ),
        (
            lambda w: {**w, "model.norm.weight": torch.ones(65)},
            "tensor model.norm.weight is [65], and [64] in a LlamaForCausalLM of its config",
        ),
        (
            lambda w: {k: v for k, v in w.items() if ".1.mlp." not in k},
            "lacks 3 tensors, like model.layers.1.mlp.down_proj.weight, of a LlamaForCausalLM",
        ),
    ],
    ids=["too many", "too large", "too few"],
)
def test_tensors_are_those_of_the_model(
    make: Make, tmp_path: Path, change: Callable[[Weights], Weights], says: str
) -> None:
    assert says in told("fp8", changed(make("llama"), tmp_path / "model", change))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool])
@pytest.mark.parametrize(
    ("ending", "named"), [("model.norm.weight", "model.norm.weight"), ("norm.weight", "7 tensors, like {first},")]
)
def test_norms_of_whole_numbers_are_refused(
    make: Make, tmp_path: Path, dtype: torch.dtype, ending: str, named: str
) -> None:
    names: list[str] = []

    def whole(weights: Weights) -> Weights:
        names.extend(sorted(name for name in weights if name.endswith(ending)))
        return {name: weight.to(dtype) if name in names else weight for name, weight in weights.items()}

    model = changed(make("llama"), tmp_path / "whole", whole)
    stored = read_checkpoint(model)
    first = next(tensor for tensor in stored.tensors if tensor.name == names[0])
    what = f"holds {named.format(first=names[0])} as {first.dtype}, and a LlamaForCausalLM computes with floating-point"
    said = told("fp8", model, HEAD)
    assert said == f"{model}: {what} numbers there\n    give a checkpoint in BF16, F16 or F32"


def test_norms_of_another_dtype_stay_what_they_are(make: Make, text: tuple[str, ...], tmp_path: Path) -> None:
    mixed = changed(
        make("llama"), tmp_path / "mixed", lambda w: {k: v.float() if "norm" in k else v for k, v in w.items()}
    )
    artifact = quantize(plan_of("int4-awq", mixed, *text))
    verify(artifact)
    stored = load_file(artifact.checkpoint / "model.safetensors")
    assert {stored[name].dtype for name in stored if "norm" in name} == {torch.float32}


# Modules


@pytest.mark.parametrize(
    ("kind", "settings", "read"),
    [
        ("mamba", {"state_size": 8}, ("mixer.dt_proj", "mixer.out_proj")),
        ("gpt_bigcode", {"n_embd": 64, "n_layer": 3, "n_head": 4}, ("attn.c_proj", "mlp.c_proj")),
    ],
)
def test_weights_that_a_model_reads_itself_stay_as_they_are(
    make: Make, kind: str, settings: dict[str, Any], read: tuple[str, ...]
) -> None:
    """In its forward pass, or where it initializes what a loader does not find."""
    source = make(kind, **settings)
    plan = plan_of("int8-weight-only", source, HEAD)
    kept = {module.name: module.reason for module in plan.modules if not module.quantized}
    assert all(reason == "its model reads the weight itself" for name, reason in kept.items() if name != "lm_head")
    assert all(any(name.endswith(end) for name in kept) for end in read) and plan.quantized
    artifact = quantize(plan)
    verify(artifact)
    assert stock_distance(source, artifact.checkpoint) < 0.1


# Artifacts that no reader could load


def test_a_mixture_that_transformers_rebuilds_when_it_is_quantized_is_refused(make: Make) -> None:
    """Of Llama 4 it makes one linear module for each matrix of an expert then, and finds no tensors for them."""
    source = make("llama4_text", **EXPERTS, intermediate_size_mlp=128, interleave_moe_layer_step=1, num_local_experts=4)
    said = told("fp8", source, HEAD)
    assert "recipe fp8: transformers cannot load what it makes of" in said and "like model.layers.0" in said
    assert "no recipe here does better" in said


@pytest.mark.parametrize("recipe", ["int8", "nvfp4-weight-only", "int4-gptq"])
def test_a_mixture_is_refused_where_transformers_would_misread_it(
    make: Make, text: tuple[str, ...], recipe: str
) -> None:
    """It has no code for experts in 8-bit integers with rounded inputs, nor for scales of whole tensors, nor for some
    layers' experts that are quantized and others that are not."""
    source = make("qwen3_moe", **EXPERTS)
    keep_last = ("quantize.ignore=[lm_head, 'layer:-1']",) if recipe == "int4-gptq" else ()
    said = told(recipe, source, *keep_last, *(text if recipe.startswith("int") else ()))
    assert f"recipe {recipe}: transformers does not read experts " in said and said.endswith("recipe fp8 can")


# What a class does with a text


@pytest.mark.parametrize(
    ("kind", "recipe", "says"),
    [
        ("xlnet", "fp8", "cannot compute with the model in bfloat16: transformer.layer.0.rel_attn multiplies bfloat16"),
        ("xlstm", "fp8", "in bfloat16: backbone.blocks.0.mlstm_layer.mlstm_backend multiplies bfloat16 by float32"),
        ("reformer", "fp8", "in bfloat16: reformer.encoder.layers.0.attention.layer_norm scales float32 by bfloat16"),
        ("ctrl", "fp8", "the model replaces transformer.pos_encoding by one in bfloat16 while it computes"),
        ("longcat_flash", "fp8", "and model.layers.1.mlp.experts cannot be taken apart into such"),
        ("hy_v4", "fp8", "compute with weights of two types, because it widens model.layers.1.self_attn.q_a_proj.we"),
        ("hy_v4", "int4-gptq", "and those of a HYV4ForCausalLM read more of a text than hidden states"),
        ("zamba2", "int4-gptq", "and those of a Zamba2ForCausalLM read more of a text than hidden states"),
        ("gemma4_text", "int4-gptq", "and those of a Gemma4ForCausalLM read more of a text than hidden states"),
        ("cpmant", "int4-gptq", "and those of a CpmAntForCausalLM get no hidden state for each token"),
    ],
)
def test_a_model_that_would_fail_later_is_refused(
    text: tuple[str, ...], tmp_path: Path, kind: str, recipe: str, says: str
) -> None:
    build(kind, tmp_path / kind)
    overrides = (*text, "quantize.on_indivisible=skip") if recipe == "int4-gptq" else ()
    assert says in told(recipe, tmp_path / kind, *overrides)


def test_experts_that_cannot_be_taken_apart_are_kept_as_advised(tmp_path: Path) -> None:
    build("longcat_flash", tmp_path / "model")
    way = r'quantize.ignore=["lm_head", "layer:0", "layer:-1", "re:.*\\.experts\\."]'
    assert f"use --set '{way}'" in told("fp8", tmp_path / "model")
    artifact = quantize(plan_of("fp8", tmp_path / "model", way))
    verify(artifact, "cpu")


def test_what_a_class_says_of_any_text_is_told(tmp_path: Path) -> None:
    build("xmod", tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", default_language=None)
    said = "transformers cannot compute with the model that it makes: Input language unknown"
    assert said in told("fp8", tmp_path / "model")


def test_a_type_that_no_model_computes_in_is_refused(tmp_path: Path) -> None:
    build("llama", tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", dtype="float64")
    assert '"dtype" is float64, which no model here computes in' in told("fp8", tmp_path / "model")


@pytest.mark.parametrize("kind", ["ctrl", "reformer", "xlnet"])
def test_a_model_that_computes_in_float32_only_says_so(tmp_path: Path, kind: str) -> None:
    build(kind, tmp_path / kind)
    assert 'set "dtype": "float32" in it' in told("fp8", tmp_path / kind)
    edit_json(tmp_path / kind / "config.json", dtype="float32")  # as the remedy says
    plan_of("fp8", tmp_path / kind)


@pytest.mark.parametrize("shared", [0, 1])
def test_layers_that_read_keys_of_others_are_not_calibrated_one_by_one(
    text: tuple[str, ...], tmp_path: Path, shared: int
) -> None:
    """Their module lends all layers the same dict, whether or not one reads it."""
    build("gemma4_unified_text", tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", num_kv_shared_layers=shared)
    overrides = (*text, "quantize.on_indivisible=skip")
    if shared:
        assert "read more of a text than hidden states" in told("int4-gptq", tmp_path / "model", *overrides)
    else:
        plan_of("int4-gptq", tmp_path / "model", *overrides)


def test_a_model_may_give_logits_of_all_tokens(tmp_path: Path) -> None:
    """As TrOCR's decoder does, whatever it is asked for."""
    build("trocr", tmp_path / "model")
    model, text = load_for_inference(tmp_path / "model", "cpu"), [[*range(2, 34)]] * 2
    write_logprobs(model, text, tmp_path / "logprobs")
    found = measure_distance(model, text, tmp_path / "logprobs")
    assert found.tokens == 30 and found.same_top > 0.9


def test_a_model_whose_cache_fails_writes_without(tmp_path: Path) -> None:
    """A tiny Jamba has no layer of attention, and asks its cache for the length of such a one."""
    build("jamba", tmp_path / "model")
    model, ids = load_for_inference(tmp_path / "model", "cpu"), torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    assert generate(model, ids, torch.ones_like(ids), **settings).shape == (1, 5)


# Configs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "wav2vec2"}, "is of model type wav2vec2, of which transformers has no language model"),
        ({"model_type": "nobody"}, "transformers makes no config of it"),
        ({"hidden_size": "64"}, "transformers makes no config of it"),
        ({"num_hidden_layers": 1_000_000_000}, "says num_hidden_layers 1000000000, and its weights have 29 tensors"),
        ({"num_attention_heads": 0}, "transformers "),
        ({"hidden_act": "nobody"}, "transformers cannot make a LlamaForCausalLM of it"),
    ],
)
def test_a_config_that_makes_no_model_is_told_before_the_work(
    make: Make, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    model = Path(shutil.copytree(make("llama"), tmp_path / "model"))
    edit_json(model / "config.json", **change)
    said = told("fp8", model)
    assert said.startswith(f"{model / 'config.json'}: ") and says in said


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_package_that_a_model_needs_is_named(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 2, "num_kv_shared_layers": 0}
    folder = write_checkpoint(tmp_path / "model", model_type="gemma3n", text_config=layers)
    with pytest.raises(BadInput) as caught:
        examine(read_checkpoint(folder))
    (problem,) = caught.value.problems
    assert problem.where == str(folder / "config.json")
    assert "TimmWrapperModel requires the timm library" in problem.what
    assert problem.remedy == "pip install timm, where quantgate is installed"


def test_what_was_found_is_kept_for_the_next_plan(make: Make, cli: Cli) -> None:
    model = make("llama")
    first, second = examine(read_checkpoint(model)), examine(read_checkpoint(model))
    assert second.reused and second.places == first.places
    assert cli("plan", "fp8", "--model", model).stderr == f"planning {model} with fp8\n", "no bars of libraries"
