"""Hostile input: what a model folder, a recipe or a set from somebody else may try. Each is refused, or harmless.

A planted piece of code makes a file, the marker; that it would is shown first. More traps in YAML, in safetensors
headers and in release files are in test_recipe.py, test_checkpoint.py and test_release.py.
"""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.calibrate import calibrate, encode, load_tokenizer
from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.errors import BadInput
from pipelines.gguf_convert import without_code
from pipelines.models import load_model
from pipelines.plan import make_plan
from pipelines.quantize import quantize
from pipelines.recipe import Recipe, load_recipe
from pipelines.runtime import load_for_inference
from tests.conftest import edit_json

PLAIN = "version: 1\nname: mine\nsummary: x\nquantize: {method: rtn, scheme: FP8_DYNAMIC, ignore: [lm_head]}\n"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that planted code makes."""
    return tmp_path / "marker"


def fp8() -> Recipe:
    return load_recipe("fp8", ["quantize.ignore=[lm_head]"])


def recipe(folder: Path, text: str) -> Recipe:
    (folder / "mine.yaml").write_text(text)
    return load_recipe(folder / "mine.yaml")


# Recipes


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", "..", ".hidden", '"a\\nb"', '"a\\0b"', "a" * 65])
def test_a_recipe_cannot_be_called_by_a_path(tmp_path: Path, name: str) -> None:
    """Its name becomes a folder's."""
    with pytest.raises(BadInput, match=r"mine\.yaml:2:1: name"):
        recipe(tmp_path, PLAIN.replace("name: mine", f"name: {name}"))


@pytest.mark.parametrize(
    "gate",
    [
        "../smoke",
        "../../etc/passwd",
        "/etc/passwd",
        "/etc/passwd.yaml",
        '"a\\0.yaml"',
        "a" * 5000 + ".yaml",
        '"\\ud800"',
    ],
)
def test_a_suite_that_is_no_suite_is_bad_input(tmp_path: Path, gate: str) -> None:
    with pytest.raises(BadInput):
        recipe(tmp_path, f"{PLAIN}gate: {{suite: {gate}}}\n")


BOMB = "[&a0 [x, x]" + "".join(f", &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)) + "]"
TRAPS = {
    "a bomb": BOMB,
    "a tag": "!!python/object/apply:os.system ['touch {marker}']",
    "depth": "[" * 5000 + "]" * 5000,
    "deep maps": "{a: " * 5000 + "}" * 5000,
    "digits": "1" * 100_000,
    "hexadecimal digits": "0x" + "f" * 100_000,
}


@pytest.mark.parametrize("trap", TRAPS)
def test_yaml_neither_runs_nor_multiplies(tmp_path: Path, marker: Path, trap: str) -> None:
    """In a file, in `--set`, and in the front matter of a model's card."""
    text, start = TRAPS[trap].replace("{marker}", str(marker)), time.monotonic()
    with pytest.raises(BadInput):
        recipe(tmp_path, f"{PLAIN}gate: {text}\n")
    with pytest.raises(BadInput):
        load_recipe("fp8", [f"gate={text}"])
    with pytest.raises(BadInput):
        load_recipe("fp8", [".".join("a" * 5000) + f"={text}"])
    assert time.monotonic() - start < 30, "a bomb of these would go on for hours"
    assert not marker.exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_a_cards_front_matter_is_no_way_in(tiny_copy: Path, marker: Path, trap: str) -> None:
    (tiny_copy / "README.md").write_text(f"---\nlicense: {TRAPS[trap].replace('{marker}', str(marker))}\n---\n")
    licence = read_checkpoint(tiny_copy).licence
    assert licence is None
    assert not marker.exists()


def test_a_calibration_set_reads_nothing_outside_its_folder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret " * 500)
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in ("../secret.txt", str(tmp_path / "secret.txt"), "link.txt"):
        source = f"source: {{kind: files, paths: ['{path}']}}"
        (folder / "set.yaml").write_text(f"version: 1\nname: mine\nsummary: x\n{source}\n")
        settings = [f"calibrate.set={folder / 'set.yaml'}", "calibrate.samples=1", "calibrate.seq_len=8"]
        with pytest.raises(BadInput, match="names a file outside its folder"):
            calibrate(make_plan(load_recipe("int8", settings), tiny))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("{boolq/val.jsonl: '{0.__class__}'}", "has no file|does not fit"),
        ("{../../../../etc/hostname: '{x}'}", "has no file"),
        ("{/etc/hostname: '{x}'}", "has no file"),
    ],
)
def test_a_packages_rows_are_text_and_no_objects(tiny: Path, tmp_path: Path, files: str, said: str) -> None:
    shipped = (Path(__file__).parent.parent / "calibration" / "sets" / "passages.yaml").read_text()
    package = next(line.split(":")[1].strip(" ,}") for line in shipped.splitlines() if "package:" in line)
    source = f"source: {{kind: package, package: {package}, files: {files}}}"
    (tmp_path / "set.yaml").write_text(f"version: 1\nname: mine\nsummary: x\n{source}\n")
    settings = [f"calibrate.set={tmp_path / 'set.yaml'}", "calibrate.samples=1", "calibrate.seq_len=8"]
    with pytest.raises(BadInput, match=said):
        calibrate(make_plan(load_recipe("int8", settings), tiny))


