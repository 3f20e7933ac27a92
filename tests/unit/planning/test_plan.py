"""What the plan decides from headers alone: every module, every byte, every need; and that torch stays out of it."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.checkpoint.headers import BYTES, Checkpoint, read_checkpoint
from pipelines.checkpoint.tokenizer import check_templates
from pipelines.core.cache import digest
from pipelines.core.errors import BadInput
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName
from pipelines.planning.needs import disk_lacks
from pipelines.planning.plan import CheckpointPlan, Need
from pipelines.planning.stage import make_plan
from pipelines.recipe.load import load_recipe
from pipelines.recipe.methods import Gptq, OnIndivisible, Quantize, Rtn, Rule
from pipelines.recipe.recipe import Calibrate, Recipe
from tests.conftest import PLAIN, Cli
from tests.helpers.checkpoints import (
    EVEN,
    ODD,
    Tensors,
    bf16,
    experts_of,
    fake,
    sparse_checkpoint,
)
from tests.helpers.paths import ROOT
from tests.helpers.plans import plan_checkpoint

pytestmark = pytest.mark.usefixtures("fakes")
LAYERS, HIDDEN, WIDE, KEYS, VOCABULARY = 30, 576, 1536, 192, 49152
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
"""Of SmolLM2-135M's linear modules, from its published config."""
LINEAR_WEIGHTS = LAYERS * sum(rows * columns for rows, columns in SHAPES.values())
ROWS = LAYERS * sum(rows for rows, _ in SHAPES.values())
OTHER_WEIGHTS = VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
PARAMETERS = LINEAR_WEIGHTS + OTHER_WEIGHTS
FP8 = Rtn(method="rtn", scheme="FP8_DYNAMIC")


def recipe(quantize: Quantize, samples: int = 8) -> Recipe:
    needed = quantize.method != "rtn" or quantize.measures_activations
    calibrate = Calibrate(set="self", samples=samples, seq_len=64) if needed else None
    return Recipe(version=1, name="mine", summary="", quantize=quantize, calibrate=calibrate)


def w4a16(group_size: int, on_indivisible: OnIndivisible = "error") -> Gptq:
    return Gptq(method="gptq", scheme="W4A16", group_size=group_size, on_indivisible=on_indivisible)


def told(quantize: Quantize, model: Checkpoint) -> list[str]:
    with pytest.raises(BadInput) as caught:
        plan_checkpoint(recipe(quantize), model)
    return [str(problem) for problem in caught.value.problems]


def decisions(plan: CheckpointPlan) -> dict[str, str]:
    """What becomes of each module: its scheme, or why it is kept."""
    return {module.name: module.scheme or module.reason for module in plan.modules}


def test_smollm2_has_210_linear_modules_and_keeps_its_embedding(smollm2: Checkpoint) -> None:
    plan = plan_checkpoint(recipe(FP8), smollm2)
    names = {f"model.layers.{layer}.{module}": shape for layer in range(LAYERS) for module, shape in SHAPES.items()}
    assert len(names) == 210
    assert {name: module.shape for name, module in plan.quantized.items()} == names
    assert plan.modules == tuple(plan.quantized.values())
    assert "model.embed_tokens" not in plan.quantized


