"""JSON that somebody hands in: what is none is one kind of error, however it fails."""

import pytest

from pipelines.core.records import parse_json


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\ufeff{}", b"\xff{}", "[" * 200_000, '{"a":' * 200_000])
def test_what_is_no_json_or_nested_without_end_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)


def test_an_object_is_made_by_who_asks_for_it() -> None:
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json('{"a": 1, "a": 2}', list) == [("a", 1), ("a", 2)]
