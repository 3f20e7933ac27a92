"""Who takes part in a bench: found, named, matched with a baseline and a draft model, or refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from pipelines.benching.candidates import find_candidate, find_lineup
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import digest
from pipelines.core.errors import BadInput
from pipelines.quantization.artifact import CheckpointArtifact
from pipelines.quantization.stage import quantize
from tests.conftest import Cli
from tests.helpers.plans import plan_checkpoint

TOKENS = ("<s>", "</s>", "a", "b")


def write_gguf(file: Path, tokens: Sequence[str] = TOKENS, value: float = 0.0) -> Path:
    """A GGUF of one tensor, with these tokens; two of other `value`s are other models."""
    file.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_token_list(list(tokens))
    writer.add_tensor("token_embd.weight", np.full((len(tokens), 32), value, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def artifact(tiny: Path) -> CheckpointArtifact:
    return quantize(plan_checkpoint("int8-weight-only", read_checkpoint(tiny)))


def test_an_artifact_is_named_by_its_recipe_and_its_baseline_is_its_source(
    artifact: CheckpointArtifact, tiny: Path
) -> None:
    lineup = find_lineup([artifact.checkpoint], "vllm", "cuda", baseline=True)
    baseline, ours = lineup.candidates
    assert (baseline.name, baseline.digest, baseline.path) == ("tiny (baseline)", read_checkpoint(tiny).digest, tiny)
    assert (ours.name, ours.digest, ours.path) == ("int8-weight-only", artifact.digest, artifact.checkpoint)
    assert lineup.tokenizer == tiny
    assert [(one.name, one.over) for one, _ in lineup.contenders()] == [
        ("tiny (baseline)", ()),
        ("int8-weight-only", ("tiny (baseline)",)),
    ]


def test_a_checkpoint_takes_part_by_its_own_name(smollm2: Checkpoint) -> None:
    (one,) = find_lineup(["SmolLM2-135M-Instruct"], "vllm").candidates
    assert (one.name, one.digest, one.artifact) == ("SmolLM2-135M-Instruct", smollm2.digest, "")
    assert find_candidate(str(smollm2.folder)).origin is None


def test_vllm_on_a_cpu_is_told_what_it_does_not_run(artifact: CheckpointArtifact) -> None:
    with pytest.raises(BadInput, match="W8A16: vLLM for CPUs"):
        find_lineup([artifact.checkpoint], "vllm", "cpu")


def test_a_baseline_that_it_was_not_made_of_is_refused(
    artifact: CheckpointArtifact, tiny_copy: Path, smollm2: Checkpoint
) -> None:
    assert smollm2
    (tiny_copy / "generation_config.json").write_text('{"bos_token_id": 3}')
    with pytest.raises(BadInput, match="was made of another model than the baseline model: tiny"):
        find_lineup([artifact.checkpoint], "vllm", "cuda", baseline=True, model=str(tiny_copy))


def test_a_published_record_is_held_against_the_source(
    artifact: CheckpointArtifact, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    shutil.copytree(artifact.checkpoint, folder)
    model = {"label": "tiny", "hub_id": None, "revision": None, "digest": artifact.source.digest}
    modules = [{"scheme": "W8A16", "group_size": None, "reason": "", "count": 1}]
    record = {"model": model, "recipe": artifact.recipe.model_dump(mode="json"), "modules": modules}
    record |= {"files": artifact.files}
    (folder / "quantgate.json").write_text(json.dumps(record))
    lineup = find_lineup([folder], "vllm", "cuda", baseline=True, model=str(tiny))
    assert [one.name for one in lineup.candidates] == ["tiny (baseline)", "int8-weight-only"]
    assert [one.artifact for one, _ in lineup.contenders()] == ["", digest(artifact.files)]
    what = "its source tiny is not to be had: is neither a folder nor a hub id"
    with pytest.raises(BadInput, match=what) as caught:
        find_lineup([folder], "vllm", "cuda", baseline=True)
    assert "add --model with the checkpoint" in str(caught.value)
    with pytest.raises(BadInput, match="W8A16: vLLM for CPUs"):
        find_lineup([folder], "vllm", "cpu")
    (folder / "quantgate.json").write_text("{}")
    with pytest.raises(BadInput, match=r"quantgate\.json: is not the record of a run by this version"):
        find_lineup([folder], "vllm", "cuda")


def test_files_that_are_not_those_of_the_record_are_not_that_artifact(
    artifact: CheckpointArtifact, tmp_path: Path
) -> None:
    assert find_candidate(str(artifact.checkpoint)).artifact == digest(artifact.files)
    shutil.copytree(artifact.folder, tmp_path / "changed")
    (tmp_path / "changed" / "artifact" / "generation_config.json").write_text('{"bos_token_id": 3}')
    assert find_candidate(str(tmp_path / "changed" / "artifact")).artifact == ""


def test_what_a_runtime_does_not_load_is_refused_before_anything_starts(tmp_path: Path, tiny: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    with pytest.raises(BadInput) as caught:
        find_lineup([file, "no/such/place/at all"], "vllm", "cuda")
    said = str(caught.value)
    assert "model.gguf: is a GGUF, which is for llama.cpp\n    add --runtime llama.cpp" in said
    assert "no/such/place/at all: is neither a folder nor a hub id" in said
    with pytest.raises(BadInput, match=r"is no GGUF, and llama\.cpp loads nothing else"):
        find_lineup([tiny], "llama.cpp")


def test_a_draft_needs_the_same_words(tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "target")
    target = write_gguf(tmp_path / "target" / "target.gguf")
    (tmp_path / "target" / "config.json").unlink()
    draft = write_gguf(tmp_path / "draft.gguf", value=1.0)
    lineup = find_lineup([target], "llama.cpp", draft=str(draft))
    plain, drafted = (one for one, _ in lineup.contenders())
    assert (plain.name, plain.draft) == ("target", "")
    assert (drafted.name, drafted.draft, drafted.over) == (
        "target with draft", find_candidate(str(draft)).digest, ("target",)
    )  # fmt: skip
    with pytest.raises(
        BadInput, match=r"--draft .*longer\.gguf: has another vocabulary than target: 5 tokens beside 4"
    ):
        find_lineup([target], "llama.cpp", draft=str(write_gguf(tmp_path / "longer.gguf", (*TOKENS, "c"))))
    with pytest.raises(BadInput, match="has another vocabulary than target: 2 of 4 tokens differ"):
        find_lineup([target], "llama.cpp", draft=str(write_gguf(tmp_path / "other.gguf", ("<s>", "</s>", "b", "a"))))
    with pytest.raises(BadInput, match="--draft no-such-draft: is neither a folder nor a hub id"):
        find_lineup([target], "llama.cpp", draft="no-such-draft")


def test_a_gguf_alone_has_neither_baseline_nor_tokenizer(tmp_path: Path, tiny: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    with pytest.raises(BadInput, match="nothing beside it says what it was made of") as caught:
        find_lineup([file], "llama.cpp", baseline=True)
    assert "add --model" in str(caught.value)
    with pytest.raises(BadInput, match=r"has no tokenizer\.json beside it"):
        find_lineup([file], "llama.cpp")
    lineup = find_lineup([file], "llama.cpp", baseline=True, model=str(tiny))
    baseline, _ = lineup.candidates
    assert (baseline.name, baseline.path, baseline.is_gguf) == ("tiny F16 (baseline)", None, True)
    assert lineup.tokenizer == tiny
    assert find_lineup([file], "llama.cpp", model=str(tiny)).tokenizer == tiny


def test_the_same_model_takes_part_once_and_names_stay_apart(tmp_path: Path, tiny: Path) -> None:
    one, other = write_gguf(tmp_path / "a" / "model.gguf"), write_gguf(tmp_path / "b" / "model.gguf", value=1.0)
    with pytest.raises(BadInput, match="is there twice"):
        find_lineup([one, one], "llama.cpp", model=str(tiny))
    first, second = find_lineup([one, other], "llama.cpp", model=str(tiny)).candidates
    assert first.name == f"model ({first.digest[:6]})" != second.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--slo", "ttfx=1"), "--slo ttfx=1: 'ttfx' is nothing that it limits\n    did you mean ttft?"),
        (("--rates", "1,fast"), "--rates 1,fast: is no list of rates above 0"),
        (("--rates", "0"), "--rates 0: is no list of rates above 0"),
        (("--traffic", "5"), "--traffic 5: says nothing without what a request may take"),
        (("--draft", "nowhere"), "--draft nowhere: is neither a folder nor a hub id"),
        (("--vllm-python", "python"), "--vllm-python python: is not used by llama.cpp"),
        (("--out", "no/such/folder/x.json"), "cannot be written: its folder is not there"),
    ],
)
def test_the_command_refuses_before_anything_starts(
    arguments: tuple[str, ...], said: str, tmp_path: Path, tiny: Path, cli: Cli
) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    done = cli("bench", file, "--model", tiny, "--runtime", "llama.cpp", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("error: ") == 1
