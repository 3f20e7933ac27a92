"""The command line as a user meets it: what it prints, what it refuses, and that a refusal leaves no trace."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.cli.tables.lists import FAMILIES
from pipelines.core.cache import write_text
from pipelines.core.errors import QuantgateError
from pipelines.recipe import library
from pipelines.recipe.load import load_recipe
from tests.conftest import PLAIN, Cli
from tests.helpers.checkpoints import (
    LINEAR,
    LLAMA,
    SMALL,
    WEIGHTS,
    cut,
    replace_header,
    sparse_checkpoint,
    write_checkpoint,
    write_index,
)
from tests.helpers.paths import ROOT

COMMANDS = (
    "bench",
    "compare",
    "env",
    "evaluate",
    "gate",
    "list",
    "plan",
    "publish",
    "pull",
    "quantize",
    "recommend",
    "release",
    "repair",
    "report",
    "run",
    "serve-config",
    "show",
    "validate",
    "verify",
)
KINDS = {"recipes": "recipe", "sets": "set", "suites": "suite", "tasks": "task"}

RECIPE = """\
version: 1
name: mine
summary: my own
quantize: {method: rtn, scheme: FP8_DYNAMIC}
gate: {suite: smoke}
"""
SUITE = """\
version: 1
name: my-suite
summary: my own
tasks: [{task: sciqq}]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound checkpoint of zeros that no command gets as far as loading."""
    return write_checkpoint(tmp_path / "model", LLAMA)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below `folder`, and itself, with size and time of change."""
    found = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def refused(cli: Cli, tmp_path: Path, *arguments: object, **environment: str) -> str:
    """What the command says when it refuses: one error, exit code 2, and not a file changed or added anywhere."""
    before = files(tmp_path)
    done = cli(*arguments, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    planning = r"\Aplanning .* with .*\n" if arguments[0] in ("plan", "run") else r"\A"
    told = re.sub(planning, "", done.stderr)
    assert told.startswith("error: ")
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    assert files(tmp_path) == before
    return told


# Help and version


def test_help_names_every_command_and_every_exit_code(cli: Cli) -> None:
    done = cli("--help")
    assert (done.returncode, done.stderr) == (0, "")
    described = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()]
    assert tuple(described) == COMMANDS
    for meaning in ("0 passed and published", "2 bad input", "3 the gate said FAIL", "4 the gate said INCONCLUSIVE"):
        assert meaning in done.stdout
    assert cli("-h").stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert f" {command} " in done.stdout.splitlines()[0]
    assert len(done.stdout.splitlines()[2]) > 20, "no sentence says what it does"


HEAVY = ("accelerate", "compressed_tensors", "datasets", "gguf", "huggingface_hub", "llmcompressor", "lm_eval", "numpy")


