"""What is read from a checkpoint's headers, what is refused there, and which bytes make up its digest."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from pipelines.checkpoint.headers import INDEX, Checkpoint, read_checkpoint, read_header
from pipelines.checkpoint.load import load_model
from pipelines.checkpoint.quantized import refuse_quantized
from pipelines.core.errors import BadInput
from tests.conftest import Cli, edit_json
from tests.helpers.checkpoints import (
    EMBEDDING,
    LINEAR,
    SMALL,
    WEIGHTS,
    Tensors,
    cut,
    replace_header,
    split,
    write_checkpoint,
    write_index,
    write_safetensors,
)

Break = Callable[[Path], object]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def problems(folder: Path) -> set[str]:
    """Why a checkpoint is refused, each reason as it is printed, with the folder's own path as `MODEL`."""
    with pytest.raises(BadInput) as caught:
        read_checkpoint(folder)
    assert caught.value.exit_code == 2
    return {str(problem).replace(str(folder), "MODEL") for problem in caught.value.problems}


def test_headers_say_of_every_tensor_what_the_safetensors_library_says(tiny: Path) -> None:
    from safetensors import safe_open

    read = {tensor.name: tensor for tensor in read_checkpoint(tiny).tensors}
    names = {"torch.bfloat16": "BF16", "torch.float32": "F32"}
    with safe_open(tiny / WEIGHTS, "pt") as file:
        assert sorted(read) == sorted(file.keys())
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert read[name].shape == tuple(tensor.shape)
            assert read[name].dtype == names[str(tensor.dtype)]
            assert read[name].elements == tensor.numel()
            assert read[name].bytes == tensor.nbytes


def test_offsets_lead_to_each_tensors_bytes(tiny: Path) -> None:
    import torch
    from safetensors.torch import load_file

    loaded = load_file(tiny / WEIGHTS)
    data = (tiny / WEIGHTS).read_bytes()
    for tensor in read_checkpoint(tiny).tensors:
        assert data[tensor.start : tensor.end] == loaded[tensor.name].view(torch.uint8).numpy().tobytes()


def test_the_default_model_has_the_published_size(smollm2: Checkpoint) -> None:
    assert smollm2.parameters == 134_515_008  # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
    assert smollm2.weight_bytes == 2 * 134_515_008
    assert len(smollm2.tensors) == 272
    assert {tensor.dtype for tensor in smollm2.tensors} == {"BF16"}
    assert smollm2.label == "SmolLM2-135M-Instruct"
    assert smollm2.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert smollm2.licence == "apache-2.0"
    assert smollm2.companions == ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
    assert smollm2.left_behind == ()


def test_a_sharded_checkpoint_is_the_same_model_as_its_single_file(tiny: Path, tiny_copy: Path) -> None:
    split(tiny_copy)
    one, two = read_checkpoint(tiny), read_checkpoint(tiny_copy)
    assert one.weight_files == (WEIGHTS,)
    assert two.weight_files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert (one.config, one.companions, one.left_behind) == (two.config, two.companions, two.left_behind)
    assert (one.parameters, one.weight_bytes) == (two.parameters, two.weight_bytes)
    bytes_of = {name: (tiny / name).read_bytes() for name in one.weight_files}
    bytes_of |= {name: (tiny_copy / name).read_bytes() for name in two.weight_files}
    for left, right in zip(one.tensors, two.tensors, strict=True):
        assert (left.name, left.dtype, left.shape) == (right.name, right.dtype, right.shape)
        assert bytes_of[left.file][left.start : left.end] == bytes_of[right.file][right.start : right.end]


def test_shards_without_an_index_are_read_together(tiny: Path, tiny_copy: Path) -> None:
    split(tiny_copy)
    (tiny_copy / INDEX).unlink()
    assert read_checkpoint(tiny_copy).parameters == read_checkpoint(tiny).parameters


