"""Tokenizers: loaded from a checkpoint, and checked against it."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.errors import Problem, bad_input, brief
from pipelines.core.records import parse_json

TRACKED = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Pattern of the marks that transformers adds to jinja, around what a model answers."""
MOST_TOKENS = 1 << 24
"""Number of tokens that no vocabulary has; tokenizers would reserve memory for each up to the largest id."""


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's own tokenizer; code in the checkpoint is never run.

    Raises:
        BadInput: it has none that transformers can load, or one whose ids cannot be.
    """
    from transformers import AutoTokenizer

    _check_ids(checkpoint.folder / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        tokenizer("Some settings are looked at only now.")
    except Exception as error:  # of transformers, of tokenizers, of sentencepiece: they share no class
        remedy = "copy the tokenizer files beside the weights; one that needs code of its own is not run"
        raise bad_input(checkpoint.folder, f"its tokenizer cannot be used: {brief(error)}", remedy) from None
    return tokenizer


def check_templates(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for each chat template of `checkpoint` that is no template: calibration on chats renders it, and
    every artifact carries it."""
    from jinja2 import Environment, TemplateSyntaxError

    grammar = Environment(autoescape=True, extensions=["jinja2.ext.loopcontrols"])  # nothing is rendered
    for file, text in _templates(checkpoint):
        try:
            grammar.parse(TRACKED.sub("", text))
        except (TemplateSyntaxError, RecursionError) as error:
            line = f":{error.lineno}" if file.suffix == ".jinja" and isinstance(error, TemplateSyntaxError) else ""
            remedy = "copy the tokenizer files again, or mend the template"
            yield Problem(f"{file}{line}", f"its chat template is none: {brief(error)}", remedy)


def _templates(checkpoint: Checkpoint) -> Iterator[tuple[Path, str]]:
    """Yield every chat template of `checkpoint` that can be read, with its file."""
    for path in (checkpoint.folder / name for name in checkpoint.companions):
        with contextlib.suppress(OSError, ValueError):  # what cannot be read, who loads the tokenizer says
            if path.suffix == ".jinja":
                yield path, path.read_text(encoding="utf-8")
            elif path.name == "tokenizer_config.json":
                named = parse_json(path.read_text(encoding="utf-8"))
                given = named.get("chat_template") if isinstance(named, dict) else None
                several = given if isinstance(given, list) else [{"template": given}]
                texts = (one.get("template") for one in several if isinstance(one, dict))
                yield from ((path, text) for text in texts if isinstance(text, str))


def _check_ids(file: Path) -> None:
    """Raise `BadInput` for ids that are too large, and where two tokens have one id: which of them tokenizers then
    forgets is chance."""
    try:
        vocabulary = parse_json(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):  # there is none of this kind
        return
    ids = vocabulary if isinstance(vocabulary, dict) else {}
    if large := next((token for token, one in ids.items() if isinstance(one, int) and one >= MOST_TOKENS), None):
        what = f"gives token {large!r} the id {ids[large]}, and no vocabulary is that large"
        raise bad_input(file, what, "copy the tokenizer files again")
    if len({repr(one) for one in ids.values()}) < len(ids):
        what = "has several tokens of one id, so that chance decides what a text becomes"
        raise bad_input(file, what, "copy the tokenizer files again")