@pytest.mark.parametrize(
    ("quantize", "bytes_of_linear"),
    [
        (FP8, LINEAR_WEIGHTS + 2 * ROWS),
        (Gptq(method="gptq", scheme="FP8_DYNAMIC"), LINEAR_WEIGHTS + 2 * ROWS),
        (Gptq(method="gptq", scheme="W8A8", smoothquant=0.8), LINEAR_WEIGHTS + 2 * ROWS),
        (w4a16(64), LINEAR_WEIGHTS // 2 + 2 * LINEAR_WEIGHTS // 64 + 210 * 2 * 8),  # and two int64: the shape
        (w4a16(32), LINEAR_WEIGHTS // 2 + 2 * LINEAR_WEIGHTS // 32 + 210 * 2 * 8),
    ],
    ids=["fp8", "fp8 by gptq", "w8a8", "w4a16 in groups of 64", "w4a16 in groups of 32"],
)
def test_the_size_of_the_artifact_is_exact_arithmetic(
    smollm2: Checkpoint, quantize: Quantize, bytes_of_linear: int
) -> None:
    plan = plan_checkpoint(recipe(quantize), smollm2)
    assert plan.bytes_before == 2 * PARAMETERS == 269_030_016
    assert plan.bytes_after == bytes_of_linear + 2 * OTHER_WEIGHTS


def test_the_plan_of_each_recipe_is_as_large_as_docs_results_says(smollm2: Checkpoint) -> None:
    """These sizes were read off artifacts."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\|(?:[^|]* \|)? ([\d.]+) MB \| ([\d.]+) \|", page, re.MULTILINE)
    sizes = {name: (size, bits) for name, size, bits in rows if load_recipe(name).engine != "auto-gptq"}
    assert len(sizes) > 25
    for name, published in sizes.items():
        plan = make_plan(name, smollm2)
        assert (f"{plan.bytes_after / 1e6:.1f}", f"{plan.bits_per_weight:.2f}") == published, name


@pytest.mark.parametrize(("dtype", "size"), [("F32", 4), ("BF16", 2), ("F16", 2)])
def test_scales_have_the_dtype_of_the_source(tmp_path: Path, dtype: str, size: int) -> None:
    model = fake(tmp_path, {"model.layers.0.mlp.up_proj.weight": (dtype, (48, 32))})
    (module,) = plan_checkpoint(recipe(FP8), model).modules
    assert (module.dtype, module.bytes_before, module.bytes_after) == (dtype, 48 * 32 * size, 48 * 32 + 48 * size)


def rtn(name: SchemeName, group_size: int | None = None, on_indivisible: OnIndivisible = "error") -> Rtn:
    return Rtn(method="rtn", scheme=name, group_size=group_size, on_indivisible=on_indivisible)


@pytest.mark.parametrize("name", OWN_SCHEMES)
@pytest.mark.parametrize(
    ("kinds", "group_size", "shape", "odd", "shrunk"),
    [  # with this group size, a weight of this shape: the width that is not divided, and what it shrinks to
        ("group block", 128, (256, 512), None, None),
        ("group", 128, (7, 512), None, None),
        ("group block", 128, (256, 576), 576, 64),
        ("group block", 64, (64, 48), 48, 16),
        ("group block", 96, (96, 160), 160, 32),
        ("group block", 128, (128, 24), 24, None),
        ("block", 128, (192, 512), 192, 64),
        ("block", 128, (192, 528), 192, 16),
        ("block", 128, (200, 512), 200, None),
        ("fixed16", 16, (7, 48), None, None),
        ("fixed16", 16, (16, 40), 40, None),
        ("fixed32", 32, (7, 96), None, None),
        ("fixed32", 32, (32, 48), 48, None),
        ("channel", None, (7, 13), None, None),
    ],
)
def test_scheme_and_width_come_to_a_group_size_or_to_none(
    tmp_path: Path, name: SchemeName, kinds: str, group_size: int | None, shape: tuple[int, int],
    odd: int | None, shrunk: int | None,
) -> None:  # fmt: skip
    known = SCHEMES[name]
    own = known.weights.group_size
    if (known.weights.strategy if known.resizable else f"fixed{own}" if own else "channel") not in kinds.split():
        return
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", shape), **EVEN})

    def decided(action: OnIndivisible) -> tuple[str | None, int | None, str]:
        plan = plan_checkpoint(recipe(rtn(name, group_size if known.resizable else None, action)), model)
        module = next(module for module in plan.modules if module.name == ODD)
        return module.scheme, module.group_size, module.reason

    if odd is None:
        assert {decided(action) for action in get_args(OnIndivisible)} == {(name, group_size, "")}
        return
    kept = (None, None, f"group size {group_size} does not divide {odd}")
    assert decided("skip") == kept
    if shrunk:
        assert decided("shrink") == (name, shrunk, f"group size {shrunk}: {group_size} does not divide {odd}")
    else:
        assert decided("shrink") == kept
    with pytest.raises(BadInput, match=rf"^recipe mine: group size {group_size} does not divide the width {odd} of "):
        decided("error")


def test_a_group_size_that_does_not_divide_is_refused_with_one_that_does(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 576)), "b.weight": ("BF16", (32, 80)), **EVEN})
    quantize = rtn("W4A16", 128)
    remedy = (
        "    use --set quantize.group_size=16, or --set quantize.on_indivisible=shrink, "
        "or --set quantize.on_indivisible=skip"
    )
    assert told(quantize, model) == [
        f"recipe mine: group size 128 does not divide the width 80 of b\n{remedy}",
        f"recipe mine: group size 128 does not divide the width 576 of {ODD}\n{remedy}",
    ]


def test_the_group_size_that_is_proposed_works(smollm2: Checkpoint) -> None:
    assert all("use --set quantize.group_size=64, or" in problem for problem in told(w4a16(128), smollm2))
    assert len(plan_checkpoint(recipe(w4a16(64)), smollm2).quantized) == 210


def test_modules_of_one_width_are_one_problem(smollm2: Checkpoint) -> None:
    (problem,) = told(w4a16(128), smollm2)
    assert "576" in problem
    assert "180 modules" in problem


def test_on_indivisible_skip_keeps_those_modules_and_says_so(smollm2: Checkpoint) -> None:
    plan = plan_checkpoint(recipe(w4a16(128, "skip")), smollm2)
    assert Counter((module.quantized, module.group_size, module.reason) for module in plan.modules) == {
        (True, 128, ""): 30,
        (False, None, "group size 128 does not divide 576"): 180,
    }
    assert all(module.shape == (HIDDEN, WIDE) for module in plan.quantized.values())
    assert all(module.bytes_after == module.bytes_before for module in plan.modules if not module.quantized)


def test_on_indivisible_shrink_takes_the_largest_power_of_two_and_says_so(smollm2: Checkpoint) -> None:
    plan = plan_checkpoint(recipe(w4a16(128, "shrink")), smollm2)
    assert Counter((module.quantized, module.group_size, module.reason) for module in plan.modules) == {
        (True, 128, ""): 30,
        (True, 64, "group size 64: 128 does not divide 576"): 180,
    }
    wide = LAYERS * HIDDEN * WIDE
    scales = 2 * (wide // 128 + (LINEAR_WEIGHTS - wide) // 64)
    assert plan.bytes_after == LINEAR_WEIGHTS // 2 + scales + 210 * 16 + 2 * OTHER_WEIGHTS


def test_full_names_and_regular_expressions_keep_what_they_match(smollm2: Checkpoint) -> None:
    ignore = ("lm_head", "model.layers.3.self_attn.o_proj", r"re:model\.layers\.(0|29)\.", "re:.*down_proj$")
    quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=ignore)
    plan = plan_checkpoint(recipe(quantize), smollm2)
    kept = {module.name for module in plan.modules if not module.quantized}
    assert kept == {
        f"model.layers.{layer}.{module}"
        for layer in range(LAYERS)
        for module in SHAPES
        if layer in (0, 29) or module == "mlp.down_proj" or (layer, module) == (3, "self_attn.o_proj")
    }
    assert {module.reason for module in plan.modules if not module.quantized} == {"ignored by the recipe"}


def test_a_regular_expression_matches_from_the_start_of_the_name(smollm2: Checkpoint) -> None:
    assert told(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("re:down_proj",)), smollm2) == [
        "recipe mine: ignore pattern 're:down_proj' matches no linear module of SmolLM2-135M-Instruct\n"
        "    it is matched from the start of a name: 're:.*down_proj'"
    ]


def test_every_pattern_that_matches_nothing_is_told(smollm2: Checkpoint) -> None:
    patterns = ("lm_head", "model.layers.30.mlp.up_proj", "re:.*experts.*")
    problems = told(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=patterns), smollm2)
    assert [problem.split("'")[1] for problem in problems] == list(patterns[1:])


def test_a_recipe_that_leaves_nothing_to_quantize_is_refused(smollm2: Checkpoint) -> None:
    assert told(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("re:.*",)), smollm2) == [
        f"{smollm2.folder}: has no linear module left to quantize\n"
        """    use --set 'quantize.ignore=["lm_head"]'"""
    ]


def test_a_tied_head_can_be_ignored_though_it_has_no_tensor(smollm2: Checkpoint) -> None:
    assert smollm2.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in {tensor.name for tensor in smollm2.tensors}
    plan = plan_checkpoint(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("lm_head",))), smollm2)
    assert "lm_head" not in {module.name for module in plan.modules}
    assert len(plan.quantized) == 210


def test_a_tied_head_is_kept_though_the_checkpoint_holds_a_copy(tmp_path: Path) -> None:
    tensors = bf16((64, 32), "model.embed_tokens.weight", "lm_head.weight", f"{ODD}.weight")
    plan = plan_checkpoint(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=())), fake(tmp_path, tensors))
    assert decisions(plan) == {"lm_head": "is tied to the embedding", ODD: "FP8_DYNAMIC"}


def test_an_untied_head_is_kept_when_ignored_and_quantized_when_not(tmp_path: Path) -> None:
    tensors: Tensors = {"lm_head.weight": ("BF16", (VOCABULARY, 64)), f"{ODD}.weight": ("BF16", (32, 64))}
    model = fake(tmp_path, tensors, tie_word_embeddings=False)
    kept = plan_checkpoint(recipe(FP8), model)
    assert {module.name: module.reason for module in kept.modules if not module.quantized} == {
        "lm_head": "ignored by the recipe"
    }
    taken = plan_checkpoint(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=())), model)
    assert taken.quantized["lm_head"].shape == (VOCABULARY, 64)
    assert kept.bytes_after - taken.bytes_after == VOCABULARY * 64 - 2 * VOCABULARY
    (problem,) = told(Gptq(method="gptq", scheme="W8A8", ignore=()), model)
    assert problem.startswith("recipe mine: lm_head is outside the decoder layers")


def test_routers_are_kept_whatever_the_recipe_says(tmp_path: Path) -> None:
    experts = {f"model.layers.0.mlp.experts.{n}.up_proj.weight": ("BF16", (32, 16)) for n in range(2)}
    routers = (
        "model.layers.0.mlp.gate",
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.0.mlp.router",
        "model.layers.0.feed_forward.router",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.block_sparse_moe.router.layer",
        "model.layers.0.feed_forward.gate",
        "model.layers.0.mlp.gate.wg",
        "model.layers.0.moe.gate",
        "backbone.layers.1.mixer.gate",
    )
    ours: Tensors = {**experts, "model.layers.0.mlp.gate_proj.weight": ("BF16", (32, 16))}
    model = fake(tmp_path, {**ours, **{f"{name}.weight": ("BF16", (2, 16)) for name in routers}})
    plan = plan_checkpoint(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=())), model)
    kept = {module.name: module.reason for module in plan.modules if not module.quantized}
    assert kept == dict.fromkeys(routers, "routes tokens to experts")
    assert set(plan.quantized) == {name.removesuffix(".weight") for name in ours}


def test_only_two_dimensional_weights_of_linear_modules_are_modules(tmp_path: Path) -> None:
    others: Tensors = {
        "model.embed_tokens.weight": ("BF16", (64, 16)),
        "transformer.wte.weight": ("BF16", (64, 16)),
        "transformer.wpe.weight": ("BF16", (64, 16)),
        "model.position_embeddings.weight": ("BF16", (64, 16)),
        "model.norm.weight": ("BF16", (16,)),
        "model.layers.0.input_layernorm.weight": ("BF16", (1, 16)),
        "model.layers.0.mlp.up_proj.bias": ("BF16", (32,)),
        "model.layers.0.mlp.experts.gate_up_proj_bias": ("BF16", (2, 32)),
        "model.conv.weight": ("BF16", (16, 16, 3)),
    }
    model = fake(tmp_path, {**others, "model.layers.0.mlp.up_proj.weight": ("BF16", (32, 16))})
    plan = plan_checkpoint(recipe(FP8), model)
    assert [module.name for module in plan.modules] == ["model.layers.0.mlp.up_proj"]
    assert plan.bytes_after == plan.bytes_before - 2 * 32 * 16 + 32 * 16 + 2 * 32


IMAGE, MTP = "is not part of the language model", "predicts further tokens (MTP)"
EXPERTS, ROUTES = "experts stored as one tensor", "routes tokens to experts"
ATTENTION = [f"self_attn.{which}_proj" for which in "qkvo"]
ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    # a config's number of layers and where it stands; each linear module, and what an FP8 recipe makes of it
    "mixtral": (
        "",
        {
            **{f"model.layers.{n}.{name}": "FP8_DYNAMIC" for n in (0, 1) for name in ATTENTION},
            **{f"model.layers.{n}.block_sparse_moe.gate": ROUTES for n in (0, 1)},
            **{
                f"model.layers.{n}.block_sparse_moe.experts.{expert}.{name}": "FP8_DYNAMIC"
                for n in (0, 1)
                for expert in range(3)
                for name in ("w1", "w2", "w3")
            },
        },
    ),
    "qwen3_moe": (
        "",
        {
            **{f"model.layers.1.{name}": "FP8_DYNAMIC" for name in ATTENTION},
            "model.layers.1.mlp.gate": ROUTES,
            **{
                f"model.layers.1.mlp.experts.{expert}.{name}_proj": "FP8_DYNAMIC"
                for expert in range(3)
                for name in ("gate", "up", "down")
            },
            "model.layers.1.mlp.shared_expert.up_proj": "FP8_DYNAMIC",
            "model.layers.1.mlp.shared_expert_gate": ROUTES,
        },
    ),
    "experts in one tensor": (
        "",
        {
            **{f"model.layers.0.{name}": "FP8_DYNAMIC" for name in ATTENTION},
            "model.layers.0.mlp.router": ROUTES,
            "model.layers.0.mlp.experts.gate_up_proj": EXPERTS,
            "model.layers.0.mlp.experts.down_proj": EXPERTS,
        },
    ),
    "gemma3": (
        "text_config",
        {
            **{f"language_model.model.layers.{n}.{name}": "FP8_DYNAMIC" for n in (0, 1) for name in ATTENTION},
            **{
                f"vision_tower.vision_model.encoder.layers.{n}.{name}": IMAGE
                for n in range(4)
                for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
            },
            "multi_modal_projector.linear_1": IMAGE,
        },
    ),
    "qwen3_vl": (
        "text_config",
        {
            **{f"model.language_model.layers.{n}.{name}": "FP8_DYNAMIC" for n in (0, 1) for name in ATTENTION},
            "model.visual.blocks.3.attn.qkv": IMAGE,
            "model.visual.merger.linear_fc1": IMAGE,
            "model.audio_tower.layers.0.fc1": IMAGE,
        },
    ),
    "deepseek_v3": (
        "",
        {
            "model.layers.1.self_attn.q_b_proj": "FP8_DYNAMIC",
            "model.layers.1.mlp.experts.0.up_proj": "FP8_DYNAMIC",
            "model.layers.2.eh_proj": MTP,
            "model.layers.2.self_attn.q_b_proj": MTP,
            "model.layers.2.mlp.gate": ROUTES,
            "model.layers.2.mlp.experts.0.up_proj": MTP,
        },
    ),
    "qwen3_next": (
        "",
        {
            "model.layers.1.linear_attn.in_proj_qkvz": "FP8_DYNAMIC",
            "mtp.fc": IMAGE,
            "mtp.layers.0.self_attn.q_proj": IMAGE,
        },
    ),
}


def build(folder: Path, name: str) -> Checkpoint:
    where, modules = ARCHITECTURES[name]
    tensors: Tensors = {
        (module if why == EXPERTS else f"{module}.weight"): ("BF16", (3, 64, 32) if why == EXPERTS else (64, 64))
        for module, why in modules.items()
    }
    others: Tensors = {
        "multi_modal_projector.mm_input_projection_weight": ("BF16", (64, 64)),
        "vision_tower.vision_model.embeddings.position_embedding.weight": ("BF16", (64, 64)),
        "vision_tower.vision_model.embeddings.patch_embedding.weight": ("BF16", (64, 3, 4, 4)),
    }
    layers: dict[str, object] = {"num_hidden_layers": 2}
    return fake(folder, {**tensors, **others}, **({where: layers} if where else layers))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_module_of_an_architecture_is_quantized_or_kept_for_a_reason(name: str, tmp_path: Path) -> None:
    model = build(tmp_path, name)
    plan = plan_checkpoint(recipe(FP8), model)
    assert decisions(plan) == ARCHITECTURES[name][1]
    taken = [module for module in plan.modules if module.quantized]
    assert plan.bytes_after == model.weight_bytes - sum(module.bytes_before - module.bytes_after for module in taken)
    assert all(module.bytes_after == module.bytes_before for module in plan.modules if not module.quantized)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "deepseek_v3", "qwen3_next"])
def test_the_last_layer_is_the_last_of_the_language_model(name: str, tmp_path: Path) -> None:
    quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", rules=(Rule(match=("layer:-1",), scheme="W8A16"),))
    plan = plan_checkpoint(recipe(quantize), build(tmp_path, name))
    ruled = {module.name for module in plan.modules if module.scheme == "W8A16"}
    assert ruled == {name for name, why in ARCHITECTURES[name][1].items() if "layers.1." in name and "FP8" in why}


def test_a_module_that_is_not_floating_point_is_kept(tmp_path: Path) -> None:
    tensors: Tensors = {"a.weight": ("I8", (32, 16)), "b.weight": ("BF16", (32, 16))}
    plan = plan_checkpoint(recipe(FP8), fake(tmp_path, tensors))
    assert [(module.name, module.quantized, module.reason) for module in plan.modules] == [
        ("a", False, "is I8"),
        ("b", True, ""),
    ]


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    quantized = {"quant_method": "compressed-tensors"}
    model = fake(tmp_path, {"a.weight": ("BF16", (32, 16))}, quantization_config=quantized)
    (problem,) = told(FP8, model)
    assert "the checkpoint is already quantized (compressed-tensors)" in problem


def test_a_config_with_nulls_can_be_planned(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 64))}, hidden_size=None, num_hidden_layers=None)
    assert len(plan_checkpoint(recipe(w4a16(64)), model).quantized) == 1


def test_what_each_stage_needs_is_listed_against_what_there_is(
    smollm2: Checkpoint, cache: Path, tmp_path: Path
) -> None:
    plan = plan_checkpoint(recipe(FP8), smollm2, tmp_path / "not" / "there" / "yet")
    stages = [(need.stage, need.resource) for need in plan.needs]
    assert stages[:3] == [("quantize", "memory"), ("evaluate", "memory"), ("quantize and publish", "disk")]
    assert all(0 < need.needed < need.available for need in plan.needs)
    on_disk = [need for need in plan.needs if need.resource == "disk"]
    logprobs = 8 * 512 // 2 * 49152 * 2  # of held-out text, two bytes each
    assert sum(need.needed for need in on_disk) == 2 * plan.bytes_after + logprobs  # in the cache, and published
    assert on_disk[0].where == str(cache)
    assert abs(on_disk[0].available - shutil.disk_usage(cache).free) < 10e9


def test_calibration_needs_memory_for_its_text(smollm2: Checkpoint) -> None:
    few, many = (plan_checkpoint(recipe(w4a16(64), samples), smollm2, device="cpu").needs[0] for samples in (8, 16))
    assert many.needed - few.needed == 2 * 8 * 64 * HIDDEN * 4  # a layer's inputs and outputs, in float32


def test_a_model_larger_than_the_machine_is_refused_with_every_lack(tmp_path: Path) -> None:
    model = read_checkpoint(sparse_checkpoint(tmp_path / "giant"))
    assert model.weight_bytes > shutil.disk_usage(tmp_path).free
    problems = told(FP8, model)
    assert any("giant: stage evaluate needs about 4800" in p and "of memory" in p for p in problems)
    assert any("stage quantize and publish needs about 40" in p and "of disk" in p for p in problems)
    assert all(problem.splitlines()[1].startswith("    ") for problem in problems)


@pytest.mark.parametrize("command", ["plan", "quantize", "run"])
def test_a_model_larger_than_the_machine_is_refused_before_anything_is_written(
    cli: Cli, tmp_path: Path, command: str
) -> None:
    model = sparse_checkpoint(tmp_path / "giant")
    own = tmp_path / "cache"
    own.mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = cli(command, "fp8", *PLAIN, "--model", model, QUANTGATE_CACHE=str(own))
    assert (done.returncode, done.stdout) == (2, "")
    planning = "" if command == "quantize" else f"planning {model} with fp8\n"
    assert done.stderr.startswith(f"{planning}error: giant: stage evaluate needs about ")
    assert "stage quantize and publish needs about " in done.stderr
    shutil.rmtree(own / "digests", ignore_errors=True)
    if (own / "stages").exists():  # what is known of the model and, for `run`, of lm-eval's tasks
        assert {path.name for path in (own / "stages").iterdir()} <= {"tasks", "anatomy"}
        shutil.rmtree(own / "stages")
    assert sorted(tmp_path.rglob("*")) == before


def test_several_artifacts_share_the_disk(tmp_path: Path) -> None:
    """Each is a third of what is free, so that two fit and four do not."""
    free = shutil.disk_usage(tmp_path).free
    need = Need(
        stage="quantize and publish",
        resource="disk",
        where="/x",
        needed=free // 3,
        available=free,
        parts={"cache": free // 3},
    )
    memory = Need(stage="quantize", resource="memory", needed=free, available=free)
    plan = plan_checkpoint(
        recipe(FP8), fake(tmp_path, bf16((64, 64), *(f"model.layers.{n}.mlp.down_proj.weight" for n in range(3))))
    )
    plan = plan.model_copy(update={"needs": (memory, need)})
    assert disk_lacks([plan, plan]) == []
    (problem,) = disk_lacks([plan] * 4)
    assert "QUANTGATE_CACHE" in problem.remedy
    assert problem.where == "/x" and problem.what.startswith("stage quantize and publish needs about ")


def test_a_plan_is_a_function_of_recipe_and_checkpoint(smollm2: Checkpoint) -> None:
    def decided() -> dict[str, object]:
        plan = plan_checkpoint(recipe(w4a16(128, "shrink")), read_checkpoint(smollm2.folder))
        return {**plan.model_dump(mode="json", exclude={"needs"}), "needs": [need.needed for need in plan.needs]}

    first, second = decided(), decided()
    assert first == second
    assert digest(first) == digest(second)


def test_the_quantized_modules_are_gathered_once(smollm2: Checkpoint) -> None:
    """They are asked for at every tensor: of a large mixture of experts, tens of thousands of times."""
    plan = plan_checkpoint(recipe(FP8), smollm2)
    assert plan.quantized is plan.quantized


def test_a_plan_survives_json(smollm2: Checkpoint) -> None:
    plan = plan_checkpoint(recipe(w4a16(64)), smollm2)
    assert CheckpointPlan.model_validate_json(plan.model_dump_json()) == plan
    assert CheckpointPlan.model_validate(json.loads(json.dumps(plan.model_dump(mode="json")))) == plan


def test_a_plan_takes_names_as_well(tiny: Path) -> None:
    by_name, by_value = plan_checkpoint("fp8", str(tiny)), plan_checkpoint("fp8", read_checkpoint(tiny))
    assert by_name.modules == by_value.modules
    assert by_name.recipe.name == "fp8"


def test_the_command_prints_the_plan_as_json(cli: Cli, smollm2: Checkpoint) -> None:
    done = cli("plan", "fp8", "--json")
    assert (done.returncode, done.stderr) == (0, "planning the default model with fp8\n")
    printed = json.loads(done.stdout)
    plan = plan_checkpoint("fp8", smollm2)
    assert printed["bytes_before"] == plan.bytes_before
    assert printed["bytes_after"] == plan.bytes_after
    assert printed["bits_per_weight"] == plan.bits_per_weight
    assert {"recipe", "checkpoint", "modules", "needs", "sight"} <= printed.keys()
    again = CheckpointPlan.model_validate({name: printed[name] for name in CheckpointPlan.model_fields})
    assert (again.recipe, again.modules) == (plan.recipe, plan.modules)
    assert again.checkpoint.tensors == smollm2.tensors


def test_the_command_prints_the_plan_for_people(cli: Cli, smollm2: Checkpoint) -> None:
    done = cli("plan", "fp8")
    assert (done.returncode, done.stderr) == (0, "planning the default model with fp8\n")
    assert "fp8 on SmolLM2-135M-Instruct" in done.stdout
    assert all(f"model.layers.*.{name}" in done.stdout for name in SHAPES)
    plan = plan_checkpoint("fp8", smollm2)
    after = f"{plan.bytes_after / 1e6:.1f} MB, bits per weight 16.00 → {plan.bits_per_weight:.2f}"
    assert f"weights: 269.0 MB → {after}" in done.stdout
    assert "of memory" in done.stdout
    assert "of disk" in done.stdout
    assert smollm2.notes[0] in done.stdout


def test_the_command_says_what_the_artifact_will_not_get(cli: Cli, tiny_copy: Path) -> None:
    (tiny_copy / "modeling_mine.py").write_text("x")
    done = cli("plan", "fp8", "--model", tiny_copy)
    assert "not copied into the artifact: modeling_mine.py\n" in done.stdout


def test_planning_again_imports_neither_torch_nor_transformers(tiny: Path) -> None:
    plan_checkpoint("int8", tiny)  # for which transformers is asked about the model
    program = """
import sys
from pipelines import make_plan
make_plan("int8", sys.argv[1])
print(sorted({"torch", "transformers", "lm_eval", "llmcompressor", "datasets"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("down_proj", "W8A16")], {"mlp.down_proj": "W8A16"}),
        ([("re:.*mlp", "W8A8"), ("down_proj", "W8A16")], {"mlp": "W8A8"}),  # the first that matches
        ([("down_proj", "W8A16"), ("re:.*mlp", "W8A8")], {"mlp": "W8A8", "mlp.down_proj": "W8A16"}),
        ([("layer:29", "W8A8"), ("layer:-1", "W8A16")], {"29": "W8A8"}),
        ([("layer:-30", "W8A8")], {"model.layers.0.": "W8A8"}),
        ([("model.layers.3.self_attn.o_proj", "NVFP4A16")], {"model.layers.3.self_attn.o_proj": "NVFP4A16"}),
        ([("re:.*", "MXFP4")], {"": "MXFP4"}),
    ],
)
def test_the_first_rule_that_matches_decides(
    smollm2: Checkpoint, rules: list[tuple[str, SchemeName]], expected: dict[str, str]
) -> None:
    given = tuple(Rule(match=(pattern,), scheme=name) for pattern, name in rules)
    plan = plan_checkpoint(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", rules=given)), smollm2)
    for name, module in plan.quantized.items():
        parts = [known for part, known in expected.items() if part in name]
        assert module.scheme == (parts[-1] if parts else "FP8_DYNAMIC"), name


def test_rules_have_group_sizes_of_their_own_and_ignore_comes_before_them(smollm2: Checkpoint) -> None:
    small = Rule(match=("down_proj",), scheme="W4A16", group_size=32)
    quantize = Rtn(
        method="rtn", scheme="W4A16", group_size=64, rules=(small,), ignore=("lm_head", "model.layers.0.mlp.down_proj")
    )
    found = Counter(
        (m.name.endswith("down_proj"), m.group_size) for m in plan_checkpoint(recipe(quantize), smollm2).modules
    )
    assert found == {(False, 64): 180, (True, 32): 29, (True, None): 1}


def test_a_rule_that_matches_nothing_is_told_with_all_other_problems(smollm2: Checkpoint) -> None:
    rules = tuple(Rule(match=(pattern,), scheme="W8A8") for pattern in ("dwon_proj", "down_proj", "layer:30"))
    problems = told(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("lm_haed",), rules=rules), smollm2)
    assert [problem.partition(" matches no linear module")[0] for problem in problems] == [
        "recipe mine: ignore pattern 'lm_haed'",
        "recipe mine: rule pattern 'dwon_proj'",
        "recipe mine: rule pattern 'layer:30'",
    ]


@pytest.mark.parametrize(
    ("pattern", "scheme", "says"),
    [
        ("k_proj", None, "q_proj, k_proj, v_proj of model.layers.0.self_attn"),
        ("v_proj", "W4A16", "q_proj, k_proj, v_proj of model.layers.0.self_attn"),
        ("model.layers.0.mlp.up_proj", "W8A8", "gate_proj, up_proj of model.layers.0.mlp"),
        ("re:.*experts.0", "W8A8", "all experts of model.layers.0.block_sparse_moe.experts"),
        ("w2", None, "all experts of model.layers.0.block_sparse_moe.experts"),
        ("re:.*experts", "W8A16", ""),
        ("re:.*\\.[qkv]_proj", "W4A16", ""),
        ("re:.*mlp\\.(gate|up)_proj", None, ""),
        ("o_proj", "W8A8", ""),
        ("re:.*mlp\\.down_proj", "W8A8", ""),
    ],
)
def test_what_runtimes_load_as_one_matrix_is_treated_alike(
    pattern: str, scheme: SchemeName | None, says: str, tmp_path: Path
) -> None:
    names = [f"model.layers.0.{name}" for name in (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
    names += [name for which in ("w1", "w2", "w3") for name in experts_of(which, "block_sparse_moe")]
    model = fake(tmp_path, {f"{name}.weight": ("BF16", (128, 128)) for name in names})
    if scheme is None:
        quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=(pattern,))
    else:
        quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", rules=(Rule(match=(pattern,), scheme=scheme),))
    if not says:
        assert any(module.scheme == scheme for module in plan_checkpoint(recipe(quantize), model).modules)
        return
    (problem,) = told(quantize, model)
    assert problem.startswith(f"recipe mine: {says} are not treated alike")
    assert "runtimes load them as one" in problem


def test_what_is_loaded_as_one_is_shrunk_to_one_group_size(tmp_path: Path) -> None:
    """Grouped queries have fewer keys than 128 divides; an expert's last matrix is narrower than its others."""
    attention = {f"model.layers.0.self_attn.{name}_proj.weight": ("BF16", (rows, 256)) for name, rows in
                 (("q", 256), ("k", 64), ("v", 64), ("o", 256))}  # fmt: skip
    experts = {f"{name}.weight": ("BF16", (256, 256)) for name in experts_of("w1", "mlp")}
    experts |= {f"{name}.weight": ("BF16", (256, 96)) for name in experts_of("w2", "mlp")}
    blocks = decided(Rtn(method="rtn", scheme="FP8_BLOCK", on_indivisible="shrink"), fake(tmp_path / "a", attention))
    assert blocks == {"q_proj": 64, "k_proj": 64, "v_proj": 64, "o_proj": 128}
    groups = decided(w4a16(128, "shrink"), fake(tmp_path / "b", experts))
    assert groups == {"w1": 32, "w2": 32}


def decided(quantize: Quantize, model: Checkpoint) -> dict[str, int | None]:
    """The end of each module's name → its group size."""
    return {
        module.name.rpartition(".")[2]: module.group_size for module in plan_checkpoint(recipe(quantize), model).modules
    }


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("chat_template.jinja", "{% for m in messages %}\n{{ m.content }\n{% endfor %}", "chat_template.jinja:2"),
        ("tokenizer_config.json", {"chat_template": "{% if messages %}"}, "tokenizer_config.json"),
        (
            "tokenizer_config.json",
            {
                "chat_template": [
                    {"name": "default", "template": "{{ messages }}"},
                    {"name": "rag", "template": "{% x %}"},
                ]
            },
            "tokenizer_config.json",
        ),
    ],
)
def test_a_chat_template_that_is_none_is_told(tiny_copy: Path, name: str, content: object, where: str) -> None:
    (tiny_copy / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadInput) as caught:
        make_plan("fp8", tiny_copy)
    (problem,) = caught.value.problems
    assert problem.where == str(tiny_copy / where)
    assert problem.what.startswith("its chat template is none: ")
    assert problem.remedy == "copy the tokenizer files again, or mend the template"


