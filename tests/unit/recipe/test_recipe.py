"""What a YAML file may say, and what a person is told when it says something else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from pipelines.core.errors import BadInput
from pipelines.core.strict_yaml import MAX_FILE_BYTES, load
from pipelines.core.wheels import PINNED
from pipelines.formats.schemes import SCHEMES
from pipelines.recipe import library
from pipelines.recipe.calibration_set import CalibrationSet, PackageSource
from pipelines.recipe.load import load_recipe, load_set, load_suite, load_task
from pipelines.recipe.methods import Gguf, Gptq, Method, Rtn, Rule
from pipelines.recipe.recipe import Calibrate, Gate, Recipe
from pipelines.recipe.suite import Suite, Task

RTN = """\
version: 1
name: mine
summary: my own
quantize: {method: rtn, scheme: FP8_DYNAMIC}
"""
GPTQ = """\
version: 1
name: mine
summary: my own
quantize: {method: gptq, scheme: W4A16}
calibrate: {set: self}
"""
RULED = """\
version: 1
name: mine
summary: my own
quantize:
  method: gptq
  scheme: W8A16
  rules:
    - {match: [down_proj, "layer:-1"], scheme: W4A16}
calibrate: {set: self}
"""
SUITE = """\
version: 1
name: mine
summary: my own
tasks: [{task: boolq}]
"""
SET = """\
version: 1
name: mine
summary: my own
source: {kind: files, paths: [mine.txt]}
"""
RECIPE_KEYS = "known keys: calibrate, export, gate, name, quantize, summary, version"
RTN_KEYS = "known keys: engine, group_size, ignore, kv_cache, method, on_indivisible, rules, scheme"
A_SCHEME = f"Input should be {', '.join(map(repr, list(SCHEMES)[:-1]))} or {list(SCHEMES)[-1]!r}"


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, model: type[BaseModel] = Recipe, *overrides: str) -> set[str]:
    """What is wrong with a file, each problem as it is printed, with the file's folder left out."""
    with pytest.raises(BadInput) as caught:
        load(path, model, overrides)
    assert caught.value.exit_code == 2
    told = [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]
    assert len(told) == len(set(told)), "a problem is told twice"
    return set(told)


# What comes with quantgate


@pytest.mark.parametrize("name", library.names("recipe"))
def test_every_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary


@pytest.mark.parametrize("name", library.names("suite"))
def test_every_shipped_suite_loads_and_so_do_its_tasks(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert [load_task(task.task).task for task in suite.tasks] == [task.task for task in suite.tasks]


@pytest.mark.parametrize("name", library.names("set"))
def test_every_shipped_calibration_set_loads_and_its_package_is_pinned(name: str) -> None:
    chosen = load_set(name)
    assert chosen.name == name
    assert not isinstance(chosen.source, PackageSource) or chosen.source.package in PINNED


@pytest.mark.parametrize("name", library.names("task"))
def test_every_shipped_task_loads_and_its_package_is_pinned(name: str) -> None:
    task = load_task(name)
    assert task.task == name
    assert task.offline is None or task.offline.package in PINNED


def test_the_suite_that_a_recipe_gets_unless_it_names_one_is_shipped() -> None:
    assert Gate().suite in library.names("suite")


def test_a_task_without_a_file_gets_the_defaults() -> None:
    assert load_task("gsm8k") == Task(version=1, task="gsm8k", metric="acc", cluster=None, offline=None)


# Defaults


def test_what_a_recipe_leaves_out_is_filled_in() -> None:
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "mine",
            "summary": "",
            "quantize": {"method": "gptq", "scheme": "W4A16"},
            "calibrate": {"set": "self"},
        }
    )
    assert recipe.model_dump() == {
        "version": 1,
        "name": "mine",
        "summary": "",
        "quantize": {
            "method": "gptq",
            "scheme": "W4A16",
            "group_size": 128,
            "rules": (),
            "ignore": ("lm_head",),
            "on_indivisible": "error",
            "kv_cache": None,
            "engine": "quantgate",
            "smoothquant": None,
            "dampening": 0.01,
            "experimental_cpu": False,
        },
        "export": None,
        "calibrate": {"set": "self", "samples": 512, "seq_len": 2048, "seed": 42, "pack": True},
        "gate": {"suite": "core", "retention": 0.99},
    }


def group_size(recipe: Recipe) -> int | None:
    return target(recipe).group_size


