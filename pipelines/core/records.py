"""Reading JSON: whatever somebody hands in, and the records that commands write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.core.errors import bad_input

M = TypeVar("M", bound=BaseModel)


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what the JSON in `text` stands for; `pairs` makes an object of its keys and values, in order.

    Raises:
        ValueError: it is no JSON, or is nested so deeply that Python does not read it.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(path: Path, kind: type[M], noun: str) -> M:
    """Return the record in the file `path`; messages call its kind `noun`, for example "an evaluation".

    Raises:
        BadInput: the file cannot be read, or holds no such record.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise bad_input(path, f"cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError):
        raise bad_input(path, f"is not a record of {noun} by this version of quantgate") from None