def test_light_commands_import_no_heavy_package(tmp_path: Path) -> None:
    program = f"""
import sys
from pipelines.cli.main import main
for arguments in [["--help"], *([command, "--help"] for command in {COMMANDS!r}), ["list"], ["show", "fp8"],
                  ["validate", "fp8", "int8"]]:
    try:
        main(arguments, standalone_mode=False)
    except SystemExit as end:
        assert not end.code
print(sorted(set({(*HEAVY, "tokenizers", "torch", "transformers")!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_installed_one(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"version {importlib.metadata.version('quantgate')}\n")


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("quantgate")
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"quantgate, version {importlib.metadata.version('quantgate')}\n"


def test_an_unknown_command_or_option_is_told_with_the_nearest(cli: Cli) -> None:
    for arguments, near in ((["rnu"], "Did you mean 'run'?"), (["run", "fp8", "--modle", "x"], "--model")):
        done = cli(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert near in done.stderr
        assert "Traceback" not in done.stderr


# list, show, validate


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_every_file_with_a_summary(cli: Cli, kind: str) -> None:
    names = library.names(KINDS[kind])  # type: ignore[arg-type]
    printed = json.loads(cli("list", kind, "--json").stdout)
    assert sorted(row["name"] for row in printed) == names
    assert all(row["summary"] and row.keys() - {"family"} == {"name", "summary"} for row in printed)
    table = cli("list", kind).stdout
    assert all(f"│ {name} " in table for name in names)


def test_list_groups_recipes_by_family(cli: Cli) -> None:
    families = [row["family"] for row in json.loads(cli("list", "--json").stdout)]
    assert families == sorted(families, key=FAMILIES.index)
    assert set(families) == set(FAMILIES)
    first_cells = [line.split("│")[1].strip() for line in cli("list").stdout.splitlines() if line.startswith("│")]
    assert [cell for cell in first_cells if cell in FAMILIES] == list(FAMILIES)
    assert first_cells.index("FP4") < first_cells.index("mxfp4") < first_cells.index("INT8") < first_cells.index("int8")


def test_list_lists_recipes_unless_told_otherwise(cli: Cli) -> None:
    assert cli("list").stdout == cli("list", "recipes").stdout


def test_show_prints_a_recipe_with_its_defaults(cli: Cli) -> None:
    recipe = load_recipe("int8").model_dump(mode="json")
    assert {"dampening", "on_indivisible"} <= recipe["quantize"].keys()
    done = cli("show", "int8", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == recipe
    assert yaml.safe_load(cli("show", "int8").stdout) == recipe


def test_show_prints_what_set_asks_for(cli: Cli) -> None:
    overrides = ["--set", "calibrate.samples=7", "--set", "quantize.scheme=W4A16"]
    shown = json.loads(cli("show", "int8", *overrides, "--json").stdout)
    assert shown["calibrate"]["samples"] == 7
    assert (shown["quantize"]["scheme"], shown["quantize"]["group_size"]) == ("W4A16", 128)


def test_what_show_prints_is_a_recipe(cli: Cli, tmp_path: Path) -> None:
    for name in library.names("recipe"):
        own = tmp_path / f"{name}.yaml"
        own.write_text(cli("show", name).stdout)
        assert load_recipe(own) == load_recipe(name)


def test_validate_says_ok_for_each_recipe(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(RECIPE)
    done = cli("validate", "fp8", own, "int8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fp8: ok\n{own}: ok\nint8: ok\n"


def test_validate_reports_every_problem_of_every_recipe(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(RECIPE.replace("summary: my own", "sumary: my own") + "version: 1\n")
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("rtn", "rnt").replace("gate:", "gtae:"))
    done = cli("validate", own, "fp8", other, "@@@")
    assert done.returncode == 2
    assert done.stdout == "fp8: ok\n"
    assert done.stderr == (
        f"error: {own}:6:1: key 'version' is given twice\n"
        f"{other}:4:12: 'quantize.method' is 'rnt'\n"
        "    did you mean rtn?\n"
        f"{other}:5:1: unknown key 'gtae'\n"
        "    did you mean 'gate'?\n"
        "@@@: there is no recipe of this name\n"
        f"    there are: {', '.join(library.names('recipe'))}\n"
    )


# recommend


def test_recommend_says_where_to_begin_and_refuses_what_it_does_not_know(cli: Cli, tiny: Path) -> None:
    done = cli("recommend", "--model", tiny, "--hardware", "h100", "--for", "latency", "--keep", "0.9", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["hardware"], made["goal"], made["context"], made["concurrency"]) == ("H100", "latency", 512, 1)
    run = f"quantgate run {made['choices'][0]['recipe']} --model {tiny} --set gate.retention=0.9"
    assert made["choices"][0]["commands"][0] == run
    named = [one["recipe"] for one in (*made["choices"], *made["left_out"])]
    assert sorted(named) == library.names("recipe")
    for arguments, why in (
        (["--hardware", "V100"], "--hardware V100: nothing is known of its bandwidth and operations"),
        (["--hardware", "MI300", "--ask", "aiconfigurator"], "--ask aiconfigurator: knows nothing of MI300"),
        (["--hardware", "H100", "--context", "513"], "--context 513: is more than the 512 positions of tiny"),
    ):
        done = cli("recommend", "--model", tiny, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr


# plan and run


def test_what_is_planned_is_said_first_where_there_is_no_terminal(cli: Cli, model: Path) -> None:
    done = cli("plan", "fp8", "--model", model, *PLAIN)
    assert (done.returncode, done.stderr) == (0, f"planning {model} with fp8\n")
    done = cli("run", "fp8", "int9", "--model", model)
    assert done.returncode == 2
    assert done.stderr.startswith(f"planning {model} with fp8, int9\nerror: int9: there is no recipe of this name\n")
    assert cli("plan", "int9").stderr.startswith("error: int9: ")


# Refusals: the recipe


@pytest.mark.parametrize("command", ["show", "validate", "plan", "quantize", "run"])
def test_an_unknown_recipe_is_told_with_the_nearest_names(cli: Cli, tmp_path: Path, command: str) -> None:
    told = refused(cli, tmp_path, command, "int9")
    assert told.startswith("error: int9: there is no recipe of this name\n    did you mean int8")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("gaet: {suite: smoke}", "{recipe}:6:1: unknown key 'gaet'\n    did you mean 'gate'?"),
        (
            "calibrate: {set: self}",
            "{recipe}:1:1: method rtn uses no data with this scheme: remove the 'calibrate' block, or "
            "--set calibrate=null",
        ),
        ("name: [a]", "{recipe}:6:1: key 'name' is given twice"),
        ("  - a", "{recipe}:6:3: is not valid YAML: expected <block end>, but found '<block sequence start>'"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_line_and_column(
    cli: Cli, tmp_path: Path, model: Path, line: str, told: str
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"{RECIPE}{line}\n")
    assert refused(cli, tmp_path, "run", recipe, "--model", model) == f"error: {told.format(recipe=recipe)}\n"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("quantize.scehme=W8A8", "quantize.scehme=W8A8: unknown key 'quantize.scehme'\n    did you mean 'scheme'?"),
        ("gate.retention=2", "gate.retention=2: gate.retention: Input should be less than 1"),
        ("gate.retention", "gate.retention: is not of the form key=value\n    for example --set calibrate.samples=64"),
    ],
)
def test_a_mistake_in_an_override_is_blamed_on_it(
    cli: Cli, tmp_path: Path, model: Path, override: str, told: str
) -> None:
    assert refused(cli, tmp_path, "run", "fp8", *PLAIN, "--model", model, "--set", override) == f"error: --set {told}\n"


def test_a_method_that_needs_calibration_is_refused_without_one(cli: Cli, tmp_path: Path, model: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nname: mine\nsummary: mine\nquantize: {method: gptq, scheme: W8A8}\n")
    told = refused(cli, tmp_path, "run", recipe, "--model", model)
    assert told.endswith("add a 'calibrate' block, for example {set: passages, samples: 128, seq_len: 512}\n")
    assert "method gptq needs calibration: " in told


def test_an_unknown_suite_is_told_with_the_nearest_names(cli: Cli, tmp_path: Path, model: Path) -> None:
    for arguments in (("evaluate", model, "--suite", "smokee"), ("run", "fp8", "--set", "gate.suite=smokee")):
        told = refused(cli, tmp_path, *arguments)
        assert re.fullmatch(r"error: .*there is no suite of this name.*\n    did you mean smoke.*\n", told)
        assert "smokee" in told


def test_a_task_that_lm_eval_does_not_know_is_refused_before_the_work(cli: Cli, tmp_path: Path, model: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    told = refused(cli, tmp_path, "run", "fp8", *PLAIN, "--model", model, "--set", f"gate.suite={suite}")
    assert told == "error: suite my-suite: lm-eval has no task 'sciqq'\n    did you mean sciq?\n"


# Refusals: the model


def test_a_group_size_that_divides_nothing_is_refused(cli: Cli, tmp_path: Path, model: Path) -> None:
    overrides = ["--set", "quantize.scheme=W4A16", "--set", "quantize.group_size=16"]
    told = refused(cli, tmp_path, "run", "int8", "--model", model, *overrides)
    assert told.startswith("error: recipe int8: group size 16 does not divide the width 8 of ")
    assert "like model.layers.0.mlp.gate_proj\n" in told


def test_a_path_that_is_no_checkpoint_is_refused(cli: Cli, tmp_path: Path) -> None:
    for name in ("nowhere", "./nowhere", tmp_path / "nowhere"):
        assert refused(cli, tmp_path, "run", "fp8", "--model", name) == (
            f"error: {name}: is neither a folder nor a hub id\n    give a checkpoint folder, or org/name[@revision]\n"
        )


def without_weights(folder: Path) -> str:
    (folder / WEIGHTS).unlink()
    return "{model}: has no safetensors weights\n    is this a checkpoint?"


def truncated(folder: Path) -> str:
    cut(folder / WEIGHTS, -10)
    return f"{{model}}/{WEIGHTS}: truncated: 10 bytes of tensor {LINEAR} are missing\n    copy it again"


def corrupt(folder: Path) -> str:
    replace_header(folder / WEIGHTS, b"not json")
    return f"{{model}}/{WEIGHTS}: has a corrupt safetensors header\n    copy it again"


def lacking_a_shard(folder: Path) -> str:
    write_index(folder, {**dict.fromkeys(SMALL, WEIGHTS), "model.norm.weight": "model-00002.safetensors"})
    return "{model}/model-00002.safetensors: missing shard, named by the index\n    copy it again"


def quantized(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    return (
        "{model}/config.json: the checkpoint is already quantized (awq)\n"
        "    give the full-precision checkpoint it was made from"
    )


def pickled(folder: Path) -> str:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    return (
        "{model}: has pickle weights only (pytorch_model.bin)\n"
        "    pickle can run code: convert to safetensors where you trust it"
    )


@pytest.mark.parametrize("harm", [without_weights, truncated, corrupt, lacking_a_shard, quantized, pickled])
def test_an_unsound_checkpoint_is_refused(cli: Cli, tmp_path: Path, model: Path, harm: Callable[[Path], str]) -> None:
    told = harm(model)
    assert refused(cli, tmp_path, "run", "fp8", *PLAIN, "--model", model) == f"error: {told.format(model=model)}\n"


def test_a_model_that_the_disk_cannot_hold_is_refused(cli: Cli, tmp_path: Path) -> None:
    told = refused(cli, tmp_path, "run", "fp8", "--model", sparse_checkpoint(tmp_path / "giant"))
    assert "giant: stage evaluate needs about " in told
    assert "stage quantize and publish needs about " in told
    assert "free some, or set QUANTGATE_CACHE" in told


# Refusals: the destination


def test_a_destination_that_holds_something_else_is_refused_and_left_alone(
    cli: Cli, tmp_path: Path, model: Path
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("more work")
    for to in (folder, file):
        assert refused(cli, tmp_path, "run", "fp8", *PLAIN, "--model", model, "--to", to) == (
            f"error: {to}: exists and is not an artifact of quantgate\n    give another folder with TO= or --to\n"
        )


def test_a_destination_below_a_file_is_refused_before_the_work(cli: Cli, tmp_path: Path, model: Path) -> None:
    suite, file = tmp_path / "suite.yaml", tmp_path / "file"
    suite.write_text(SUITE)  # its unknown task ends the run here if the destination does not
    file.write_text("work")
    to = file / "artifact"
    told = refused(cli, tmp_path, "run", "fp8", *PLAIN, "--model", model, "--to", to, "--set", f"gate.suite={suite}")
    assert f"{to}: cannot be made: {file} is not a folder" in told


def test_an_output_file_in_no_folder_is_refused_before_the_work(cli: Cli, tmp_path: Path, model: Path) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "nowhere" / "out.json"
    suite.write_text(SUITE)  # its unknown task ends the evaluation here if the output does not
    told = refused(cli, tmp_path, "evaluate", model, "--suite", suite, "--out", out)
    assert told.startswith(f"error: {out}: ")


# Several recipes


def test_every_problem_of_every_recipe_is_told_at_once(cli: Cli, tmp_path: Path, model: Path) -> None:
    suite, typo, recipe = tmp_path / "suite.yaml", tmp_path / "typo.yaml", tmp_path / "mine.yaml"
    suite.write_text(SUITE)
    typo.write_text(RECIPE.replace("rtn", "rnt"))
    recipe.write_text(RECIPE.replace("suite: smoke", f"suite: {suite}").replace("}", ', ignore: [head, "layer:7"]}', 1))
    folder = tmp_path / "folder"
    (folder / "fp8").mkdir(parents=True)
    (folder / "fp8" / "thesis.txt").write_text("years of work")
    told = refused(cli, tmp_path, "run", typo, "fp8", recipe, "fp9", "--model", model, "--to", folder)
    for problem in (
        f"{typo}:4:12: 'quantize.method' is 'rnt'",
        "fp9: there is no recipe of this name",
        f"{folder / 'fp8'}: exists and is not an artifact of quantgate",
        "recipe mine: ignore pattern 'head' matches no linear module of ",
        "recipe mine: ignore pattern 'layer:7' matches no linear module of ",
        "suite my-suite: lm-eval has no task 'sciqq'",
    ):
        assert told.count(problem) == 1, told


def test_a_problem_that_recipes_share_is_told_once(cli: Cli, tmp_path: Path, model: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    overrides = (*PLAIN, "--set", f"gate.suite={suite}")
    told = refused(cli, tmp_path, "run", "fp8", "int8-weight-only", "--model", model, *overrides)
    assert told == "error: suite my-suite: lm-eval has no task 'sciqq'\n    did you mean sciq?\n"
    told = refused(cli, tmp_path, "run", "fp8", "int8", "--model", tmp_path / "nowhere")
    assert told.count("is neither a folder nor a hub id") == 1


def test_recipes_of_one_name_are_refused(cli: Cli, tmp_path: Path, model: Path) -> None:
    told = refused(cli, tmp_path, "run", "fp8", "int8-weight-only", "fp8", *PLAIN, "--model", model)
    assert told == "error: recipe fp8: is given twice\n    give it once, or another name\n"


def test_make_quantize_takes_several_recipes() -> None:
    command = ["make", "-n", "quantize", "RECIPE=fp8 int8", "TO=out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"quantgate run fp8 int8\s.*--to 'out'", done.stdout, re.DOTALL)


# Refusals: gate and publish


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{}", "is not a record of an evaluation by this version of quantgate"),
        (b'{"model": "a", "tasks": [', "is not a record of an evaluation by this version of quantgate"),
        (b"tensor\xff\x00", "is not a record of an evaluation by this version of quantgate"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_gate_refuses_what_is_no_evaluation(cli: Cli, tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "evaluation.json"
    if content is not None:
        file.write_bytes(content)
    assert refused(cli, tmp_path, "gate", file, file, "--out", tmp_path / "verdict.json") == f"error: {file}: {told}\n"


def test_gate_refuses_a_folder(cli: Cli, tmp_path: Path, model: Path) -> None:
    assert refused(cli, tmp_path, "gate", model, model) == f"error: {model}: cannot be read: Is a directory\n"


def test_gate_refuses_to_judge_and_to_plan_at_once(cli: Cli, tmp_path: Path, model: Path) -> None:
    assert "judges nothing" in refused(cli, tmp_path, "gate", "--plan", "fp8", model, model)
    assert "add --plan RECIPE" in refused(cli, tmp_path, "gate", model, model, "--set", "gate.retention=0.9")
    assert "needs BASELINE and CANDIDATE" in refused(cli, tmp_path, "gate", model)


def test_gate_says_what_it_will_see(cli: Cli, tmp_path: Path) -> None:
    command = ("gate", "--plan", "fp8", "--json")
    seen = json.loads(cli(*command, QUANTGATE_CACHE=str(tmp_path / "empty")).stdout)
    assert (seen["documents"], seen["changes"]) == (2850, {"discordance": 0.045, "deviation": 0.06, "runs": 0})
    assert seen["expected"]["fails_below"] > seen["accuracy"]["fails_below"]
    suite = tmp_path / "suite.yaml"
    suite.write_text("version: 1\nname: own\nsummary: of the test\ntasks: [{task: gsm8k}]\n")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "version: 1\nname: own\nsummary: of the test\nquantize: {method: rtn, scheme: FP8_DYNAMIC}\n"
        f"gate: {{suite: {suite}}}\n"
    )
    assert "not counted anywhere" in refused(cli, tmp_path, "gate", "--plan", recipe)
    other = cli("gate", "--plan", recipe, "--json", "--set", "gate.suite=smoke")
    assert json.loads(other.stdout)["documents"] == 2850
    told = refused(cli, tmp_path, "gate", "--plan", recipe, "--set", "gate.suiet=smoke")
    assert told.startswith("error: --set gate.suiet=smoke: unknown key 'gate.suiet'")


@pytest.mark.parametrize("reason", ["", "  "])
def test_publish_refuses_force_without_a_reason(cli: Cli, tmp_path: Path, model: Path, reason: str) -> None:
    arguments = ("publish", model, "--verdict", tmp_path / "verdict.json", "--to", tmp_path / "to", "--force", reason)
    assert refused(cli, tmp_path, *arguments) == (
        "error: --force: needs a reason\n    give it in quotes: it is written into the card\n"
    )


@pytest.mark.parametrize("command", [("run", "fp8", "--model"), ("evaluate",), ("verify",)])
def test_a_python_for_vllm_is_refused_where_vllm_does_not_run(
    cli: Cli, tmp_path: Path, model: Path, command: tuple[str, ...]
) -> None:
    told = refused(cli, tmp_path, *command, model, "--vllm-python", sys.executable)
    assert told == f"error: --vllm-python {sys.executable}: is not used by transformers\n    add --runtime vllm\n"
    told = refused(cli, tmp_path, *command, model, "--runtime", "vllm", "--vllm-python", model)
    assert told == f"error: --vllm-python {model}: is not a file\n    give the environment's bin/python\n"


def test_verify_refuses_what_quantize_did_not_make(cli: Cli, tmp_path: Path, model: Path) -> None:
    told = refused(cli, tmp_path, "verify", model)
    what = "is no artifact of quantgate: it holds no quantgate.json, and no result.json lies beside it"
    remedy = "give the folder that `run --to` published into, or that `quantize` printed"
    assert told == f"error: {model}: {what}\n    {remedy}\n"


def test_publish_refuses_what_quantize_did_not_make(cli: Cli, tmp_path: Path, model: Path) -> None:
    told = refused(cli, tmp_path, "publish", model, "--verdict", tmp_path / "verdict.json", "--to", tmp_path / "to")
    what = "is no artifact of quantgate: it holds no quantgate.json, and no result.json lies beside it"
    remedy = "give the folder that `run --to` published into, or that `quantize` printed"
    assert told == f"error: {model}: {what}\n    {remedy}\n"


def test_names_in_brackets_are_no_markup(cli: Cli, model: Path) -> None:
    named = model.rename(model.with_name("m[red]"))
    (named / "[").mkdir()
    (named / "[/b].py").write_text("x")
    done = cli("plan", "fp8", "--model", named, *PLAIN)
    assert done.returncode == 0, done.stderr
    assert "fp8 on m[red]" in done.stdout and "[/b].py" in done.stdout


# Environments


ENVIRONMENTS = (
    "vllm", "aiconfigurator", "guidellm", "gptqmodel", "modelopt", "auto-gptq", "autoawq", "llama-cpp", "llama-server"
)  # fmt: skip


def test_env_lists_what_there_is_and_knows_no_other(cli: Cli, tmp_path: Path) -> None:
    own = {"QUANTGATE_CACHE": str(tmp_path / "cache")}
    assert json.loads(cli("env", "list", "--json", **own).stdout) == [
        {"name": name, "place": None} for name in ENVIRONMENTS
    ]
    assert re.search(r"│ vllm +│ not made +│", cli("env", "list", **own).stdout)
    for command in ("make", "check", "remove"):
        told = refused(cli, tmp_path, "env", command, "vlm", **own)
        assert told == f"error: vlm: is not an environment\n    known: {', '.join(ENVIRONMENTS)}\n"


def test_an_environment_that_is_not_there_fails_its_check(cli: Cli, tmp_path: Path) -> None:
    own = {"QUANTGATE_CACHE": str(tmp_path / "cache")}
    done = cli("env", "check", "vllm", **own)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the environment vllm is not there; `quantgate env make vllm` makes it\n"
    assert cli("env", "remove", "vllm", **own).returncode == 0


# Paths and shares that cannot be


@pytest.mark.parametrize("share", ["0", "-1", "1", "nan", "inf"])
def test_a_gate_that_nothing_or_everything_passes_is_refused(cli: Cli, tmp_path: Path, share: str) -> None:
    done = cli("gate", tmp_path / "a.json", tmp_path / "b.json", f"--retention={share}")
    assert done.returncode == 2
    assert re.fullmatch(r"error: --retention \S+: is no share between 0\.5 and 1\n +give 0\.99\n", done.stderr)


@pytest.mark.parametrize("words", [("--to", "~nobody-here/x"), ("--model", "~nobody-here/x")])
def test_the_home_of_nobody_is_bad_input(cli: Cli, words: tuple[str, str]) -> None:
    done = cli("run", "fp8", *words)
    assert done.returncode == 2
    assert "~nobody-here/x: is below the home folder of a user who is not there" in done.stderr


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(QuantgateError, match=r"report\.md cannot be written: "):
        write_text(tmp_path / "report.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
