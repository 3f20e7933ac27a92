"""Reading back the JSON records that commands write."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.core.errors import bad_input

M = TypeVar("M", bound=BaseModel)


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
