"""Remedies are applied as they are given, and get whoever applies them further."""

import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.errors import BadInput, Problem
from pipelines.planning.needs import disk_lacks
from pipelines.planning.plan import CheckpointPlan, Need, Part
from pipelines.recipe.load import load_recipe
from tests.conftest import edit_json, make_tiny
from tests.helpers.checkpoints import EVEN, ODD, bf16, experts_of, fake
from tests.helpers.plans import plan_checkpoint, plan_gguf

pytestmark = pytest.mark.usefixtures("fakes")


def options(problem: Problem) -> list[list[str]]:
    """Each way that a remedy tells, as the values of its `--set`."""
    found = []
    for way in problem.remedy.split(", or "):
        words = shlex.split(way)
        found.append([after for word, after in pairwise(words) if word == "--set"])
    return [way for way in found if way]


def refused(name: str, model: Checkpoint, *settings: str) -> tuple[Problem, ...]:
    with pytest.raises(BadInput) as caught:
        plan_checkpoint(load_recipe(name, settings), model)
    return caught.value.problems


def quantized(name: str, model: Checkpoint, *settings: str) -> CheckpointPlan:
    plan = plan_checkpoint(load_recipe(name, settings), model)
    assert plan.quantized
    return plan


def every_way(name: str, model: Checkpoint, *settings: str) -> list[list[str]]:
    """Apply each way that is told to a recipe with `settings`; all of them make a plan that quantizes something."""
    problems = refused(name, model, *settings)
    ways = options(problems[0])
    assert ways, problems
    assert {problem.remedy for problem in problems} == {problems[0].remedy}
    for way in ways:
        quantized(name, model, *settings, *way)
    return ways


def named_instead(problem: Problem) -> list[str]:
    """The recipes that a remedy names."""
    assert problem.remedy.startswith("use recipe "), problem
    return problem.remedy.removeprefix("use recipe ").removesuffix(" as it comes").split(" or ")


W4A16 = "quantize={method: rtn, scheme: W4A16}", "calibrate=null"


def test_one_group_size_is_advised_for_all_widths(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 576)), "b.weight": ("BF16", (32, 80)), **EVEN})
    ways = every_way("int4-gptq", model, *W4A16)
    assert ways == [["quantize.group_size=16"], ["quantize.on_indivisible=shrink"], ["quantize.on_indivisible=skip"]]


def test_a_group_size_that_is_no_power_of_two_gives_way_to_one_that_divides_all(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 160)), "model.layers.0.mlp.a.weight": ("BF16", (32, 96))})
    assert every_way("int4-gptq", model, *W4A16, "quantize.group_size=96")[0] == ["quantize.group_size=32"]


def test_a_rule_has_its_own_group_size_changed(tmp_path: Path) -> None:
    model = fake(tmp_path, bf16((128, 128), f"{ODD}.weight") | bf16((128, 96), "model.layers.0.mlp.down_proj.weight"))
    rules = "quantize.rules=[{match: [down_proj], scheme: W4A16_ASYM}]"
    ways = every_way("int4-gptq", model, *W4A16, rules)
    assert yaml.safe_load(ways[0][0].removeprefix("quantize.rules=")) == [
        {"match": ["down_proj"], "scheme": "W4A16_ASYM", "group_size": 32}
    ]


def test_skip_is_not_advised_where_nothing_would_be_left(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 96))})
    assert every_way("int4-gptq", model, *W4A16) == [["quantize.group_size=32"], ["quantize.on_indivisible=shrink"]]


def test_skip_is_not_advised_where_it_would_divide_what_is_loaded_as_one(tmp_path: Path) -> None:
    attention = {f"model.layers.0.self_attn.{name}_proj.weight": ("BF16", (rows, 256)) for name, rows in
                 (("q", 256), ("k", 64), ("v", 64), ("o", 256))}  # fmt: skip
    block = "quantize={method: rtn, scheme: FP8_BLOCK}"
    ways = every_way("fp8", fake(tmp_path, attention), block)
    assert ways == [["quantize.group_size=64"], ["quantize.on_indivisible=shrink"]]


def test_where_no_group_divides_another_recipe_is_advised(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 36))})
    (problem,) = refused("int4-gptq", model, *W4A16)
    assert named_instead(problem) == ["int8-weight-only"]
    quantized("int8-weight-only", model)


