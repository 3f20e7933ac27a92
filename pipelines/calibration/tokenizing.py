"""From rows of text, or chat messages, to samples of token ids."""

from collections.abc import Iterable
from typing import Any

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.limits import check_tokens, known_token, language_config
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core import progress
from pipelines.core.errors import BadInput, bad_input, brief
from pipelines.core.text_files import Content, Row
from pipelines.recipe.recipe import Calibrate

SHORTEST = 8
"""Smallest number of tokens of a text that is not left out."""


def tokenize(checkpoint: Checkpoint, rows: Iterable[Row], wanted: Calibrate) -> tuple[list[list[int]], list[str]]:
    """Return samples of token ids, and the ids of the rows they are made of.

    Raises:
        BadInput: the rows are too few, or hold what is no text, or tokens that the model does not know.
    """
    tokenizer, config = load_tokenizer(checkpoint), language_config(checkpoint)
    end = known_token(config, tokenizer.eos_token_id)
    samples: list[list[int]] = []
    used: list[str] = []
    stream: list[int] = []
    read = tokens = 0
    with progress.bar(wanted.samples, "calibrate", "sample") as bar:
        for row_id, content in rows:
            ids = _encoded(tokenizer, row_id, content)
            read += 1
            if len(ids) < SHORTEST:
                continue
            check_tokens(checkpoint.folder, tokenizer, ids, config)
            used.append(row_id)
            before, joined = len(samples), ids if end is None else [*ids, end]
            tokens += len(joined)
            if wanted.pack:
                stream += joined
                while len(stream) >= wanted.seq_len and len(samples) < wanted.samples:
                    samples.append(stream[: wanted.seq_len])
                    del stream[: wanted.seq_len]
            else:
                samples.append(ids[: wanted.seq_len])
            bar.update(len(samples) - before)
            if len(samples) == wanted.samples:
                return samples, used
    raise _too_little(wanted, len(samples), read, read - len(used), tokens)


def _too_little(wanted: Calibrate, samples: int, read: int, short: int, tokens: int) -> BadInput:
    """Return the error for a set of `read` texts that gave only `samples`; `tokens` are those of all, packed."""
    what = f"has text for {samples} samples of {wanted.seq_len} tokens; the recipe wants {wanted.samples}"
    what += f" (texts read: {read}, left out as shorter than {SHORTEST} tokens: {short})"
    ways = [f"--set calibrate.samples={samples} or less"] if samples else []
    if wanted.pack and tokens // wanted.samples >= SHORTEST:
        ways.append(f"--set calibrate.seq_len={tokens // wanted.samples} or less")
    elif wanted.pack and not samples and tokens:
        ways.append(f"--set calibrate.samples=1 --set calibrate.seq_len={tokens}")
    if not wanted.pack and tokens >= wanted.samples * wanted.seq_len:
        ways.append("--set calibrate.pack=true")
    more = "add text" if tokens else "add texts that are longer"
    return bad_input(f"calibration set {wanted.set}", what, ", or use ".join([more, *ways]))


def _encoded(tokenizer: Any, row_id: str, content: Content) -> list[int]:
    """Return the token ids of a row; an error names the row."""
    try:
        return encode(tokenizer, content)
    except TypeError:  # all that tokenizers says of a string that is not Unicode
        what = "holds half a character (a lone surrogate), which is no text"
        raise bad_input(f"calibration row {row_id}", what, "take it out, or write the whole character") from None
    except BadInput as error:
        (problem,) = error.problems
        raise bad_input(problem.where, f"{problem.what} (row {row_id})", problem.remedy) from None


def encode(tokenizer: Any, content: Content) -> list[int]:
    """Return the token ids of a text, or of chat messages in the model's own template, with one BOS if it uses one.

    Raises:
        BadInput: the template fails.
    """
    text = content if isinstance(content, str) else _rendered(tokenizer, content)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    templated = not isinstance(content, str) and ids[:1] == [bos]
    while bos is not None and ids[:1] == [bos] and (adds_bos or ids[1:2] == [bos]):
        del ids[0]
    return [bos, *ids] if adds_bos or (templated and ids[:1] != [bos]) else ids


def _rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    """Return chat messages as text, in the model's own template, which transformers runs in jinja's sandbox.

    Raises:
        BadInput: the template fails: among much else, that is how the sandbox keeps it from what it must not reach.
    """
    try:
        if tokenizer.chat_template:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        return "\n".join(str(message.get("content") or "") for message in messages)
    except Exception as error:  # a template can fail in all the ways that a program can
        what = f"its chat template cannot be rendered: {type(error).__name__}: {brief(error)}"
        raise bad_input(tokenizer.name_or_path, what, "mend the template, or calibrate on plain text") from None