def test_w4a16_has_groups_of_128_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, GPTQ)
    assert group_size(load(path, Recipe)) == 128
    assert group_size(load(path, Recipe, ["quantize.group_size=64"])) == 64


@pytest.mark.filterwarnings("ignore:A custom validator")
def test_w4a16_has_groups_of_128_when_made_in_python_too() -> None:
    assert Gptq(method="gptq", scheme="W4A16").group_size == 128


def test_rules_keep_their_order_and_say_which_schemes_there_are(tmp_path: Path) -> None:
    more = "    - {match: ['re:.*up_proj'], scheme: FP8_DYNAMIC}\n    - {match: [o_proj], scheme: W8A16}\n"
    recipe = load(write(tmp_path, RULED.replace("calibrate:", f"{more}calibrate:")), Recipe)
    assert recipe.method.rules == (
        Rule(match=("down_proj", "layer:-1"), scheme="W4A16", group_size=128),
        Rule(match=("re:.*up_proj",), scheme="FP8_DYNAMIC"),
        Rule(match=("o_proj",), scheme="W8A16"),
    )
    assert recipe.schemes == ("W8A16", "W4A16", "FP8_DYNAMIC")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(("text", "value"), [("1e-2", 0.01), ("5E-3", 0.005), ("0.02", 0.02), (".5", 0.5)])
def test_a_number_can_be_written_with_an_exponent(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, GPTQ.replace("W4A16", f"W4A16, dampening: {text}"))
    for recipe in (load(path, Recipe), load(write(tmp_path, GPTQ), Recipe, [f"quantize.dampening={text}"])):
        assert isinstance(recipe.quantize, Gptq)
        assert recipe.quantize.dampening == value


CHANNEL = "has one scale per channel"


@pytest.mark.parametrize(
    ("scheme", "default", "refused"),
    [
        ("FP8_DYNAMIC", None, CHANNEL),
        ("FP8_STATIC", None, CHANNEL),
        ("FP8_BLOCK", 128, ""),
        ("NVFP4", None, "has groups of 16"),
        ("NVFP4A16", None, "has groups of 16"),
        ("MXFP4", None, "has groups of 32"),
        ("W8A8", None, CHANNEL),
        ("W8A16", None, CHANNEL),
        ("W4A16", 128, ""),
        ("W4A16_ASYM", 128, ""),
        ("W4AFP8", 128, ""),
    ],
)
def test_a_group_size_can_be_given_where_the_scheme_leaves_one_to_choose(
    tmp_path: Path, scheme: str, default: int | None, refused: str
) -> None:
    for text, key, place in ((GPTQ, "quantize", "4:1"), (RULED, "quantize.rules.0", "8:7")):
        path = write(tmp_path, text.replace("W4A16}", f"{scheme}}}"))
        assert target(load(path, Recipe)).group_size == default
        write(tmp_path, text.replace("W4A16}", f"{scheme}, group_size: 64}}"))
        if refused:
            told = f"{key}: group_size does not apply to {scheme}, which {refused}; leave it out"
            assert problems(path) == {f"mine.yaml:{place}: {told}"}
        else:
            assert target(load(path, Recipe)).group_size == 64


def target(recipe: Recipe) -> Rule | Method:
    """The rule of a recipe that has one, else what it does to all modules."""
    assert not isinstance(recipe.quantize, Gguf)
    return recipe.quantize.rules[0] if recipe.quantize.rules else recipe.quantize


def test_a_recipe_loaded_from_its_own_dump_is_the_same(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GPTQ), Recipe)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GPTQ), Recipe)
    assert isinstance(recipe.quantize, Gptq)
    assert isinstance(recipe.calibrate, Calibrate)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        recipe.quantize.group_size = 32
    with pytest.raises(ValidationError, match="frozen"):
        recipe.calibrate.samples = 1


# Which recipes need text