def test_groups_of_a_fixed_size_are_skipped_or_left_for_another_recipe(tmp_path: Path) -> None:
    odd = {"model.layers.0.mlp.down_proj.weight": ("BF16", (32, 40))}
    nvfp4 = ("quantize={method: rtn, scheme: NVFP4A16}", "calibrate=null")
    ways = every_way("nvfp4-weight-only", fake(tmp_path / "a", {**odd, **EVEN}), *nvfp4)
    assert ways == [["quantize.on_indivisible=shrink"], ["quantize.on_indivisible=skip"]]
    alone = fake(tmp_path / "b", odd)
    (problem,) = refused("nvfp4-weight-only", alone, *nvfp4)
    for name in named_instead(problem):
        quantized(name, alone)


def test_no_recipe_is_advised_where_none_can(tmp_path: Path) -> None:
    model = fake(tmp_path, {"model.layers.0.mlp.down_proj.weight": ("I8", (32, 32))})
    (problem,) = refused("fp8", model, "quantize.ignore=[lm_head]")
    assert problem.remedy == "no recipe here can quantize it: give another model"


def test_first_and_last_layer_are_quantized_where_there_are_no_others(tmp_path: Path) -> None:
    layers = bf16((32, 32), *(f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)))
    ways = every_way("fp8", fake(tmp_path, layers, num_hidden_layers=2))
    assert ways == [['quantize.ignore=["lm_head"]']]


def test_nothing_left_by_skip_is_shrunk(tmp_path: Path) -> None:
    model = fake(tmp_path, {f"{ODD}.weight": ("BF16", (32, 96))})
    ways = every_way("int4-gptq", model, *W4A16, "quantize.on_indivisible=skip")
    assert ways == [["quantize.on_indivisible=shrink"]]


def test_modules_outside_of_the_layers_are_advised_to_be_ignored(tmp_path: Path) -> None:
    tensors = bf16((128, 128), f"{ODD}.weight", "lm_head.weight", "model.project_in.weight")
    ways = every_way("int4-gptq", fake(tmp_path, tensors, tie_word_embeddings=False), "quantize.ignore=[]")
    assert ways == [['quantize.ignore=["lm_head", "model.project_in"]']]


@pytest.mark.parametrize(
    "settings",
    [
        "quantize.ignore=[k_proj]",
        "quantize.ignore=[model.layers.0.mlp.up_proj]",
        "quantize.ignore=[w2]",
        "quantize.rules=[{match: [v_proj], scheme: W4A16}]",
        "quantize.rules=[{match: ['re:.*experts.0'], scheme: W8A8}]",
        "quantize.rules=[{match: [v_proj], scheme: W4A16}, {match: [o_proj], scheme: W8A8}]",
    ],
)
def test_what_is_treated_differently_is_told_how_to_be_treated_alike(tmp_path: Path, settings: str) -> None:
    names = [f"model.layers.{n}.self_attn.{which}_proj" for n in (0, 1) for which in "qkvo"]
    names += [f"model.layers.{n}.mlp.{which}_proj" for n in (0, 1) for which in ("gate", "up", "down")]
    names += [name for which in ("w1", "w2", "w3") for name in experts_of(which, "block_sparse_moe")]
    model = fake(tmp_path, bf16((128, 128), *(f"{name}.weight" for name in names)))
    every_way("int8-weight-only", model, *(["quantize.ignore=[]"] if "rules" in settings else []), settings)


def test_what_skip_has_divided_is_shrunk(tmp_path: Path) -> None:
    attention = {f"model.layers.0.self_attn.{name}_proj.weight": ("BF16", (rows, 256)) for name, rows in
                 (("q", 256), ("k", 64), ("v", 64), ("o", 256))}  # fmt: skip
    block = "quantize={method: rtn, scheme: FP8_BLOCK, on_indivisible: skip}"
    ways = every_way("fp8", fake(tmp_path, attention), block)
    assert ["quantize.on_indivisible=shrink"] in ways


def test_what_a_packing_cannot_hold_gets_one_group_size_or_another_export(tmp_path: Path) -> None:
    tensors = bf16((64, 128), f"{ODD}.weight") | bf16((64, 96), "model.layers.0.mlp.down_proj.weight")
    ways = every_way("int4-gptq", fake(tmp_path, tensors), "export=autogptq")
    assert ways == [["quantize.group_size=32"], ["quantize.on_indivisible=skip"], ["export=compressed-tensors"]]