def test_what_transformers_adds_to_jinja_is_no_mistake(tiny_copy: Path) -> None:
    text = "{% for m in messages %}{% if not m %}{% break %}{% endif %}{%- generation -%}{{ m.content }}"
    (tiny_copy / "chat_template.jinja").write_text(text + "{% endgeneration %}{% endfor %}")
    assert list(check_templates(read_checkpoint(tiny_copy))) == []


def test_models_with_transposed_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    shutil.copyfile(tiny / "tokenizer.json", tmp_path / "tokenizer.json")
    (problem,) = told(Rtn(method="rtn", scheme="FP8_DYNAMIC"), read_checkpoint(tmp_path))
    assert "is a GPT2LMHeadModel, which keeps its weights transposed (Conv1D)" in problem
    assert "(Conv1D): transformers gives no such module the scales of a quantized weight" in problem


def test_all_fused_sets_treated_differently_are_one_problem(smollm2: Checkpoint) -> None:
    recipe = load_recipe("fp8", [r"quantize.ignore=[lm_head, 're:.*\.k_proj$']"])
    with pytest.raises(BadInput, match=r"of model.layers.0.self_attn are not treated alike \(30 such groups\)"):
        plan_checkpoint(recipe, smollm2)


def write(plan: CheckpointPlan, folder: Path) -> None:
    """An artifact of `plan`: by the engine, or of zeros where it would need a calibration set."""
    from pipelines.quantization.engines import streaming
    from pipelines.quantization.files import ArtifactFiles, copy_kept

    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if not plan.recipe.calibrated:
        streaming.quantize(plan, None, folder)
        return
    with ArtifactFiles(plan, folder) as files:
        parts = {f"{m.name}.{suffix}": part for m in plan.quantized.values() for suffix, part in m.parts.items()}
        for name, (dtype, shape) in (parts | plan.cache_scales).items():
            files.write(name, torch.zeros(BYTES[dtype] * math.prod(shape), dtype=torch.uint8))
        copy_kept(plan, files)