@pytest.mark.parametrize(
    ("quantize", "needs"),
    [
        ("method: rtn, scheme: FP8_DYNAMIC", ""),
        ("method: rtn, scheme: MXFP4", ""),
        ("method: rtn, scheme: W4A16_ASYM", ""),
        ("method: rtn, scheme: NVFP4A16, rules: [{match: [down_proj], scheme: W8A8}]", ""),
        ("method: rtn, scheme: FP8_STATIC", "the scale of activations"),
        ("method: rtn, scheme: NVFP4", "the scale of activations"),
        ("method: rtn, scheme: FP8_DYNAMIC, kv_cache: FP8", "the scale of activations"),
        ("method: rtn, scheme: W8A16, rules: [{match: [down_proj], scheme: NVFP4}]", "the scale of activations"),
        ("method: gptq, scheme: FP8_DYNAMIC", "method gptq"),
        ("method: gptq, scheme: NVFP4, kv_cache: FP8", "method gptq"),
        ("method: awq, scheme: W4A16", "method awq"),
        ("method: awq, scheme: W8A16, rules: [{match: [down_proj], scheme: W4A16_ASYM}]", "method awq"),
    ],
)
def test_a_recipe_has_a_calibration_set_when_it_needs_one_and_only_then(
    tmp_path: Path, quantize: str, needs: str
) -> None:
    without = RTN.replace("method: rtn, scheme: FP8_DYNAMIC", quantize)
    right, wrong = without, without + "calibrate: {set: self}\n"
    told = "method rtn uses no data with this scheme: remove the 'calibrate' block, or --set calibrate=null"
    if needs:
        right, wrong = wrong, right
        block = "{set: passages, samples: 128, seq_len: 512}"
        told = f"{needs} needs calibration: add a 'calibrate' block, for example {block}"
    recipe = load(write(tmp_path, right), Recipe)
    assert recipe.calibrated == bool(needs) == (recipe.calibrate is not None)
    assert problems(write(tmp_path, wrong)) == {f"mine.yaml:1:1: {told}"}
    if needs:
        load(write(tmp_path, f"{wrong}calibrate: {block}\n"), Recipe)


# One mistake at a time


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RTN + "gaet: {suite: smoke}\n", "mine.yaml:5:1: unknown key 'gaet'\n    did you mean 'gate'?"),
        (RTN + "xyz: 1\n", f"mine.yaml:5:1: unknown key 'xyz'\n    {RECIPE_KEYS}"),
        (
            RTN.replace("scheme", "sheme: a, scheme"),
            "mine.yaml:4:25: unknown key 'quantize.sheme'\n    did you mean 'scheme'?",
        ),
        (
            RTN.replace("}", ", smoothquant: 0.5}"),
            f"mine.yaml:4:46: unknown key 'quantize.smoothquant'\n    {RTN_KEYS}",
        ),
        (
            GPTQ.replace("self}", "self, sampels: 4}"),
            "mine.yaml:5:24: unknown key 'calibrate.sampels'\n    did you mean 'samples'?",
        ),
        (RTN.replace("name: mine\n", ""), "mine.yaml:1:1: key 'name' is missing"),
        (GPTQ.replace("set: self", "seed: 1"), "mine.yaml:5:1: key 'calibrate.set' is missing"),
        (RTN.replace("version: 1", "version: 2"), "mine.yaml:1:1: version: Input should be 1"),
        (RTN.replace("my own", "[a]"), "mine.yaml:3:1: summary: Input should be a valid string"),
        (RTN.replace("mine", "5"), "mine.yaml:2:1: name: Input should be a valid string"),
        (
            RTN.replace("mine", "../mine"),
            "mine.yaml:2:1: name: String should match pattern '^[a-z0-9][a-z0-9._-]*$'",
        ),
        (
            GPTQ.replace("self}", "self, samples: [64]}"),
            "mine.yaml:5:24: calibrate.samples: Input should be a valid integer",
        ),
        (
            GPTQ.replace("self}", "self, samples: 0}"),
            "mine.yaml:5:24: calibrate.samples: Input should be greater than 0",
        ),
        (RTN + "gate: {retention: 1.5}\n", "mine.yaml:5:8: gate.retention: Input should be less than 1"),
        (RTN + "gate: {retention: .nan}\n", "mine.yaml:5:8: gate.retention: Input should be less than 1"),
        (
            RTN.replace("rtn", "gtpq"),
            "mine.yaml:4:12: 'quantize.method' is 'gtpq'\n    did you mean gptq?",
        ),
        (RTN.replace("FP8_DYNAMIC", "FP9"), f"mine.yaml:4:25: quantize.scheme: {A_SCHEME}"),
        (
            GPTQ.replace("W4A16", "W4A16, ignore: [lm_head, 7]"),
            "mine.yaml:4:59: quantize.ignore.1: Input should be a valid string",
        ),
        (
            GPTQ.replace("W4A16", "W4A16, ignore: ['re:(']"),
            "mine.yaml:4:41: quantize.ignore: 're:(' is not a regular expression: "
            "missing ), unterminated subpattern at position 0",
        ),
        (RTN + "name: again\n", "mine.yaml:5:1: key 'name' is given twice"),
        (
            RTN.replace("FP8_DYNAMIC", "FP8_DYNAMIC, ignore: [lm_head, '']"),
            "mine.yaml:4:46: quantize.ignore: a pattern is empty and means no module; leave it out, or name one, for "
            "example lm_head",
        ),
        (
            RTN.replace("FP8_DYNAMIC", "W4A16, group_size: 3"),
            "mine.yaml:4:1: quantize: group_size 3 is no multiple of 16; give one, for example 32, 64 or 128",
        ),
        (
            RTN.replace("FP8_DYNAMIC", 'FP8_DYNAMIC, ignore: ["\\ud800"]'),
            "mine.yaml:4:55: holds half a character (a lone surrogate), which is no text\n    write the text in UTF-8",
        ),
        (
            RULED.replace("match", "macth"),
            {
                "mine.yaml:8:8: unknown key 'quantize.rules.0.macth'\n    did you mean 'match'?",
                "mine.yaml:8:7: key 'quantize.rules.0.match' is missing",
            },
        ),
        (
            RULED.replace('[down_proj, "layer:-1"]', "[]"),
            "mine.yaml:8:8: quantize.rules.0.match: Tuple should have at least 1 item after validation, not 0",
        ),
        (
            RULED.replace("layer:-1", "layer:last"),
            "mine.yaml:8:8: quantize.rules.0.match: 'layer:last' is not of the form layer:N, for example layer:0 or "
            "layer:-1",
        ),
        (
            RULED.replace("W4A16", "W4A4"),
            f"mine.yaml:8:40: quantize.rules.0.scheme: {A_SCHEME}\n    did you mean W4A16 or W4AFP8?",
        ),
        (RTN.replace("}", ", kv_cache: INT8}"), "mine.yaml:4:46: quantize.kv_cache: Input should be 'FP8'"),
        (
            GPTQ.replace("W4A16", "W4A16, on_indivisible: pad"),
            "mine.yaml:4:41: quantize.on_indivisible: Input should be 'error', 'skip' or 'shrink'",
        ),
        *(
            (
                text.replace("gptq", "awq"),
                "mine.yaml:4:1: quantize: method awq is for integer weights and 16-bit activations, which "
                f"{scheme} is not",
            )
            for text, scheme in (
                (GPTQ.replace("W4A16", "W8A8"), "W8A8"),
                (GPTQ.replace("W4A16", "NVFP4A16"), "NVFP4A16"),
                (RULED.replace("scheme: W4A16", "scheme: W4AFP8"), "W4AFP8"),
            )
        ),
    ],
)
def test_a_mistake_is_told_with_file_line_column_and_remedy(tmp_path: Path, text: str, told: str | set[str]) -> None:
    assert problems(write(tmp_path, text)) == ({told} if isinstance(told, str) else told)


