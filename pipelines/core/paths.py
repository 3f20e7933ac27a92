"""Paths as users write them."""

from pathlib import Path

from pipelines.core.errors import bad_input


def expanded(text: str | Path) -> Path:
    """Return `text` as a path, with `~` replaced by the home folder.

    Raises:
        BadInput: it names a user who has none.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise bad_input(text, "is below the home folder of a user who is not there", "write the whole path") from None
