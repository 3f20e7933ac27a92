"""Reading GGUF files."""

from pathlib import Path
from typing import Any

from pipelines.core.errors import bad_input
from pipelines.core.paths import expanded

IMATRIX = "imatrix.gguf"
"""Name of the importance matrix's file, beside the GGUF."""


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


def read_tokens(file: Path) -> list[str]:
    """Return the text of each token of the GGUF `file`, by its number.

    Raises:
        BadInput: it is no whole GGUF, or has no vocabulary.
    """
    field = read_gguf(file).fields.get("tokenizer.ggml.tokens")
    tokens = field.contents() if field else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise bad_input(file, "has no vocabulary", "give a GGUF with the tokenizer in it")
    return tokens


def find_gguf(model: str | Path) -> Path | None:
    """Return the GGUF that `model` is, or the only one in its folder unless that is a checkpoint; None if there is
    none."""
    place = expanded(model)
    if place.is_file():
        return place if place.suffix == ".gguf" else None
    files = [file for file in place.glob("*.gguf") if file.name != IMATRIX]
    return files[0] if len(files) == 1 and not (place / "config.json").exists() else None