def test_a_key_that_is_no_text_is_told_where_it_stands(tmp_path: Path) -> None:
    (told,) = problems(write(tmp_path, RTN + "5: a number\n"))
    assert told.startswith("mine.yaml:5:1: ")


def test_a_missing_method_is_told_where_it_belongs(tmp_path: Path) -> None:
    (told,) = problems(write(tmp_path, RTN.replace("method: rtn, ", "")))
    assert told.startswith("mine.yaml:4:1: key 'quantize.method' is missing")


def test_columns_count_from_one_in_nested_blocks_too(tmp_path: Path) -> None:
    text = RTN + "gate:\n    suite: smoke\n    retenton: 0.9\n"
    assert problems(write(tmp_path, text)) == {
        "mine.yaml:7:5: unknown key 'gate.retenton'\n    did you mean 'retention'?"
    }


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_endings_do_not_shift_places(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes((RTN + "gaet: 1\n").replace("\n", ending).encode())
    assert problems(path) == {"mine.yaml:5:1: unknown key 'gaet'\n    did you mean 'gate'?"}


def test_the_place_of_an_item_of_a_list_is_its_own(tmp_path: Path) -> None:
    text = SUITE.replace(
        "[{task: boolq}]", "\n  - {task: boolq, limt: 5}\n  - {task: sciq}\n  - {task: copa, shots: -1}"
    )
    assert problems(write(tmp_path, text), Suite) == {
        "mine.yaml:5:19: unknown key 'tasks.0.limt'\n    did you mean 'limit'?",
        "mine.yaml:7:18: tasks.2.shots: Input should be greater than or equal to 0",
    }


def test_a_suite_with_a_task_twice_is_refused(tmp_path: Path) -> None:
    text = SUITE.replace("[{task: boolq}]", "[{task: boolq}, {task: boolq, shots: 5}]")
    assert problems(write(tmp_path, text), Suite) == {"mine.yaml:4:1: tasks: task given twice: boolq"}


def test_a_suite_without_tasks_is_refused(tmp_path: Path) -> None:
    (told,) = problems(write(tmp_path, SUITE.replace("[{task: boolq}]", "[]")), Suite)
    assert told.startswith("mine.yaml:4:1: tasks: ")


def test_an_unknown_kind_of_source_is_told_with_the_known_ones(tmp_path: Path) -> None:
    assert problems(write(tmp_path, SET.replace("files", "fils", 1)), CalibrationSet) == {
        "mine.yaml:4:10: 'source.kind' is 'fils'\n    did you mean files?"
    }


def test_a_hub_source_names_exactly_one_column(tmp_path: Path) -> None:
    told = "mine.yaml:4:1: source: give exactly one of 'text' and 'messages': the column to read"
    for columns in ("", ", text: a, messages: b"):
        path = write(tmp_path, SET.replace("kind: files, paths: [mine.txt]", "kind: hub, id: a/b" + columns))
        assert problems(path, CalibrationSet) == {told}


def test_the_place_is_right_where_a_tag_is_also_a_key(tmp_path: Path) -> None:
    text = SET.replace("kind: files, paths: [mine.txt]", "kind: package, package: p, files: {}")
    (told,) = problems(write(tmp_path, text), CalibrationSet)
    assert told.startswith("mine.yaml:4:37: source.files: ")


def test_an_infinite_weight_is_refused(tmp_path: Path) -> None:
    told = problems(write(tmp_path, SUITE.replace("boolq", "boolq, weight: .inf")), Suite)
    assert any(problem.startswith("mine.yaml:4:23: tasks.0.weight: ") for problem in told)


def test_a_list_whose_items_are_all_wrong_is_not_called_too_short(tmp_path: Path) -> None:
    assert problems(write(tmp_path, SUITE.replace("boolq", "boolq, limt: 5")), Suite) == {
        "mine.yaml:4:23: unknown key 'tasks.0.limt'\n    did you mean 'limit'?"
    }


@pytest.mark.parametrize("setting", ["samples: true", "samples: '64'", "pack: 'yes'", "pack: 1", "seed: '7'"])
def test_a_value_of_another_type_is_not_converted(tmp_path: Path, setting: str) -> None:
    key = setting.partition(":")[0]
    (told,) = problems(write(tmp_path, GPTQ.replace("self}", f"self, {setting}}}")))
    assert told.startswith(f"mine.yaml:5:24: calibrate.{key}: ")


# All mistakes at once


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = """\
version: 1
name: mine
quantize:
  method: gptq
  scheme: W8A9
  dampning: 0.02
calibrate: {set: self, samples: [64]}
gtae: {suite: smoke}
"""
    assert problems(write(tmp_path, text)) == {
        "mine.yaml:1:1: key 'summary' is missing",
        f"mine.yaml:5:3: quantize.scheme: {A_SCHEME}\n    did you mean W8A8 or W8A16?",
        "mine.yaml:6:3: unknown key 'quantize.dampning'\n    did you mean 'dampening'?",
        "mine.yaml:7:24: calibrate.samples: Input should be a valid integer",
        "mine.yaml:8:1: unknown key 'gtae'\n    did you mean 'gate'?",
    }


def test_every_doubled_key_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = RTN.replace("}", ", method: gptq}") + "summary: again\nname: again\n"
    assert problems(write(tmp_path, text)) == {
        "mine.yaml:4:46: key 'method' is given twice",
        "mine.yaml:5:1: key 'summary' is given twice",
        "mine.yaml:6:1: key 'name' is given twice",
    }


# What is no plain YAML mapping


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (RTN.replace("my own", "&a my own"), "3:10"),
        (RTN + "gate: *a\n", "5:7"),
        (RTN.replace("my own", "!!python/object/apply:os.system [exit]"), "3:10"),
        (RTN.replace("my own", "!!str 5"), "3:10"),
        (RTN.replace("{method", "!mine {method"), "4:11"),
    ],
)
def test_anchors_aliases_and_tags_are_refused(tmp_path: Path, text: str, place: str) -> None:
    told = f"mine.yaml:{place}: anchors, aliases and tags are not allowed\n    write the value out"
    assert problems(write(tmp_path, text)) == {told}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "a word\n", "5\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(write(tmp_path, text)) == {"mine.yaml: is not a YAML mapping of keys to values"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RTN + "gate: {suite: smoke\n", "6:1: is not valid YAML: expected ',' or '}', but got '<stream end>'"),
        (RTN + "gate:\n\tsuite: a\n", "6:1: is not valid YAML: found character '\\t' that cannot start any token"),
        (RTN + "---\nversion: 1\n", "5:1: is not valid YAML: but found another document"),
        (RTN + "name mine\n", "6:1: is not valid YAML: could not find expected ':'"),
    ],
)
def test_invalid_yaml_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert problems(write(tmp_path, text)) == {f"mine.yaml:{told}"}


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, RTN + "# " + "x" * MAX_FILE_BYTES + "\n")
    assert problems(path) == {"mine.yaml: is larger than 1048576 bytes; this is no hand-written file"}


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(RTN.encode() + b"summary: caf\xe9\n")
    (told,) = problems(path)
    assert told.startswith("mine.yaml: cannot be read: 'utf-8' codec can't decode byte 0xe9")