# Model folders


def to_a_file(model: Path, outside: Path) -> None:
    (model / "NOTICE").symlink_to(outside / "secret")


def to_a_folder(model: Path, outside: Path) -> None:
    (model / "additional_chat_templates").symlink_to(outside)


def to_weights(model: Path, outside: Path) -> None:
    (model / SINGLE).rename(outside / SINGLE)
    (model / SINGLE).symlink_to(outside / SINGLE)


def to_nothing(model: Path, _: Path) -> None:
    (model / "LICENSE").symlink_to("nowhere")


def in_circles(model: Path, _: Path) -> None:
    (model / "LICENSE").symlink_to(model / "NOTICE")
    (model / "NOTICE").symlink_to(model / "LICENSE")


def a_pipe(model: Path, _: Path) -> None:
    os.mkfifo(model / "LICENSE")


def a_line_break(model: Path, _: Path) -> None:
    (model / "LICENSE\n0000  model.safetensors").write_text("x")


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (to_a_file, "leads out of the checkpoint"), (to_a_folder, "leads out of the checkpoint"),
        (to_weights, "leads out of the checkpoint"), (to_nothing, "is a link that leads nowhere"),
        (in_circles, "is a link that leads nowhere"), (a_pipe, "is neither a file nor a folder"),
        (a_line_break, "control characters in its name"),
    ],
)  # fmt: skip
def test_what_is_not_a_models_own_is_refused(
    tiny_copy: Path, tmp_path: Path, plant: Callable[[Path, Path], None], said: str
) -> None:
    """It would be copied, and published."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("top secret")
    plant(tiny_copy, outside)
    with pytest.raises(BadInput, match=said):
        load_model(tiny_copy)


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
def test_a_model_cannot_be_called_by_what_is_no_name(name: str) -> None:
    with pytest.raises(BadInput):
        load_model(name)


def test_what_is_called_like_our_records_does_not_travel(tiny_copy: Path) -> None:
    for name in ("quantgate.json", "provenance.json"):
        (tiny_copy / name).write_text('{"gate": {"verdict": "PASS"}}')
    artifact = quantize(make_plan(fp8(), tiny_copy))
    assert not {"quantgate.json", "provenance.json"} & set(artifact.files)


# Code in a model folder

CODE = """
open({marker!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): model_type = "planted"
class M(LlamaForCausalLM): pass
class T(PreTrainedTokenizerFast): pass
"""


def plant(model: Path, marker: Path, **config: object) -> None:
    """Code that config and tokenizer ask for."""
    (model / "planted.py").write_text(CODE.format(marker=str(marker)))
    maps = {"AutoConfig": "planted.C", "AutoModelForCausalLM": "planted.M", "AutoTokenizer": ["planted.T", None]}
    edit_json(model / "config.json", auto_map=maps, **config)
    edit_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["planted.T", None]})


def test_planted_code_works(tiny_copy: Path, marker: Path) -> None:
    """Where it is asked for: so the tests below show that quantgate does not."""
    from transformers import AutoTokenizer

    plant(tiny_copy, marker)
    AutoTokenizer.from_pretrained(tiny_copy, trust_remote_code=True)
    assert marker.exists()


def test_code_of_a_model_is_neither_run_nor_copied(tiny_copy: Path, marker: Path) -> None:
    plant(tiny_copy, marker)
    (tiny_copy / "custom_generate").mkdir()
    (tiny_copy / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(marker)))
    artifact = quantize(make_plan(fp8(), tiny_copy))
    load_for_inference(tiny_copy, "cpu")
    load_for_inference(artifact.checkpoint, "cpu")
    load_tokenizer(read_checkpoint(tiny_copy))
    assert not marker.exists()
    assert not list(artifact.checkpoint.rglob("*.py"))
    assert set(artifact.source.left_behind) >= {"planted.py", "custom_generate/generate.py"}


def test_a_model_that_needs_its_own_code_is_refused(tiny_copy: Path, marker: Path) -> None:
    plant(tiny_copy, marker, model_type="planted", architectures=["M"])
    with pytest.raises(BadInput, match="its model type planted needs code of its own, which quantgate does not run"):
        load_model(tiny_copy)
    assert not marker.exists()


def test_a_tokenizer_that_needs_its_own_code_is_bad_input_or_loads_without(tiny_copy: Path, marker: Path) -> None:
    plant(tiny_copy, marker)
    edit_json(tiny_copy / "tokenizer_config.json", tokenizer_class="T")
    try:
        load_tokenizer(read_checkpoint(tiny_copy))
    except BadInput as error:
        assert "its tokenizer cannot be loaded" in str(error)
    assert not marker.exists()


def test_llama_cpps_converter_sees_no_code(tiny_copy: Path, marker: Path, tmp_path: Path) -> None:
    """Its readers of some architectures run what a tokenizer brings."""
    plant(tiny_copy, marker)
    (tmp_path / "scratch").mkdir()
    folder = without_code(read_checkpoint(tiny_copy), tmp_path / "scratch")
    names = {path.name for path in folder.rglob("*")}
    assert {SINGLE, "config.json", "tokenizer.json"} <= names and not [name for name in names if name.endswith(".py")]
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text())


class Planted:
    """What a pickle can hold."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def test_a_pickle_beside_the_weights_is_not_opened(tiny_copy: Path, marker: Path) -> None:
    pickled = pickle.dumps(Planted(marker))
    pickle.loads(pickled).close()
    assert marker.exists()
    marker.unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (tiny_copy / name).write_bytes(pickled)
    load_for_inference(tiny_copy, "cpu")
    assert not [name for name in quantize(make_plan(fp8(), tiny_copy)).files if name.endswith(".bin")]
    (tiny_copy / SINGLE).rename(tiny_copy / "weights.safetensors")
    with pytest.raises(BadInput, match="loaders would take its pickles"):
        read_checkpoint(tiny_copy)
    (tiny_copy / "weights.safetensors").unlink()
    with pytest.raises(BadInput, match="has pickle weights only"):
        read_checkpoint(tiny_copy)
    assert not marker.exists()


def other_weights(model: Path) -> None:
    save_file({name: torch.zeros_like(t) for name, t in load_file(model / SINGLE).items()}, model / "zeros.safetensors")


def by_a_key(model: Path) -> None:
    other_weights(model)
    edit_json(model / "config.json", transformers_weights="zeros.safetensors")


def by_an_index(model: Path) -> None:
    other_weights(model)
    names = list(load_file(model / SINGLE))
    (model / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "zeros.safetensors")}))


