"""Vocabularies of models that are to guess for one another: they have to be equal, or what is written is not the
same."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.checkpoint.gguf_file import read_tokens
from pipelines.checkpoint.headers import read_checkpoint
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.errors import bad_input
from pipelines.serving.served import Served


def check_draft(served: Served, draft: Served) -> None:
    """Raise `BadInput` unless `draft` can guess for `served`: both are GGUFs or neither is, and their tokens are the
    same."""
    if (served.stored == "gguf") != (draft.stored == "gguf"):
        kind = "a GGUF" if served.stored == "gguf" else "a checkpoint"
        raise bad_input(draft.model, f"cannot guess for {served.name}: that is {kind}, and this is not", "give another")
    ours, theirs = vocabulary(served.model), vocabulary(draft.model)
    if ours == theirs:
        return
    differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    what = f"has another vocabulary than {served.name} ({len(theirs)} tokens and {len(ours)}; {len(differing)} differ"
    remedy = "give a smaller model of the same family, or --draft ngram, which needs no model"
    raise bad_input(draft.model, f"{what}, like {differing[0]!r})", remedy)


def vocabulary(model: Path) -> Mapping[str, int]:
    """Return the ids of all tokens of a model, a folder or a GGUF, by its tokenizer."""
    if model.suffix == ".gguf":
        return {token: number for number, token in enumerate(read_tokens(model))}
    found: dict[str, int] = load_tokenizer(read_checkpoint(model)).get_vocab()
    return found
