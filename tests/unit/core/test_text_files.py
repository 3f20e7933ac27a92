"""Calibration files of a user's own: what is a row, what is refused, and that the way out that is told leads out."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from pipelines.core.errors import BadInput
from pipelines.core.text_files import READERS, Row, read_rows, refusals
from pipelines.recipe.load import load_recipe, load_set
from tests.conftest import Cli

SET = "{{version: 1, name: mine, summary: of the test, source: {{kind: files, paths: [{}]}}}}\n"
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]


def rows(folder: Path, name: str, content: str | bytes) -> list[Row]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(folder / name))


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    """What is said of a file, without its folder."""
    with pytest.raises(BadInput) as error:
        rows(folder, name, content)
    return str(error.value).replace(f"{folder}/", "")


def write_set(folder: Path, *names: str) -> Path:
    (folder / "set.yaml").write_text(SET.format(", ".join(map(json.dumps, names))))
    return folder / "set.yaml"


# Rows


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_only_a_newline_ends_a_line_of_json(tmp_path: Path, inside: str) -> None:
    lines = [json.dumps({"text": f"one{inside}two"}, ensure_ascii=inside < " "), '{"text": "three"}']
    assert rows(tmp_path, "a.jsonl", "\n".join(lines)) == [("a.jsonl:1", f"one{inside}two"), ("a.jsonl:2", "three")]


def test_lines_may_end_as_on_windows_and_blank_ones_are_no_rows(tmp_path: Path) -> None:
    found = rows(tmp_path, "a.jsonl", '\r\n{"text": "one"}\r\n\r\n  \r\n{"messages": ' + json.dumps(CHAT) + "}\r\n")
    assert found == [("a.jsonl:2", "one"), ("a.jsonl:5", CHAT)]


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "one"), ("a.TXT", "one\r\n"), ("a.jsonl", '{"text": "one"}'), ("a.txt", "one\n\n")]
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, content: str) -> None:
    ((_, text),) = rows(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
    assert text == "one"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts_lie_between_blank_lines(tmp_path: Path, end: str) -> None:
    found = rows(tmp_path, "a.txt", f"one{end}more{end}{end}two{end}{end}{end}{end}three\x85")
    assert found == [("a.txt#1", "one\nmore"), ("a.txt#2", "two"), ("a.txt#4", "three")]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"id": [1, 2], "text": ["one", "two"]}, ["one", "two"]),
        ({"messages": [CHAT, CHAT[:1]]}, [CHAT, CHAT[:1]]),
        ({"text": ["one", None], "messages": [None, CHAT]}, ["one", CHAT]),
    ],
)
def test_a_table_has_a_column_of_texts_or_of_messages(
    tmp_path: Path, table: dict[str, Any], expected: list[Any]
) -> None:
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    found = [(f"a.parquet:{number}", content) for number, content in enumerate(expected, 1)]
    assert list(read_rows(tmp_path / "a.parquet")) == found


# Refusals


FORM = '\n    rows are like {"text": "…"} or {"messages": [{"role": "user", "content": "…"}]}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"txt": "a", "id": 1}', "but an object with 'txt', 'id'"),
        ("{}", "but an empty object"),
        ('["a", "b"]', "but a list of 2, the first of which is text"),
        ("[]", "but an empty list"),
        ('"a"', "but text"),
        ("3.5", "but a number"),
        ("true", "but true or false"),
        ("null", "but null"),
        ("text", "but no JSON at all: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 9000, "but no JSON at all: "),
        ('{"text": 7}', ": its 'text' is a number"),
        ('{"text": null}', ": its 'text' is null"),
        ('{"messages": "a"}', ": its 'messages' is text"),
        (
            '{"messages": [{"from": "a", "value": "b"}]}',
            ": its 'messages' is a list of 1, the first of which is an object with 'from', 'value'",
        ),
        (json.dumps(dict.fromkeys("abcdefgh")), "but an object with 'a', 'b', 'c', 'd', 'e', 'f', …"),
    ],
)
def test_a_line_that_is_no_row_says_what_it_is(tmp_path: Path, line: str, told: str) -> None:
    said = refusal(tmp_path, "a.jsonl", '{"text": "fine"}\n\n' + line)
    start = "a.jsonl:3: is not a JSON object with 'text' or 'messages'"
    assert said.startswith(f"{start}{told}" if told.startswith(":") else f"{start}, {told}")
    assert said.endswith(FORM)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "assistant", "content": 7}, "has a number as its 'content'"),
        ({"role": "assistant", "content": {"text": "I."}}, "has an object with 'text' as its 'content'"),
        ({"role": "assistant", "content": True}, "has true or false as its 'content'"),
        ({"role": 3, "content": "I."}, "has a number as its 'role'"),
        ({"role": None, "content": "I."}, "has null as its 'role'"),
    ],
)
def test_a_message_that_no_template_renders_is_named(tmp_path: Path, message: dict[str, Any], told: str) -> None:
    said = refusal(tmp_path, "a.jsonl", "\n" + json.dumps({"messages": [CHAT[0], message]}))
    assert said == f"a.jsonl:2: message 2 of the chat {told}, and not text{FORM}"


def test_a_message_may_have_parts_or_nothing_to_say(tmp_path: Path) -> None:
    calls = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool"}]
    chat = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, *calls]
    assert rows(tmp_path, "a.jsonl", json.dumps({"messages": chat})) == [("a.jsonl:1", chat)]


@pytest.mark.parametrize(
    ("name", "content", "where", "byte", "offset"),
    [
        ("a.txt", "one\ncaf\xe9".encode("latin1"), "a.txt:2", "0xe9", 7),
        ("a.jsonl", '{"text": "one"}\n{"text": "caf\xe9"}'.encode("latin1"), "a.jsonl:2", "0xe9", 29),
        ("a.txt", b"\xef\xbb\xbfone \xe2\x82", "a.txt:1", "0xe2", 7),
    ],
)
def test_bytes_that_are_no_text_are_told_with_their_place(
    tmp_path: Path, name: str, content: bytes, where: str, byte: str, offset: int
) -> None:
    said = refusal(tmp_path, name, content)
    assert said.startswith(f"{where}: is not UTF-8: byte {byte} at offset {offset}\n    convert it, for example: iconv")


@pytest.mark.parametrize("name", ["my notes.txt", "rows.jsonl"])
@pytest.mark.parametrize(
    ("mark", "codec", "told"),
    [
        (b"\xff\xfe", "utf-16-le", "UTF-16"),
        (b"\xfe\xff", "utf-16-be", "UTF-16"),
        (b"", "utf-16-le", "UTF-16LE"),
        (b"", "utf-16-be", "UTF-16BE"),
    ],
)
def test_what_is_utf_16_is_called_so_and_converted_as_told(
    tmp_path: Path, name: str, mark: bytes, codec: str, told: str
) -> None:
    text = "caf\xe9 \u65e5\u672c\n\nmore" if name.endswith(".txt") else json.dumps({"text": "caf\xe9"})
    said = refusal(tmp_path, name, mark + text.encode(codec))
    assert said.startswith(f"{name}: is {told}, not UTF-8\n    convert it, for example: iconv -f {told} -t UTF-8 ")
    subprocess.run(said.partition("example: ")[2], shell=True, cwd=tmp_path, check=True)
    converted = next(path for path in tmp_path.iterdir() if path.name.startswith("utf8"))
    assert "caf\xe9" in str(next(read_rows(converted))[1])


def test_a_nul_in_utf_8_is_no_other_encoding(tmp_path: Path) -> None:
    assert rows(tmp_path, "a.txt", b"one\0two caf\xc3\xa9") == [("a.txt#1", "one\0two caf\xe9")]
    assert rows(tmp_path, "b.txt", b"") == []


def test_the_conversion_that_is_told_makes_text(tmp_path: Path) -> None:
    told = refusal(tmp_path, "my notes.txt", "caf\xe9".encode("latin1")).partition("example: ")[2]
    subprocess.run(told, shell=True, cwd=tmp_path, check=True)
    converted = next(path for path in tmp_path.iterdir() if path.name.startswith("utf8"))
    assert [text for _, text in read_rows(converted)] == ["café"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PAR1 not", "a.parquet: cannot be read as parquet: "),
        (
            {"txt": ["a"], "n": [1]},
            "a.parquet: has no column 'text' or 'messages', but 'txt', 'n'\n    rename the column",
        ),
        ({"text": ["a", None]}, "a.parquet:2: is not a JSON object with 'text' or 'messages': its 'text' is null"),
        ({"text": [1]}, "a.parquet:1: is not a JSON object with 'text' or 'messages': its 'text' is a number"),
    ],
)
def test_a_table_without_texts_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    file = tmp_path / "a.parquet"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        parquet.write_table(pyarrow.table(content), file)
    with pytest.raises(BadInput) as error:
        list(read_rows(file))
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(told)


UNREADABLE = {
    "a.json": "of a kind that is not read: a.json",
    "b.csv": "of a kind that is not read: b.csv",
    "c.jsonl.gz": "of a kind that is not read: c.jsonl.gz",
    "d": "of a kind that is not read: d",
    "absent.txt": "that does not exist: absent.txt",
    "folder.txt": "that cannot be read: folder.txt: Is a directory",
    f"{'x' * 300}.txt": f"that cannot be read: {'x' * 300}.txt: File name too long",
    "../beyond.txt": "outside its folder: ../beyond.txt",
    "circle.txt": "outside its folder: circle.txt",
}


def test_every_file_that_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "circle.txt").symlink_to(tmp_path / "circle.txt")
    (tmp_path / "fine.jsonl").write_text("not looked at yet")
    file = write_set(tmp_path, "fine.jsonl", *UNREADABLE)
    with pytest.raises(BadInput) as error:
        load_set(file)
    places = [file.read_text().index(f'"{name}"') + 1 for name in UNREADABLE]
    assert [f"{problem.where}: {problem.what}".replace(f"{tmp_path}/", "") for problem in error.value.problems] == [
        f"set.yaml:1:{place}: names a file {what}" for place, what in zip(places, UNREADABLE.values(), strict=True)
    ]


def test_files_are_looked_at_before_anything_is_done(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    done = cli("run", "int8", "--model", tmp_path, "--set", f"calibrate.set={write_set(tmp_path, 'notes.md')}")
    told = f"{tmp_path}/set.yaml:1:78: names a file of a kind that is not read: {tmp_path}/notes.md\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {told}    give texts between blank lines as .txt, or rows with")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my rows.json", '[{"text": "one"}, {"text": "two, \\"three\\"\\u2028"}]'),
        ("rows.csv", 'text,id\none,1\n"two, ""three""\u2028",2\n'),
    ],
)
def test_the_command_that_is_told_makes_lines_of_other_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInput) as error:
        load_set(write_set(tmp_path, name))
    told = re.search("python3 -c .*", str(error.value))
    assert told
    subprocess.run(told[0], shell=True, cwd=tmp_path, check=True)
    made = f"{Path(name).stem}.jsonl"
    assert load_set(write_set(tmp_path, made)).source
    assert [text for _, text in read_rows(tmp_path / made)] == ["one", 'two, "three"\u2028']


def test_what_is_read_is_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(BadInput) as error:
        load_recipe("int8", [f"calibrate.set={write_set(tmp_path, 'notes.md')}"])
    assert set(re.findall(r"\.[a-z]+\b", str(error.value).splitlines()[1])) == READERS.keys()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (problem,) = refusals("set.yaml", tmp_path / "pipe.txt")
    assert problem.what.startswith("names what is no regular file")