def by_an_adapter(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def by_a_kernel(model: Path) -> None:
    edit_json(model / "config.json", text_config={"_attn_implementation": "someone/kernel"})


@pytest.mark.parametrize(
    ("mislead", "said"),
    [
        (by_a_key, "'transformers_weights' sends runtimes to other weights"),
        (by_an_index, "lies beside an index of other files"),
        (by_an_adapter, "an adapter, which transformers would put on the weights unasked"),
        (by_a_kernel, "asks for code from the hub"),
    ],
)
def test_runtimes_cannot_be_led_to_other_weights_than_were_judged(
    tiny_copy: Path, mislead: Callable[[Path], None], said: str
) -> None:
    mislead(tiny_copy)
    with pytest.raises(BadInput, match=said):
        read_checkpoint(tiny_copy)


# Chat templates, which jinja runs in its sandbox

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
    "{{ strftime_now.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ (messages|attr('__class__')).__base__ }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages.append(1) }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/passwd' %}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{% if %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_does_not_leave_its_sandbox(smollm2: Checkpoint, marker: Path, template: str) -> None:
    """It fails, as bad input, or it writes nothing that it should not know."""
    tokenizer = load_tokenizer(smollm2)
    tokenizer.chat_template = template.replace("MARKER", str(marker))
    try:
        said = tokenizer.decode(encode(tokenizer, [{"role": "user", "content": "hi"}]))
    except BadInput as error:
        assert "its chat template cannot be rendered" in str(error)
    else:
        assert not any(known in said for known in ("<class", "<module", "root:", "<function", "<built-in"))
    assert not marker.exists()