@pytest.mark.parametrize("name", ["fp8-kv", "fp8-static", "int4-gptq"])
def test_a_cache_that_no_known_module_fills_is_left_out_as_advised(tmp_path: Path, name: str) -> None:
    attention = "model.layers.{}.self_attn.kv_{}_proj.weight"
    names = [attention.format(n, which) for n in range(3) for which in "ab"]
    model = fake(tmp_path, bf16((128, 128), *names), num_hidden_layers=3)
    cached = ("quantize.kv_cache=FP8", 'quantize.ignore=["lm_head"]')
    ((way,),) = [every_way(name, model, *cached)]
    assert ("calibrate=null" in way) == (name == "fp8-kv")


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ("quantize.ignore=[dwon_proj]", "did you mean down_proj or o_proj or v_proj?"),
        ("quantize.ignore=[LM_Head]", "did you mean lm_head?"),
        ("quantize.ignore=['layer:9']", "its decoder layers are layer:0 to layer:3"),
        (r"quantize.ignore=['re:mlp\.']", r"it is matched from the start of a name: 're:.*mlp\.'"),
        ("quantize.ignore=[xyz]", "modules are named like lm_head"),
    ],
)
def test_a_pattern_that_means_nothing_is_told_what_it_could(tiny: Path, settings: str, remedy: str) -> None:
    (problem,) = refused("int8-weight-only", read_checkpoint(tiny), settings)
    assert problem.remedy == remedy
    meant = {"did you mean down_proj": "quantize.ignore=[down_proj]", "mlp": r"quantize.ignore=['re:.*mlp\.']"}
    for told, corrected in meant.items():
        if told in remedy:
            quantized("int8-weight-only", read_checkpoint(tiny), corrected)


# Disk space


def disk(where: str, parts: dict[Part, int]) -> Need:
    return Need(
        stage="quantize and publish", resource="disk", where=where, needed=sum(parts.values()), available=10,
        parts=parts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "move_cache", "move_artifact"),
    [
        ({"cache": 11}, True, False),
        ({"artifact": 11}, False, True),
        ({"cache": 6, "artifact": 5}, True, True),
        ({"cache": 11, "artifact": 5}, True, False),
        ({"cache": 5, "artifact": 11}, False, True),
        ({"cache": 11, "artifact": 11}, True, True),
    ],
)
def test_the_advice_names_what_fills_the_disk(
    tiny: Path, parts: dict[Part, int], move_cache: bool, move_artifact: bool
) -> None:
    plan = plan_checkpoint("fp8", tiny).model_copy(update={"needs": (disk("/x", parts),)})
    (problem,) = disk_lacks([plan])
    assert ("QUANTGATE_CACHE" in problem.remedy, "--to" in problem.remedy) == (move_cache, move_artifact)
    both = " and " in problem.remedy
    assert both == (min(parts.get("cache", 0), parts.get("artifact", 0)) > 10)


def test_what_is_published_elsewhere_needs_no_room_here(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's disk is full, and the advice is not to move the cache."""
    full, cache = tmp_path / "full", tmp_path / "cache"
    full.mkdir()
    cache.mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setenv("QUANTGATE_CACHE", str(cache))
    monkeypatch.setattr("pipelines.planning.needs.disk_number", lambda folder: int(folder == full))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 if Path(path) == full else usage.free))
    with pytest.raises(BadInput) as caught:
        plan_checkpoint("fp8", tiny, full)
    (problem,) = caught.value.problems
    assert problem.where == str(full)
    assert "publish to another disk" in problem.remedy
    assert "QUANTGATE_CACHE" not in problem.remedy
    assert plan_checkpoint("fp8", tiny, tmp_path / "other").quantized


# GGUF


@pytest.mark.parametrize(("hidden", "way"), [(64, "Q8_0"), (80, "null")])
def test_an_embedding_that_its_type_does_not_divide_gets_another(
    smollm2: Checkpoint, tmp_path: Path, hidden: int, way: str
) -> None:
    heads = {"num_attention_heads": hidden // 16, "num_key_value_heads": hidden // 16}
    model = read_checkpoint(make_tiny(tmp_path / "model", smollm2, hidden_size=hidden, **heads))
    (problem,) = refused("gguf-q4_0", model, "quantize.embedding=Q4_K")
    assert options(problem) == [[f"quantize.embedding={way}"]]
    assert plan_gguf(load_recipe("gguf-q4_0", options(problem)[0]), model).tensors


def test_what_no_gguf_is_made_of_has_other_recipes(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", architectures=["OtherForCausalLM"])
    model = read_checkpoint(tiny_copy)
    (problem,) = refused("gguf-q4_0", model)
    assert "like fp8 or int8-weight-only" in problem.remedy
    for name in ("fp8", "int8-weight-only"):
        quantized(name, model)
