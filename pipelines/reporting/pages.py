"""Pages as plain data, and the same page as one self-contained HTML file or as Markdown.

Everything that a page says is untrusted text, which the templates escape; only a chart's SVG is taken as it is. The
HTML file asks nothing of the network and runs nothing: its own policy forbids both.
"""

from typing import NamedTuple

from markupsafe import Markup

from pipelines.reporting.rendering import in_html, in_markdown


class Link(NamedTuple):
    """A link to a group of the same page."""

    said: str
    anchor: str


class Mark(NamedTuple):
    """A word in a colour."""

    said: str
    colour: str


Cell = str | Link | Mark


class Table(NamedTuple):
    """Rows under named columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: tuple[str, ...] = ()
    """Names of the columns of words, set flush left as the first is; the others hold numbers."""

    @property
    def words(self) -> frozenset[str]:
        """Names of the columns that are set flush left."""
        return frozenset((self.columns[0], *self.left))


class Facts(NamedTuple):
    """Names and values."""

    rows: tuple[tuple[str, str], ...]


class Tiles(NamedTuple):
    """The few numbers that matter: label, value, what else there is to say."""

    rows: tuple[tuple[str, str, str], ...]


class Chart(NamedTuple):
    """A drawing; Markdown leaves it out, so that its numbers must be in a table, too."""

    drawing: Markup
    wide: bool = False


class Note(NamedTuple):
    """A paragraph."""

    said: str
    muted: bool = False


class Code(NamedTuple):
    """Text as it is."""

    said: str
    language: str = ""


class Banner(NamedTuple):
    """A verdict, and its reasons."""

    colour: str
    """Colour of the verdict: `good`, `bad` or `warn`."""
    solid: bool
    """Whether the verdict is beyond doubt."""
    verdict: str
    headline: str
    about: str
    reasons: tuple[str, ...]


Block = Table | Facts | Tiles | Chart | Note | Code | Banner


class Section(NamedTuple):
    """Blocks under a title."""

    title: str
    blocks: tuple[Block, ...]
    half: bool = False
    """Whether the section may stand beside another."""
    folded: bool = False


class Group(NamedTuple):
    """The blocks and sections about one thing; those without a title are about the page as a whole."""

    title: str
    anchor: str
    parts: tuple[Block | Section, ...]


class Page(NamedTuple):
    """A whole page."""

    title: str
    about: str
    groups: tuple[Group, ...]
    foot: str


def html(page: Page) -> str:
    """Return the page as one file that needs no other."""
    return in_html("page.html.j2", page=page)


def markdown(page: Page) -> str:
    """Return the page without its charts, for a CI job's summary."""
    return in_markdown("page.md.j2", page=page)