def test_tensors_of_other_ranks_are_counted_too(tmp_path: Path) -> None:
    tensors: Tensors = {
        "scalar": ("F32", ()),
        "empty": ("F16", (0, 4)),
        "vector": ("I64", (3,)),
        "cube": ("U8", (2, 3, 4)),
    }
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", tensors))
    assert checkpoint.parameters == 1 + 0 + 3 + 24
    assert checkpoint.weight_bytes == 4 + 0 + 24 + 24


def test_a_checkpoint_is_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "my-model")
    assert read_checkpoint(folder).label == "my-model"
    assert read_checkpoint(folder, label="org/name").label == "org/name"
    monkeypatch.chdir(folder)
    assert read_checkpoint(Path()).label == "my-model"
    assert read_checkpoint(Path()).folder == folder


def corrupt(folder: Path, **entry: object) -> None:
    """Give the second tensor's header entry other values."""
    sound = {"dtype": "BF16", "shape": [32, 8], "data_offsets": [256, 768]}
    write_safetensors(folder / WEIGHTS, SMALL, **{LINEAR: sound | entry})


NO_HEADER = f"MODEL/{WEIGHTS}: is not a safetensors file, or its header is truncated\n    copy it again"
BAD_HEADER = f"MODEL/{WEIGHTS}: has a corrupt safetensors header\n    copy it again"
BAD_ENTRY = f"MODEL/{WEIGHTS}: corrupt header entry for tensor {LINEAR}\n    copy it again"
BAD_SIZE = f"MODEL/{WEIGHTS}: corrupt header: shape and size of tensor {LINEAR} disagree\n    copy it again"


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: cut(folder / WEIGHTS, 0), NO_HEADER),
        (lambda folder: cut(folder / WEIGHTS, 7), NO_HEADER),
        (lambda folder: cut(folder / WEIGHTS, 8), NO_HEADER),
        (lambda folder: cut(folder / WEIGHTS, 100), NO_HEADER),
        (lambda folder: replace_header(folder / WEIGHTS, b"{}", 3), NO_HEADER),
        (lambda folder: replace_header(folder / WEIGHTS, b"{}", 1 << 63), NO_HEADER),
        (lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), NO_HEADER),
        (lambda folder: replace_header(folder / WEIGHTS, b"{'a': 1}"), BAD_HEADER),
        (lambda folder: replace_header(folder / WEIGHTS, b"\xff\xfe{}"), BAD_HEADER),
        (lambda folder: replace_header(folder / WEIGHTS, b"[]"), BAD_HEADER),
        (lambda folder: corrupt(folder, dtype=None), BAD_ENTRY),
        (lambda folder: corrupt(folder, shape=None), BAD_ENTRY),
        (lambda folder: corrupt(folder, shape=["many", 8]), BAD_ENTRY),
        (lambda folder: corrupt(folder, data_offsets=[256]), BAD_ENTRY),
        (lambda folder: corrupt(folder, data_offsets="ab"), BAD_ENTRY),
        (lambda folder: corrupt(folder, data_offsets=None), BAD_ENTRY),
        (lambda folder: corrupt(folder, shape=[32, 9]), BAD_SIZE),
        (lambda folder: corrupt(folder, shape=[-32, -8]), BAD_SIZE),
        (lambda folder: corrupt(folder, dtype="F32"), BAD_SIZE),
        (lambda folder: corrupt(folder, data_offsets=[768, 256]), BAD_SIZE),
        (
            lambda folder: cut(folder / WEIGHTS, -1),
            f"MODEL/{WEIGHTS}: truncated: 1 bytes of tensor {LINEAR} are missing\n    copy it again",
        ),
        (
            lambda folder: corrupt(folder, dtype="Q4_K"),
            f"MODEL/{WEIGHTS}: dtype Q4_K of tensor {LINEAR} is not supported\n    give weights in BF16, F16, F32",
        ),
    ],
)
def test_a_broken_weight_file_is_refused(tmp_path: Path, harm: Break, told: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    harm(folder)
    assert problems(folder) == {told}


def test_a_file_cut_in_the_middle_is_told_in_one_line_with_all_that_it_lacks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    cut(folder / WEIGHTS, -600)
    what = f"truncated: 600 bytes of 2 tensors, like {EMBEDDING}, are missing"
    assert problems(folder) == {f"MODEL/{WEIGHTS}: {what}\n    copy it again"}


def test_what_is_wrong_with_many_tensors_of_a_file_is_a_line_for_each_kind(tmp_path: Path) -> None:
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(40)]
    folder = write_checkpoint(tmp_path / "model", dict.fromkeys(names, ("BF16", (32, 8))))
    odd = {names[0]: {"dtype": "BF16"}, names[1]: {"dtype": "F3", "shape": [32, 8], "data_offsets": [512, 1024]}}
    write_safetensors(folder / WEIGHTS, dict.fromkeys(names, ("BF16", (32, 8))), **odd)
    cut(folder / WEIGHTS, -30 * 512)
    assert {told.partition("\n")[0] for told in problems(folder)} == {
        f"MODEL/{WEIGHTS}: corrupt header entry for tensor {names[0]}",
        f"MODEL/{WEIGHTS}: dtype F3 of tensor {names[1]} is not supported",
        f"MODEL/{WEIGHTS}: truncated: {30 * 512} bytes of 30 tensors, like {names[10]}, are missing",
    }