@pytest.mark.parametrize(
    "text",
    [
        RTN.replace("my own", "a\x07bell"),
        RTN.replace("my own", "2024-99-99"),
        RTN.replace("my own", "0x_"),
        RTN.replace("my own", "="),
        RTN + "<<: {name: merged}\n",
        RTN + "? [a, list]\n: 1\n",
        RTN + "? {a: mapping}\n: 1\n",
        RTN + "deep: " + "[" * 3000 + "]" * 3000 + "\n",
    ],
    ids=["control character", "no date", "no number", "value key", "merge key", "list key", "mapping key", "deep"],
)
def test_a_value_that_yaml_cannot_construct_is_bad_input(tmp_path: Path, text: str) -> None:
    (told,) = problems(write(tmp_path, text))
    assert told.startswith("mine.yaml")


# --set


def test_overrides_are_applied_in_order_and_parsed_as_yaml(tmp_path: Path) -> None:
    overrides = [
        "summary=first",
        "summary=second",
        "quantize.ignore=[lm_head, 're:.*down_proj']",
        "calibrate.samples=64",
        "calibrate.pack=false",
        "gate.retention=0.95",
    ]
    recipe = load(write(tmp_path, GPTQ), Recipe, overrides)
    assert recipe.summary == "second"
    assert recipe.method.ignore == ("lm_head", "re:.*down_proj")
    assert recipe.calibrate == Calibrate(set="self", samples=64, pack=False)
    assert recipe.gate == Gate(retention=0.95)


