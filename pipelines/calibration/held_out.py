"""Text that no calibration takes, to measure the distance of an artifact from its source on."""

from collections.abc import Iterable, Iterator
from functools import cache

from pipelines.calibration.sources import source_rows
from pipelines.calibration.tokens import CalibrationTokens
from pipelines.core.text_files import Row
from pipelines.recipe.load import load_set
from pipelines.recipe.recipe import Calibrate
from pipelines.runtimes.amounts import DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT

HELD_OUT = "passages"
"""Name of the set that held-out text is of."""
HELD_OUT_CHARACTERS = 8 * DIVERGENCE_CHUNKS * DIVERGENCE_CONTEXT
"""Number of characters of that set that no calibration takes: the most that `held_out` is asked for."""


def held_out(tokens: CalibrationTokens | None, characters: int) -> str:
    """Return about as many characters of the set `passages`, none of them of a row that `tokens` were made of."""
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
    return tuple(source_rows(load_set(HELD_OUT), Calibrate(set=HELD_OUT, seed=7))[0])


def without_held_out(rows: Iterable[Row]) -> Iterator[Row]:
    """Return the rows but for so many of the last that `held_out` finds enough in them."""
    kept, left = list(rows), HELD_OUT_CHARACTERS
    while kept and left > 0:
        left -= len(kept.pop()[1])
    return iter(kept)