def test_a_header_with_a_wrong_byte_is_refused_or_read_as_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / WEIGHTS, SMALL)
    sound = path.read_bytes()
    refused = read = 0
    for position in range(8 + struct.unpack("<Q", sound[:8])[0]):
        for value in (b"\xff", b"-", b'"', b"B"):
            path.write_bytes(sound[:position] + value + sound[position + 1 :])
            try:
                found = {tensor.name: list(tensor.shape) for tensor in read_header(path, WEIGHTS)}
            except BadInput:
                refused += 1
                continue
            read += 1
            with safe_open(path, "pt") as file:
                theirs = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            assert theirs == found, (position, value)
    assert refused > 3 * read > 0


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: corrupt(folder, data_offsets=[-256, 256]),
        lambda folder: corrupt(folder, data_offsets=[0, 512]),
        lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size + 100),
    ],
    ids=["before the data", "over another tensor", "less than the file"],
)
def test_tensors_that_do_not_fill_their_file_exactly_are_refused(tmp_path: Path, harm: Break) -> None:
    folder = write_checkpoint(tmp_path / "model")
    harm(folder)
    assert all(told.startswith(f"MODEL/{WEIGHTS}: ") for told in problems(folder))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("../blobs/gone")),
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
        lambda folder: replace_header(folder / WEIGHTS, b"[" * 100_000),
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
    ],
    ids=["dangling link", "folder", "deep header", "deep config"],
)
def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path, harm: Break) -> None:
    folder = write_checkpoint(tmp_path / "model")
    harm(folder)
    assert len(problems(folder)) == 1


def test_a_shard_that_the_index_names_must_be_there(tiny_copy: Path) -> None:
    split(tiny_copy)
    (tiny_copy / "model-00002-of-00002.safetensors").unlink()
    assert problems(tiny_copy) == {
        "MODEL/model-00002-of-00002.safetensors: missing shard, named by the index\n    copy it again"
    }


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path: Path, file: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    write_safetensors(tmp_path / "other.safetensors", SMALL)
    write_index(folder, {EMBEDDING: WEIGHTS, LINEAR: file})
    assert problems(folder) == {
        f"MODEL/{INDEX}: names a file outside its folder: {file}\n    copy the file beside the index, and name it there"
    }


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    write_safetensors(folder / "model-00002.safetensors", {LINEAR: SMALL[LINEAR]})
    write_index(folder, {EMBEDDING: WEIGHTS, LINEAR: "model-00002.safetensors"})
    assert problems(folder) == {
        f"MODEL: tensor {LINEAR} is in more than one file\n    take it out of all files but one"
    }


