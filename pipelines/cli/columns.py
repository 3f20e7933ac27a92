"""Tables that fit a screen without cutting anything off.

Text wraps. Where that does not do, headings and pairs of figures take several lines, then the space around cells goes,
then the columns that matter least, which the table names below.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE_TEXT, NARROW_TEXT = 16, 8
"""Fewest characters that a longer column of text keeps: while there are other means, and in the end."""
PIPED = 160
"""Characters of a line where there is no terminal."""
BREAKS = {" → ": "\n→ ", " … ": "\n… ", ", ": ",\n", " (": "\n("}
"""Text between two figures, or a verdict and what it lacks → the same with the second below the first."""

Cell = str | Text
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table, of figures unless `text` is set."""

    name: str
    text: bool = False
    """Whether the cells of the column may wrap; figures never do."""
    left: bool = False
    """Whether the cells of the column begin at the left, as those of text do."""
    spare: int = 0
    """Place in the order in which columns are left out for want of room; 0 for one that never is."""


@dataclass(frozen=True)
class _Layout:
    """One way of setting a table."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    least: int
    """Fewest characters of a column of text."""
    padding: int

    def needs(self) -> int:
        """Return how many characters a line takes at least."""
        cells = zip(*([column.name for column in self.columns], *self.rows), strict=True)
        widths = [max(map(_width, column)) for column in cells]
        kept = [
            min(width, self.least) if column.text else width for column, width in zip(self.columns, widths, strict=True)
        ]
        return sum(kept) + (2 * self.padding + 1) * len(kept) + 1


def console(width: int | None = None) -> Console:
    """Return standard output, wide enough for our tables when it is not a terminal. Names in brackets are no markup."""
    plain = Console(highlight=False, markup=False, width=width)
    return plain if plain.is_terminal or width else Console(highlight=False, markup=False, width=PIPED)


def show_table(title: str, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Print a table as wide as the screen, or as its figures where those need more."""
    table, width = fitted(title, columns, rows, console().width)
    console(width).print(table)


def fitted(title: str, columns: Sequence[Column], rows: Iterable[Row], width: int) -> tuple[Table, int]:
    """Return a table for a screen of `width`, and the width to print it in, which is more where nothing helps."""
    layouts = list(_layouts(tuple(columns), tuple(rows)))
    layout = next((layout for layout in layouts if layout.needs() <= width), layouts[-1])
    dropped = [column.name for column in columns if column.name not in {_line(kept.name) for kept in layout.columns}]
    caption = f"left out, the screen is too narrow: {', '.join(dropped)}" if dropped else None
    table = Table(
        title=title or None,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        padding=(0, layout.padding),
    )
    for column in layout.columns:
        table.add_column(
            Text(column.name),
            justify="left" if column.text or column.left else "right",
            overflow="fold",
            no_wrap=not column.text,
        )
    for row in layout.rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table, max(width, layout.needs())


def _layouts(columns: tuple[Column, ...], rows: tuple[Row, ...]) -> Iterator[_Layout]:
    """Yield ways to set the table, the best first; each of the later ones takes less room."""
    headed, broken = tuple(map(_headed, columns)), tuple(tuple(map(_broken, columns, row)) for row in rows)
    yield _Layout(columns, rows, WIDE_TEXT, 1)
    yield _Layout(headed, rows, WIDE_TEXT, 1)
    while True:
        for padding in (1, 0):
            for least in (WIDE_TEXT, NARROW_TEXT):
                yield _Layout(headed, broken, least, padding)
        spare = min((column.spare for column in headed if column.spare), default=0)
        if not spare:
            return
        kept = [place for place, column in enumerate(headed) if column.spare != spare]
        headed = tuple(headed[place] for place in kept)
        broken = tuple(tuple(row[place] for place in kept) for row in broken)


def _headed(column: Column) -> Column:
    """Return the column with a line for each word of a heading over figures."""
    name = column.name if column.text else column.name.replace(" ", "\n")
    return Column(name, column.text, column.left, column.spare)


def _broken(column: Column, cell: Cell) -> Cell:
    """Return the cell with the second of two figures below the first; text wraps by itself."""
    if column.text:
        return cell
    text = cell.plain if isinstance(cell, Text) else cell
    for pair, below in BREAKS.items():
        text = text.replace(pair, below)
    return Text(text, style=cell.style) if isinstance(cell, Text) else text


def _line(name: str) -> str:
    return name.replace("\n", " ")


def _width(cell: Cell) -> int:
    text = cell if isinstance(cell, Text) else Text(cell)
    return max((line.cell_len for line in text.split("\n", allow_blank=True)), default=0)