@pytest.mark.parametrize("kv_cache", [None, "FP8"])
@pytest.mark.parametrize("name", OWN_SCHEMES)
def test_the_plan_knows_every_byte_that_is_written(
    tmp_path: Path, name: SchemeName, kv_cache: Literal["FP8"] | None
) -> None:
    shapes = {f"self_attn.{which}_proj": (96, 96) for which in "qkv"}
    shapes |= {"mlp.up_proj": (160, 96), "mlp.down_proj": (96, 160)}
    dtype = {"FP8": "BF16", "INT8": "F32"}.get(SCHEMES[name].family.name, "F16")
    tensors: Tensors = {f"model.layers.{n}.{k}.weight": (dtype, shape) for n in (0, 1) for k, shape in shapes.items()}
    model = fake(tmp_path, {**tensors, "model.norm.weight": (dtype, (96,)), "x.bias": ("F32", (7,))})
    size = 32 if SCHEMES[name].resizable else None
    quantize = Rtn(
        method="rtn", scheme=name, group_size=size, kv_cache=kv_cache, ignore=("model.layers.0.mlp.up_proj",)
    )
    plan = plan_checkpoint(recipe(quantize), model)
    write(plan, tmp_path / "artifact")
    stored = {tensor.name: tensor for tensor in read_checkpoint(tmp_path / "artifact").tensors}
    assert plan.bytes_after == sum(tensor.bytes for tensor in stored.values())
    assert plan.bits_per_weight == 8 * plan.bytes_after / model.parameters
    for module in plan.modules:
        assert module.bytes_after == sum(t.bytes for n, t in stored.items() if n.startswith(f"{module.name}."))
    scales = {f"model.layers.{n}.self_attn.{which}_scale": (dtype, (1,)) for n in (0, 1) for which in "kv"}
    found = {n: (t.dtype, t.shape) for n, t in stored.items() if n.endswith(("k_scale", "v_scale"))}
    assert found == plan.cache_scales == (scales if kv_cache else {})


def test_the_cache_is_that_of_the_decoders_attention(tmp_path: Path) -> None:
    names = (
        "model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.qkv_proj",
        "model.layers.2.self_attn.k_proj", "mtp.layers.0.self_attn.k_proj",
        "vision_tower.encoder.layers.0.self_attn.k_proj",
    )  # fmt: skip
    model = fake(tmp_path, bf16((32, 32), *(f"{name}.weight" for name in names)), num_hidden_layers=2)
    quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", kv_cache="FP8")
    assert plan_checkpoint(recipe(quantize), model).attentions == (
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    )


def test_a_cache_that_no_known_module_fills_is_refused(tmp_path: Path) -> None:
    names = ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.layers.0.self_attn.kv_b_proj.weight")
    quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", kv_cache="FP8")
    (problem,) = told(quantize, fake(tmp_path, bf16((32, 32), *names)))
    assert "kv_cache" in problem