def test_an_override_can_add_a_block_and_take_one_away(tmp_path: Path) -> None:
    added = load(write(tmp_path, RTN), Recipe, ["quantize.method=gptq", "calibrate.set=self"])
    assert isinstance(added.quantize, Gptq)
    assert added.calibrate == Calibrate(set="self")
    taken = load(write(tmp_path, GPTQ), Recipe, ["quantize={method: rtn, scheme: FP8_DYNAMIC}", "calibrate=null"])
    assert taken.quantize == Rtn(method="rtn", scheme="FP8_DYNAMIC")
    assert taken.calibrate is None


def test_an_override_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, GPTQ)
    load(path, Recipe, ["calibrate.samples=64"])
    assert path.read_text() == GPTQ


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("calibrate.sampels=4", "calibrate.sampels=4: unknown key 'calibrate.sampels'\n    did you mean 'samples'?"),
        ("calibrate.samples=-4", "calibrate.samples=-4: calibrate.samples: Input should be greater than 0"),
        ("quantize.method=rtm", "quantize.method=rtm: 'quantize.method' is 'rtm'\n    did you mean rtn?"),
        (
            "quantize.method=xxx",
            "quantize.method=xxx: 'quantize.method' is 'xxx'\n    known: 'rtn', 'gptq', 'awq', 'gguf'",
        ),
        (
            "calibrate=null",
            "calibrate=null (with mine.yaml:1:1): method gptq needs calibration: add a 'calibrate' block, for example "
            "{set: passages, samples: 128, seq_len: 512}",
        ),
        (
            "quantize.method=rtn",
            "quantize.method=rtn (with mine.yaml:1:1): method rtn uses no data with this scheme: remove the "
            "'calibrate' block, or --set calibrate=null",
        ),
        ("group_size=64", "group_size=64: unknown key 'group_size'\n    did you mean 'quantize.group_size'?"),
        ("gaet=x", "gaet=x: unknown key 'gaet'\n    did you mean 'gate'?"),
        ("gate.suite=5", "gate.suite=5: gate.suite: Input should be a valid string"),
        ("summary", "summary: is not of the form key=value\n    for example --set calibrate.samples=64"),
        ("=4", "=4: is not of the form key=value\n    for example --set calibrate.samples=64"),
        ("gate..x=4", "gate..x=4: is not of the form key=value\n    for example --set calibrate.samples=64"),
    ],
)
def test_a_mistake_in_an_override_is_blamed_on_it(tmp_path: Path, override: str, told: str) -> None:
    assert problems(write(tmp_path, GPTQ), Recipe, override) == {f"--set {told}"}