@pytest.mark.parametrize(
    "index",
    [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {LINEAR: 1}}, {"weight_map": {LINEAR: [WEIGHTS]}}],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, index: object) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / INDEX).write_text(json.dumps(index))
    (told,) = problems(folder)
    assert told.startswith(f"MODEL/{INDEX}: ")


def test_a_tensor_that_the_index_names_must_be_in_its_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    write_index(folder, {EMBEDDING: WEIGHTS, LINEAR: WEIGHTS, "model.norm.weight": WEIGHTS})
    (told,) = problems(folder)
    assert "model.norm.weight" in told


def test_pickles_alone_are_refused_unopened(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    for name in ("pytorch_model.bin", "a.pt", "b.ckpt", "c.pth"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert problems(folder) == {
        "MODEL: has pickle weights only (a.pt, b.ckpt, c.pth)\n"
        "    pickle can run code: convert to safetensors where you trust it"
    }


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    assert problems(folder) == {"MODEL: has no safetensors weights\n    is this a checkpoint?"}


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").unlink()
    assert problems(folder) == {"MODEL/config.json: is missing\n    copy the model's config.json here"}


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("", "cannot be read as JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "is not a JSON object"),
    ],
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, name: str, text: str, told: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / name).write_text(text)
    assert problems(folder) == {f"MODEL/{name}: {told}\n    copy it again"}


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / WEIGHTS, SMALL)
    with pytest.raises(BadInput, match="is not a folder\n    MODEL is a checkpoint folder or a hub id"):
        read_checkpoint(file)
    with pytest.raises(BadInput, match="is neither a folder nor a hub id"):
        load_model(tmp_path / "nowhere")


def test_every_problem_of_a_folder_is_told_at_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text("{")
    cut(folder / WEIGHTS, -1)
    write_safetensors(folder / "b.safetensors", {}, x={"dtype": "BF16", "shape": [3], "data_offsets": [0, 0]})
    write_index(folder, {EMBEDDING: WEIGHTS, "x": "b.safetensors", "y": "c.safetensors", "z": "../d.safetensors"})
    told = problems(folder)
    assert {line.partition(": ")[2].partition("\n")[0] for line in told} == {
        "cannot be read as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        f"truncated: 1 bytes of tensor {LINEAR} are missing",
        "corrupt header: shape and size of tensor x disagree",
        "missing shard, named by the index",
        "names a file outside its folder: ../d.safetensors",
    }
    assert len(told) == 5


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    for config, method in (({"quant_method": "gptq"}, "gptq"), ({}, "quantization_config is set")):
        folder = write_checkpoint(tmp_path / method, quantization_config=config)
        with pytest.raises(BadInput) as caught:
            refuse_quantized(read_checkpoint(folder))
        assert str(caught.value) == (
            f"{folder}/config.json: the checkpoint is already quantized ({method})\n"
            "    give the full-precision checkpoint it was made from"
        )


