"""What the plan decides from headers alone: every module, every byte, every need; and that torch stays out of it."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.errors import BadInput
from pipelines.plan import Plan, make_plan
from pipelines.recipe import Calibrate, Gptq, OnIndivisible, Quantize, Recipe, Rtn, load_recipe
from pipelines.store import digest
from tests.conftest import PLAIN, Cli, make_tiny
from tests.test_checkpoint import Tensors, write_checkpoint, write_safetensors

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
    calibrate = Calibrate(set="self", samples=samples, seq_len=64) if quantize.method == "gptq" else None
    return Recipe(version=1, name="mine", summary="", quantize=quantize, calibrate=calibrate)


def w4a16(group_size: int, on_indivisible: OnIndivisible = "error") -> Gptq:
    return Gptq(method="gptq", scheme="W4A16", group_size=group_size, on_indivisible=on_indivisible)


def fake(folder: Path, tensors: Tensors, **config: object) -> Checkpoint:
    return read_checkpoint(write_checkpoint(folder / "model", tensors, **config))


def told(quantize: Quantize, model: Checkpoint) -> list[str]:
    with pytest.raises(BadInput) as caught:
        make_plan(recipe(quantize), model)
    return [str(problem) for problem in caught.value.problems]


# Sizes


def test_smollm2_has_210_linear_modules_and_keeps_its_embedding(smollm2: Checkpoint) -> None:
    plan = make_plan(recipe(FP8), smollm2)
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
    plan = make_plan(recipe(quantize), smollm2)
    assert plan.bytes_before == 2 * PARAMETERS == 269_030_016
    assert plan.bytes_after == bytes_of_linear + 2 * OTHER_WEIGHTS
    assert plan.bits_per_weight == 8 * plan.bytes_after / PARAMETERS


def test_the_published_numbers_for_smollm2_are_these(smollm2: Checkpoint) -> None:
    assert make_plan(recipe(FP8), smollm2).bytes_after == 163_172_736
    assert make_plan(recipe(w4a16(64)), smollm2).bytes_after == 113_098_656


@pytest.mark.parametrize(("dtype", "size"), [("F32", 4), ("BF16", 2), ("F16", 2)])
def test_scales_have_the_dtype_of_the_source(tmp_path: Path, dtype: str, size: int) -> None:
    model = fake(tmp_path, {"model.layers.0.mlp.up_proj.weight": (dtype, (48, 32))})
    (module,) = make_plan(recipe(FP8), model).modules
    assert (module.dtype, module.bytes_before, module.bytes_after) == (dtype, 48 * 32 * size, 48 * 32 + 48 * size)


# Group sizes


def test_a_group_size_that_does_not_divide_is_refused_with_one_that_does(tmp_path: Path) -> None:
    model = fake(tmp_path, {"model.layers.0.mlp.up_proj.weight": ("BF16", (32, 576))})
    assert told(w4a16(128), model) == [
        "recipe mine: group size 128 does not divide the 576 input columns of model.layers.0.mlp.up_proj\n"
        "    use quantize.group_size=64, or quantize.on_indivisible=shrink or skip"
    ]


def test_the_group_size_that_is_proposed_works(smollm2: Checkpoint) -> None:
    assert all("use quantize.group_size=64" in problem for problem in told(w4a16(128), smollm2))
    assert len(make_plan(recipe(w4a16(64)), smollm2).quantized) == 210


def test_modules_of_one_width_are_one_problem(smollm2: Checkpoint) -> None:
    (problem,) = told(w4a16(128), smollm2)
    assert "576" in problem
    assert "180 modules" in problem


def test_on_indivisible_skip_keeps_those_modules_and_says_so(smollm2: Checkpoint) -> None:
    plan = make_plan(recipe(w4a16(128, "skip")), smollm2)
    assert Counter((module.quantized, module.group_size, module.reason) for module in plan.modules) == {
        (True, 128, ""): 30,
        (False, None, "group size 128 does not divide 576"): 180,
    }
    assert all(module.shape == (HIDDEN, WIDE) for module in plan.quantized.values())
    assert all(module.bytes_after == module.bytes_before for module in plan.modules if not module.quantized)


def test_on_indivisible_shrink_takes_the_largest_power_of_two_and_says_so(smollm2: Checkpoint) -> None:
    plan = make_plan(recipe(w4a16(128, "shrink")), smollm2)
    assert Counter((module.quantized, module.group_size, module.reason) for module in plan.modules) == {
        (True, 128, ""): 30,
        (True, 64, "group size 64: 128 does not divide 576"): 180,
    }
    wide = LAYERS * HIDDEN * WIDE
    scales = 2 * (wide // 128 + (LINEAR_WEIGHTS - wide) // 64)
    assert plan.bytes_after == LINEAR_WEIGHTS // 2 + scales + 210 * 16 + 2 * OTHER_WEIGHTS


def test_on_indivisible_shrink_keeps_what_only_tiny_groups_divide(tmp_path: Path) -> None:
    tensors: Tensors = {"a.weight": ("BF16", (32, 24)), "b.weight": ("BF16", (32, 48)), "c.weight": ("BF16", (32, 256))}
    plan = make_plan(recipe(w4a16(128, "shrink")), fake(tmp_path, tensors))
    assert [(module.name, module.group_size, module.reason) for module in plan.modules] == [
        ("a", None, "group size 128 does not divide 24"),
        ("b", 16, "group size 16: 128 does not divide 48"),
        ("c", 128, ""),
    ]


# Ignore patterns


def test_full_names_and_regular_expressions_keep_what_they_match(smollm2: Checkpoint) -> None:
    ignore = ("lm_head", "model.layers.3.self_attn.o_proj", r"re:model\.layers\.(0|29)\.", "re:.*down_proj$")
    quantize = Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=ignore)
    plan = make_plan(recipe(quantize), smollm2)
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
        "    modules are named like model.layers.0.mlp.down_proj"
    ]


def test_every_pattern_that_matches_nothing_is_told(smollm2: Checkpoint) -> None:
    patterns = ("lm_head", "model.layers.30.mlp.up_proj", "re:.*experts.*")
    problems = told(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=patterns), smollm2)
    assert [problem.split("'")[1] for problem in problems] == list(patterns[1:])


def test_a_recipe_that_leaves_nothing_to_quantize_is_refused(smollm2: Checkpoint) -> None:
    assert told(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("re:.*",)), smollm2) == [
        f"{smollm2.folder}: has no linear module left to quantize"
    ]


# The head, routers and what is no linear module


def test_a_tied_head_can_be_ignored_though_it_has_no_tensor(smollm2: Checkpoint) -> None:
    assert smollm2.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in {tensor.name for tensor in smollm2.tensors}
    plan = make_plan(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("lm_head",))), smollm2)
    assert "lm_head" not in {module.name for module in plan.modules}
    assert len(plan.quantized) == 210


def test_an_untied_head_is_kept_when_ignored_and_quantized_when_not(smollm2: Checkpoint, tmp_path: Path) -> None:
    model = read_checkpoint(make_tiny(tmp_path / "untied", smollm2, tie_word_embeddings=False))
    kept = make_plan(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=("lm_head",))), model)
    assert {module.name: module.reason for module in kept.modules if not module.quantized} == {
        "lm_head": "ignored by the recipe"
    }
    taken = make_plan(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=())), model)
    assert taken.quantized["lm_head"].shape == (VOCABULARY, 64)
    assert kept.bytes_after - taken.bytes_after == VOCABULARY * 64 - 2 * VOCABULARY


def test_routers_are_kept_whatever_the_recipe_says(tmp_path: Path) -> None:
    experts = {f"model.layers.0.mlp.experts.{n}.up_proj.weight": ("BF16", (32, 16)) for n in range(2)}
    routers = (
        "model.layers.0.mlp.gate",
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.0.mlp.router",
        "model.layers.0.feed_forward.router",
        "model.layers.0.mlp.shared_expert_gate",
    )
    ours: Tensors = {**experts, "model.layers.0.mlp.gate_proj.weight": ("BF16", (32, 16))}
    model = fake(tmp_path, {**ours, **{f"{name}.weight": ("BF16", (2, 16)) for name in routers}})
    plan = make_plan(recipe(Rtn(method="rtn", scheme="FP8_DYNAMIC", ignore=())), model)
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
        "model.layers.0.mlp.experts.gate_up_proj": ("BF16", (2, 32, 16)),
        "model.conv.weight": ("BF16", (16, 16, 3)),
    }
    model = fake(tmp_path, {**others, "model.layers.0.mlp.up_proj.weight": ("BF16", (32, 16))})
    plan = make_plan(recipe(FP8), model)
    assert [module.name for module in plan.modules] == ["model.layers.0.mlp.up_proj"]
    assert plan.bytes_after == plan.bytes_before - 2 * 32 * 16 + 32 * 16 + 2 * 32


def test_a_module_that_is_not_floating_point_is_kept(tmp_path: Path) -> None:
    tensors: Tensors = {"a.weight": ("I8", (32, 16)), "b.weight": ("BF16", (32, 16))}
    plan = make_plan(recipe(FP8), fake(tmp_path, tensors))
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
    model = fake(tmp_path, {"a.weight": ("BF16", (32, 64))}, hidden_size=None, vocab_size=None)
    assert len(make_plan(recipe(w4a16(64)), model).quantized) == 1


# Needs


def test_what_each_stage_needs_is_listed_against_what_there_is(
    smollm2: Checkpoint, cache: Path, tmp_path: Path
) -> None:
    plan = make_plan(recipe(FP8), smollm2, tmp_path / "not" / "there" / "yet")
    stages = [(need.stage, need.resource) for need in plan.needs]
    assert stages[:3] == [("quantize", "memory"), ("evaluate", "memory"), ("quantize and publish", "disk")]
    assert all(0 < need.needed < need.available for need in plan.needs)
    on_disk = [need for need in plan.needs if need.resource == "disk"]
    assert sum(need.needed for need in on_disk) == 2 * plan.bytes_after  # once in the cache, once published
    assert on_disk[0].where == str(cache)
    assert abs(on_disk[0].available - shutil.disk_usage(cache).free) < 10e9


def test_calibration_needs_memory_for_its_text(smollm2: Checkpoint) -> None:
    few, many = (make_plan(recipe(w4a16(64), samples), smollm2).needs[0] for samples in (8, 16))
    assert many.needed - few.needed == 2 * 8 * 64 * HIDDEN * 2  # a layer's inputs and outputs, two bytes each


def sparse_checkpoint(folder: Path, size: int = 40 * 10**12) -> Path:
    """A checkpoint of `size` bytes, of which the disk holds only the headers."""
    files = -(-size // (4 * 10**12))  # a file of ext4 has 16 TB at most
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    rows = size // files // 2 // 8192
    for number in range(files):
        name = f"model.layers.{number}.mlp.up_proj.weight"
        write_safetensors(folder / f"model-{number}.safetensors", {name: ("BF16", (rows, 8192))})
    held = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert held < 1 << 20, "the file system has no sparse files"
    return folder


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
    assert done.stderr.startswith("error: giant: stage evaluate needs about ")
    assert "stage quantize and publish needs about " in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


# The plan as data


def test_a_plan_is_a_function_of_recipe_and_checkpoint(smollm2: Checkpoint) -> None:
    def decided() -> dict[str, object]:
        plan = make_plan(recipe(w4a16(128, "shrink")), read_checkpoint(smollm2.folder))
        return {**plan.model_dump(mode="json", exclude={"needs"}), "needs": [need.needed for need in plan.needs]}

    first, second = decided(), decided()
    assert first == second
    assert digest(first) == digest(second)


def test_a_plan_survives_json(smollm2: Checkpoint) -> None:
    plan = make_plan(recipe(w4a16(64)), smollm2)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Plan.model_validate(json.loads(json.dumps(plan.model_dump(mode="json")))) == plan


def test_a_plan_takes_names_as_well(tiny: Path) -> None:
    by_name, by_value = make_plan("fp8", str(tiny)), make_plan("fp8", read_checkpoint(tiny))
    assert by_name.modules == by_value.modules
    assert by_name.recipe.name == "fp8"


def test_the_command_prints_the_plan_as_json(cli: Cli, smollm2: Checkpoint) -> None:
    done = cli("plan", "fp8", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    plan = make_plan("fp8", smollm2)
    assert printed["bytes_before"] == plan.bytes_before
    assert printed["bytes_after"] == plan.bytes_after
    assert printed["bits_per_weight"] == plan.bits_per_weight
    assert {"recipe", "checkpoint", "modules", "needs", "sight"} <= printed.keys()
    again = Plan.model_validate({name: printed[name] for name in Plan.model_fields})
    assert (again.recipe, again.modules) == (plan.recipe, plan.modules)
    assert again.checkpoint.tensors == smollm2.tensors


def test_the_command_prints_the_plan_for_people(cli: Cli, smollm2: Checkpoint) -> None:
    done = cli("plan", "fp8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fp8 on SmolLM2-135M-Instruct" in done.stdout
    assert all(f"model.layers.*.{name}" in done.stdout for name in SHAPES)
    plan = make_plan("fp8", smollm2)
    after = f"{plan.bytes_after / 1e6:.1f} MB, bits per weight 16.00 → {plan.bits_per_weight:.2f}"
    assert f"weights: 269.0 MB → {after}" in done.stdout
    assert "of memory" in done.stdout
    assert "of disk" in done.stdout
    assert smollm2.notes[0] in done.stdout


def test_the_command_says_what_the_artifact_will_not_get(cli: Cli, tiny_copy: Path) -> None:
    (tiny_copy / "modeling_mine.py").write_text("x")
    done = cli("plan", "fp8", "--model", tiny_copy)
    assert "not copied into the artifact: modeling_mine.py\n" in done.stdout


def test_planning_imports_neither_torch_nor_transformers(tiny: Path) -> None:
    program = """
import sys
from pipelines import make_plan
make_plan("int8", sys.argv[1])
print(sorted({"torch", "transformers", "lm_eval", "llmcompressor", "datasets"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout == "[]\n"


def test_layers_that_runtimes_fuse_are_quantized_together_or_not_at_all(smollm2: Checkpoint) -> None:
    torn = load_recipe("fp8", [r"quantize.ignore=[lm_head, 're:.*\.k_proj$']"])
    with pytest.raises(BadInput, match=r"q_proj, k_proj, v_proj of model.layers.0.self_attn are partly quantized"):
        make_plan(torn, smollm2)
    whole = load_recipe("fp8", [r"quantize.ignore=[lm_head, 're:.*\.[qkv]_proj$']"])
    assert len(make_plan(whole, smollm2).quantized) == 120
