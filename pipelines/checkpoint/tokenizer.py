"""Tokenizers: loaded from a checkpoint, and checked against it."""

import json
from pathlib import Path
from typing import Any

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.errors import bad_input, brief


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's own tokenizer; code in the checkpoint is never run.

    Raises:
        BadInput: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        tokenizer("Some settings are looked at only now.")
    except Exception as error:  # of transformers, of tokenizers, of sentencepiece: they share no class
        remedy = "copy the tokenizer files beside the weights; one that needs code of its own is not run"
        raise bad_input(checkpoint.folder, f"its tokenizer cannot be used: {brief(error)}", remedy) from None
    _check_ids(checkpoint.folder / "tokenizer.json")
    return tokenizer


def _check_ids(file: Path) -> None:
    """Raise `BadInput` where two tokens have one id: which of them tokenizers then forgets is chance."""
    try:
        vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # there is none of this kind
        return
    ids = [repr(one) for one in vocabulary.values()] if isinstance(vocabulary, dict) else []
    if len(set(ids)) < len(ids):
        what = "has several tokens of one id, so that chance decides what a text becomes"
        raise bad_input(file, what, "copy the tokenizer files again")
