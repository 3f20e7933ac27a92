"""A draft guesses for another model only where the tokens of both are the same."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.core.errors import BadInput
from pipelines.formats.schemes import quantization_config
from pipelines.serving.drafts import check_draft
from pipelines.serving.served import Served, read_served
from tests.conftest import edit_json
from tests.helpers.served import write_gguf


def quantized(model: Path, folder: Path) -> Served:
    """A copy of `model` that says that it is quantized."""
    shutil.copytree(model, folder)
    described = quantization_config({"model.layers.0.mlp.up_proj": ("FP8_DYNAMIC", None)}, [], False)
    edit_json(folder / "config.json", quantization_config=described)
    return read_served(folder)


def test_checkpoints_of_one_vocabulary(tiny: Path, tmp_path: Path) -> None:
    check_draft(quantized(tiny, tmp_path / "large"), quantized(tiny, tmp_path / "small"))


def test_checkpoints_of_two(tiny: Path, tmp_path: Path) -> None:
    large, small = quantized(tiny, tmp_path / "large"), quantized(tiny, tmp_path / "small")
    file = tmp_path / "small" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(BadInput, match=r"has another vocabulary than large .*; 2 differ, like '!'\)\n.*--draft ngram"):
        check_draft(large, small)


def test_ggufs(tmp_path: Path) -> None:
    large, same, other = (
        read_served(write_gguf(tmp_path / f"{name}.gguf", tokens))
        for name, tokens in (("large", ("a", "b")), ("same", ("a", "b")), ("other", ("a", "b", "c")))
    )
    check_draft(large, same)
    with pytest.raises(BadInput, match=r"has another vocabulary than large .3 tokens and 2; 1 differ, like 'c'"):
        check_draft(large, other)


def test_a_gguf_does_not_guess_for_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    large, small = quantized(tiny, tmp_path / "large"), read_served(write_gguf(tmp_path / "small.gguf"))
    with pytest.raises(BadInput, match="cannot guess for large: that is a checkpoint, and this is not"):
        check_draft(large, small)
    with pytest.raises(BadInput, match="cannot guess for small: that is a GGUF, and this is not"):
        check_draft(small, large)