def test_mistakes_of_the_file_and_of_overrides_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path, GPTQ + "gaet: 1\n")
    assert problems(path, Recipe, "calibrate.samples=-4", "quantize.dampening=2") == {
        "mine.yaml:6:1: unknown key 'gaet'\n    did you mean 'gate'?",
        "--set calibrate.samples=-4: calibrate.samples: Input should be greater than 0",
        "--set quantize.dampening=2: quantize.dampening: Input should be less than 1",
    }


def test_a_mistake_of_the_file_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, RTN + "calibrate: {set: self}\n")
    (alone,) = problems(path)
    assert problems(path, Recipe, "gate.retention=0.9", "calibrate.samples=4") == {alone}


def test_a_key_of_the_file_that_an_override_makes_unknown_is_told_with_both(tmp_path: Path) -> None:
    told = problems(write(tmp_path, GPTQ), Recipe, "quantize.method=gguf")
    unknown, missing = sorted(told, key=len, reverse=True)
    assert unknown.startswith("--set quantize.method=gguf (with mine.yaml:4:26): unknown key 'quantize.scheme'\n")
    assert missing == "--set quantize.method=gguf (with mine.yaml:4:1): key 'quantize.type' is missing"


def test_every_override_that_an_error_may_be_due_to_is_named(tmp_path: Path) -> None:
    (told,) = problems(write(tmp_path, RTN), Recipe, "calibrate={set: self}", "gate.retention=0.9")
    assert told.startswith("--set calibrate={set: self}, --set gate.retention=0.9 (with mine.yaml:1:1): method rtn")


def test_an_override_that_is_no_line_is_named_by_its_key(tmp_path: Path) -> None:
    for value in ("a\nb", "a" * 500):
        told = problems(write(tmp_path, RTN), Recipe, f"gate.retention={value}")
        assert told == {"--set gate.retention: gate.retention: Input should be a valid number"}


def test_a_mistake_in_a_block_given_by_an_override_is_blamed_on_it(tmp_path: Path) -> None:
    override = "quantize={method: gptq, scheme: W4A4}"
    assert problems(write(tmp_path, GPTQ), Recipe, override) == {
        f"--set {override}: quantize.scheme: {A_SCHEME}\n    did you mean W4A16 or W4AFP8?"
    }


def test_an_override_that_looks_like_a_date_but_is_none_is_text(tmp_path: Path) -> None:
    assert load(write(tmp_path, RTN), Recipe, ["summary=2024-99-99"]).summary == "2024-99-99"


# Names


@pytest.mark.parametrize(
    ("kind", "text", "load_it"),
    [("recipe", RTN, load_recipe), ("suite", SUITE, load_suite), ("set", SET, load_set)],
)
def test_what_the_library_finds_by_a_name_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: library.Kind, text: str, load_it: Callable[[str], object]
) -> None:
    home = library.folder(kind)
    monkeypatch.setitem(library.FOLDERS, kind, str(tmp_path))
    assert library.folder(kind) == tmp_path != home
    file = write(tmp_path, text, "other.yaml")
    with pytest.raises(BadInput) as caught:
        load_it("other")
    told = f"{file}:2:1: name is 'mine', and the {kind} is found as 'other'\n    rename the file, or write name: other"
    assert str(caught.value) == told
    (tmp_path / "mine.txt").touch()
    assert load_it(str(file)), "by its path, it may have any"
    file.rename(tmp_path / "mine.yaml")
    assert load_it("mine")


