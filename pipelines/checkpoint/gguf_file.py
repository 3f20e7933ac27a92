"""Reading GGUF files."""

from pathlib import Path
from typing import Any

from pipelines.core.errors import bad_input


def read_gguf(file: Path) -> Any:
    """Return a `gguf.GGUFReader` of `file`, whose tensors are all there.

    Raises:
        BadInput: it is no GGUF, or not a whole one.
    """
    import gguf

    try:
        return gguf.GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        what = f"is not a GGUF file, or not a whole one: {str(error).splitlines()[0][:120] if str(error) else error!r}"
        raise bad_input(file, what, "copy it again") from None
