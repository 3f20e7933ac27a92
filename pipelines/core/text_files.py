"""Rows of a user's own files: texts or chat messages, each with the place where it stands."""

import codecs
import gzip
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.core.errors import Problem, bad_input, brief
from pipelines.core.records import parse_json


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, gzipped or not."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield parse_json(line)


Content = str | list[dict[str, Any]]
"""Content of a row: a text, or chat messages."""
Row = tuple[str, Content]
"""Id and content of a row."""

WANTED = "is not a JSON object with 'text' or 'messages'"
FORM = 'rows are like {"text": "…"} or {"messages": [{"role": "user", "content": "…"}]}'
KINDS = "give texts between blank lines as .txt, or rows with 'text' or 'messages' as .jsonl or .parquet"
PARSERS = {".json": "json.load(open(0))", ".csv": "csv.DictReader(open(0))"}
"""Suffix of other files that have rows → the Python that reads these from standard input."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that say anything, in order.

    Raises:
        BadInput: the file is not of the kind that its name says, or a row is neither text nor messages.
    """
    return READERS[path.suffix.lower()](path)


def content_of(record: Any, where: str) -> Content:
    """Return the text or the messages of a row.

    Raises:
        BadInput: it has none, or of another kind.
    """
    keys = [key for key in ("messages", "text") if isinstance(record, dict) and key in record]
    if not keys:
        raise bad_input(where, f"{WANTED}, but {_kind(record)}", FORM)
    key = next((key for key in keys if record[key] is not None), keys[0])
    content: Content = record[key]
    if not (_is_chat(content) if key == "messages" else isinstance(content, str)):
        raise bad_input(where, f"{WANTED}: its '{key}' is {_kind(content)}", FORM)
    if not isinstance(content, str) and (why := _unsayable(content)):
        raise bad_input(where, why, FORM)
    return content


def refusals(where: str, path: Path) -> Iterator[Problem]:
    """Yield why no rows can be read of a file, before it is read; `where` names it."""
    try:
        if path.suffix.lower() not in READERS:
            yield Problem(where, f"names a file of a kind that is not read: {path}", _conversion(path) or KINDS)
        elif not path.exists():
            yield Problem(where, f"names a file that does not exist: {path}", "paths are relative to the set's file")
        elif not path.is_file() and not path.is_dir():
            yield Problem(where, f"names what is no regular file: {path}", "give a file")
        else:
            path.open("rb").close()
    except OSError as error:
        yield Problem(where, f"names a file that cannot be read: {path}: {error.strerror}", "make it readable")


def _conversion(path: Path) -> str:
    """Return advice with a command that makes JSON lines of a file that has rows; empty for other kinds."""
    parser = PARSERS.get(path.suffix.lower())
    if parser is None:
        return ""
    program = f"import csv, json; [print(json.dumps(row)) for row in {parser}]"
    files = f"< {shlex.quote(path.name)} > {shlex.quote(path.stem)}.jsonl"
    return f"make JSON lines of it, with the key 'text' or 'messages': python3 -c '{program}' {files}"


def _texts(path: Path) -> Iterator[Row]:
    for number, text in enumerate(_decoded(path).replace("\r\n", "\n").split("\n\n"), 1):
        if text.strip():
            yield f"{path.name}#{number}", text.strip()


def _lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):  # what else ends a line in Python is text here
        if line.strip():
            yield f"{path.name}:{number}", content_of(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _table(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            columns = [name for name in ("text", "messages") if name in present]
            if not columns:
                what = f"has no column 'text' or 'messages', but {_listed(present)}"
                raise bad_input(path, what, "rename the column that holds the text")
            records = (record for batch in file.iter_batches(columns=columns) for record in batch.to_pylist())
            for number, record in enumerate(records, 1):
                yield f"{path.name}:{number}", content_of(record, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise bad_input(path, f"cannot be read as parquet: {brief(error)}", "write it again") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".txt": _texts, ".jsonl": _lines, ".parquet": _table}


def _decoded(path: Path) -> str:
    """Return the text of a UTF-8 file, without the byte order mark that some editors put first."""
    data = path.read_bytes()
    if wide := _wide_encoding(data):
        raise bad_input(path, f"is {wide}, not UTF-8", _recoding(path, wide))
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        raise bad_input(f"{path}:{line}", what, _recoding(path, "LATIN1")) from None


def _wide_encoding(data: bytes) -> str:
    """Return which form of UTF-16 a text is in, by its mark, or by NULs, which are every second byte of Latin letters
    there; empty if in none."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if 4 * data.count(0) < len(data) or not data:
        return ""
    return "UTF-16LE" if data.find(0) % 2 else "UTF-16BE"


def _recoding(path: Path, encoding: str) -> str:
    """Return advice with a command that makes UTF-8 of a text in another encoding."""
    name = shlex.quote(path.name)
    return f"convert it, for example: iconv -f {encoding} -t UTF-8 {name} > utf8-{name}"


def _parsed(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise bad_input(where, f"{WANTED}, but no JSON at all: {brief(error)}", FORM) from None


def _is_chat(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(one, dict) and "role" in one for one in content)


def _unsayable(messages: list[dict[str, Any]]) -> str:
    """Return why no chat template could render `messages`: whose role is no text, or whose content is neither text nor
    nothing nor a list of parts; empty if nothing keeps it from that."""
    for number, message in enumerate(messages, 1):
        for key, kinds in (("role", str), ("content", str | list | None)):
            if not isinstance(message.get(key), kinds):
                return f"message {number} of the chat has {_kind(message[key])} as its '{key}', and not text"
    return ""


def _kind(value: Any) -> str:
    """Return words for a JSON value, like `a list of 3, the first of which is text`."""
    match value:
        case dict():
            return f"an object with {_listed(value)}" if value else "an empty object"
        case list():
            return f"a list of {len(value)}, the first of which is {_kind(value[0])}" if value else "an empty list"
        case str():
            return "text"
        case None:
            return "null"
    return "a number" if not isinstance(value, bool) else "true or false"


def _listed(names: Iterable[str]) -> str:
    shown = [f"'{name}'" for name in names]
    return ", ".join([*shown[:6], *(["…"] if len(shown) > 6 else [])])