@pytest.mark.parametrize(
    ("config", "file", "tensors", "told"),
    [
        ({"compression_config": {"quant_method": "x"}}, "", {}, "config.json: the checkpoint is already quantized (x)"),
        (
            {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "", {},
            "config.json: the checkpoint is already quantized (awq)",
        ),
        ({}, "hf_quant_config.json", {}, "hf_quant_config.json: the checkpoint is already quantized (by this file)"),
        ({}, "quantize_config.json", {}, "quantize_config.json: the checkpoint is already quantized (by this file)"),
        (
            {}, "", {"a.weight": ("F8_E4M3", (4, 4)), "a.weight_scale_inv": ("F32", (1, 1))},
            "model.safetensors: the checkpoint is already quantized (a.weight is F8_E4M3, beside a.weight_scale_inv)",
        ),
    ],
    ids=["compression", "language model", "modelopt", "auto-gptq", "tensors"],
)  # fmt: skip
def test_a_checkpoint_may_say_elsewhere_that_it_is_quantized(
    tmp_path: Path, config: dict[str, object], file: str, tensors: Tensors, told: str
) -> None:
    folder = write_checkpoint(tmp_path / "model", {**SMALL, **tensors}, **config)
    if file:
        (folder / file).write_text("{}")
    with pytest.raises(BadInput) as caught:
        refuse_quantized(read_checkpoint(folder))
    assert str(caught.value).startswith(f"{folder}/{told}\n")


def test_a_quantization_config_of_null_is_none(tmp_path: Path) -> None:
    refuse_quantized(read_checkpoint(write_checkpoint(tmp_path / "model", quantization_config=None)))


def test_tokenizer_template_and_licence_travel_and_code_and_other_formats_do_not(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    travel = (
        "LICENSE",
        "NOTICE.txt",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
    )
    stay = ("modeling_mine.py", "onnx/model.onnx", "original/params.json", "pytorch_model.bin", "training_args.bin")
    unseen = ("README.md", ".gitattributes", ".git/config", ".cache/huggingface/x.json", "pytorch_model.bin.index.json")
    for name in (*travel, *stay, *unseen):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.companions == travel
    assert checkpoint.left_behind == stay


def test_other_safetensors_than_the_index_names_are_left_behind(tiny_copy: Path) -> None:
    split(tiny_copy)
    write_safetensors(tiny_copy / "consolidated.safetensors", SMALL)
    checkpoint = read_checkpoint(tiny_copy)
    assert checkpoint.left_behind == ("consolidated.safetensors",)
    assert "consolidated.safetensors" not in checkpoint.digests


def test_other_safetensors_than_the_single_file_are_left_behind(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    write_safetensors(folder / "adapter_model.safetensors", {"lora_A.weight": ("BF16", (4, 4))})
    checkpoint = read_checkpoint(folder)
    assert checkpoint.weight_files == (WEIGHTS,)
    assert checkpoint.left_behind == ("adapter_model.safetensors",)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ("# A model\nlicense: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlanguage:\n- en\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
    ],
)
def test_the_licence_is_the_one_that_the_card_declares(tmp_path: Path, card: str | None, licence: str | None) -> None:
    folder = write_checkpoint(tmp_path / "model")
    if card is not None:
        (folder / "README.md").write_text(card)
    assert read_checkpoint(folder).licence == licence


@pytest.mark.parametrize("line", ['license: "mit"', "license: 'mit'", "license: mit  # as upstream", "license:\n- mit"])
def test_the_licence_is_read_however_yaml_spells_it(tmp_path: Path, line: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "README.md").write_text(f"---\n{line}\n---\n")
    assert read_checkpoint(folder).licence == "mit"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_any_other_byte_of_what_the_model_computes_is_another_digest(tiny_copy: Path, file: str) -> None:
    before = read_checkpoint(tiny_copy).digest
    path = tiny_copy / file
    sound = path.read_text() if file == "config.json" else ""
    if sound:
        path.write_text(sound + " ")
        assert read_checkpoint(tiny_copy).digest != before
        path.write_text(sound)
    else:
        last = path.stat().st_size - 1
        for position in (last, last // 2) if file == WEIGHTS else (0, last // 2, last):
            flip(path, position)
            assert read_checkpoint(tiny_copy).digest != before
            flip(path, position)
    assert read_checkpoint(tiny_copy).digest == before


def test_a_file_more_that_travels_is_another_digest(tiny_copy: Path) -> None:
    before = read_checkpoint(tiny_copy).digest
    (tiny_copy / "chat_template.jinja").write_text("{{ messages }}")
    assert read_checkpoint(tiny_copy).digest != before


def test_nothing_else_changes_the_digest(tiny_copy: Path, tmp_path: Path) -> None:
    before = read_checkpoint(tiny_copy)
    for name in ("README.md", "modeling_mine.py", "pytorch_model.bin", ".gitattributes"):
        (tiny_copy / name).write_text("x")
    os.utime(tiny_copy / WEIGHTS)
    moved = Path(shutil.copytree(tiny_copy, tmp_path / "elsewhere"))
    assert read_checkpoint(tiny_copy).digest == before.digest
    assert read_checkpoint(moved, label="another/name").digest == before.digest


def test_digests_are_sha256_of_each_file(tiny: Path) -> None:
    import hashlib

    digests = read_checkpoint(tiny).digests
    assert sorted(digests) == sorted(path.name for path in tiny.iterdir())
    assert all(hashlib.sha256((tiny / name).read_bytes()).hexdigest() == value for name, value in digests.items())


@pytest.fixture
def hub(tiny: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without network whose hub cache holds `org/name` at one commit."""
    home = tmp_path / "hub"
    repository = home / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for path in tiny.iterdir():  # as the hub's client lays it out: blobs, and links to them
        shutil.copyfile(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("name", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_a_hub_id_is_pinned_to_its_commit(cli: Cli, hub: dict[str, str], tiny: Path, name: str) -> None:
    done = cli("plan", "fp8", "--model", name, "--json", **hub)
    assert done.returncode == 0, done.stderr
    checkpoint = Checkpoint.model_validate(json.loads(done.stdout)["checkpoint"])
    assert (checkpoint.label, checkpoint.hub_id, checkpoint.revision) == ("org/name", "org/name", COMMIT)
    assert [tensor.name for tensor in checkpoint.tensors] == [tensor.name for tensor in read_checkpoint(tiny).tensors]
    assert checkpoint.digest == read_checkpoint(tiny).digest


@pytest.mark.parametrize("name", ["org/other", "org/name@v2", "org/name@" + "f" * 40])
def test_a_hub_id_that_cannot_be_had_is_one_error(cli: Cli, hub: dict[str, str], name: str) -> None:
    done = cli("plan", "fp8", "--model", name, **hub)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"planning {name} with fp8\n"
        f"error: {name}: the hub cannot be reached and the model is not in its local cache\n"
        "    there is no folder of this name either; check the name, or the network and HF_HUB_OFFLINE\n"
    )


def test_a_snapshot_that_lacks_its_weights_is_refused(cli: Cli, hub: dict[str, str]) -> None:
    snapshot = Path(hub["HF_HUB_CACHE"]) / "models--org--name" / "snapshots" / COMMIT
    (snapshot / WEIGHTS).unlink()
    done = cli("plan", "fp8", "--model", "org/name", **hub)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"planning org/name with fp8\nerror: {snapshot}: has no safetensors weights\n    is this a checkpoint?\n"
    )


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    checkpoint = load_model("org/name")
    assert (checkpoint.label, checkpoint.hub_id, checkpoint.revision) == ("name", None, None)


@pytest.mark.parametrize("name", ["org/na..me", "a--b/c", "-org/name"])
def test_a_name_that_the_hub_does_not_allow_is_bad_input(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_model(name)
    assert str(caught.value).startswith(f"{name}: ")


def test_what_is_neither_path_nor_hub_id_is_refused() -> None:
    for name in ("llama", "a/b/c", "org/name@", "org/na me", "https://huggingface.co/org/name"):
        with pytest.raises(BadInput, match="is neither a folder nor a hub id"):
            load_model(name)


def test_a_config_that_says_more_is_kept_whole(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", rope_scaling={"type": "yarn", "factor": 4.0}, mine=[1, None, "x"])
    assert read_checkpoint(tiny_copy).config == json.loads((tiny_copy / "config.json").read_text())