def test_an_override_may_call_a_recipe_of_the_library_otherwise() -> None:
    assert load_recipe("fp8", ["name=mine"]).name == "mine"


def test_an_unknown_name_is_told_with_the_nearest_ones() -> None:
    for kind, wrong, near in (
        ("recipe", "fp9", "fp8"),
        ("recipe", "FP8", "fp8"),
        ("suite", "smok", "smoke"),
        ("set", "slef", "self"),
        ("task", "boolqq", "boolq"),
    ):
        with pytest.raises(BadInput) as caught:
            library.find(kind, wrong)  # type: ignore[arg-type]
        told = str(caught.value)
        assert told.startswith(f"{wrong}: there is no {kind} of this name\n    did you mean {near}")


def test_a_name_that_resembles_none_is_told_with_all_names() -> None:
    with pytest.raises(BadInput) as caught:
        library.find("recipe", "@@@")
    names = ", ".join(library.names("recipe"))
    assert str(caught.value) == f"@@@: there is no recipe of this name\n    there are: {names}"


@pytest.mark.parametrize("name", ["../recipes/fp8", "fp8/", ".", "", "/etc/passwd"])
def test_a_name_is_never_a_way_to_a_file_outside_the_library(name: str) -> None:
    with pytest.raises(BadInput, match="there is no recipe of this name"):
        library.find("recipe", name)


def test_an_unknown_suite_is_found_when_the_recipe_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, RTN + "gate: {suite: smokee}\n")
    with pytest.raises(BadInput, match=r"there is no suite of this name.*\n    did you mean smoke"):
        load_recipe(path)


def test_an_unknown_calibration_set_is_found_when_the_recipe_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, GPTQ.replace("self", "slef") + "gate: {suite: smoke}\n")
    with pytest.raises(BadInput, match=r"there is no set of this name.*\n    did you mean self"):
        load_recipe(path)


def test_a_mistake_in_the_suite_of_a_recipe_is_found_when_the_recipe_is_loaded(tmp_path: Path) -> None:
    suite = write(tmp_path, SUITE + "polcy: {}\n", "suite.yaml")
    path = write(tmp_path, RTN + f"gate: {{suite: {suite}}}\n")
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{suite}:5:1: unknown key 'polcy'\n    did you mean 'policy'?"


def test_an_unknown_suite_and_an_unknown_set_are_told_together_and_where(tmp_path: Path) -> None:
    path = write(tmp_path, GPTQ.replace("self", "slef") + "gate: {suite: smokee}\n")
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:6:8", f"{path}:5:13"]


def test_a_recipe_a_suite_and_a_set_of_the_users_own_work_by_path(tmp_path: Path) -> None:
    suite, chosen = write(tmp_path, SUITE, "suite.yaml"), write(tmp_path, SET, "set.yml")
    (tmp_path / "mine.txt").touch()
    path = write(tmp_path, GPTQ.replace("self", str(chosen)) + f"gate: {{suite: {suite}}}\n")
    recipe = load_recipe(path)
    assert recipe == load_recipe(str(path))
    assert recipe.name == "mine"
    assert load_suite(recipe.gate.suite).tasks[0].task == "boolq"
    assert recipe.calibrate is not None
    assert load_set(recipe.calibrate.set).source.kind == "files"


def test_a_path_to_no_file_is_told_as_such(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path / "folder.yaml"):
        (tmp_path / "folder.yaml").mkdir(exist_ok=True)
        with pytest.raises(BadInput) as caught:
            load_recipe(path)
        assert str(caught.value).startswith(f"{path}: there is no such recipe file\n    give the path of a file, or")
    with pytest.raises(BadInput, match=r"no such recipe file\n    did you mean fp8, which comes with quantgate\?"):
        load_recipe(tmp_path / "fp8.yaml")
    write(tmp_path, RTN)
    with pytest.raises(BadInput, match=r"no such recipe file\n    did you mean .*mine\.yaml\?"):
        load_recipe(tmp_path / "mne.yaml")


@pytest.mark.parametrize("setting", ["summary=a\udced\udca0", 'summary="\\ud800"', "sum\ud800mary=a"])
def test_half_a_character_in_an_override_is_blamed_on_it(tmp_path: Path, setting: str) -> None:
    (problem,) = problems(write(tmp_path, RTN), Recipe, setting)
    option = setting if setting.isprintable() else setting.partition("=")[0]
    assert problem.startswith(f"--set {option}: holds half a character (a lone surrogate), which is no text\n")
