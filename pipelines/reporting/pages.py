"""Pages as plain data, and the same page as one self-contained HTML file or as Markdown.

Everything that a page says is untrusted text, escaped here and nowhere else; only a chart's SVG is taken as it is. The
HTML file asks nothing of the network and runs nothing: its own policy forbids both.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, assert_never

from pipelines.reporting import svg
from pipelines.reporting.svg import escaped


class Link(NamedTuple):
    """To a group of the same page."""

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
    """Columns of words, set flush left as the first is; the others hold numbers."""


class Facts(NamedTuple):
    """Names and values."""

    rows: tuple[tuple[str, str], ...]


class Tiles(NamedTuple):
    """The few numbers that matter: label, value, what else there is to say."""

    rows: tuple[tuple[str, str, str], ...]


class Chart(NamedTuple):
    """A drawing; Markdown leaves it out, so that its numbers must be in a table, too."""

    drawing: str
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
    """`good`, `bad` or `warn`."""
    solid: bool
    """Whether it is beyond doubt."""
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
    """Whether it may stand beside another."""
    folded: bool = False


class Group(NamedTuple):
    """What is about one thing; without a title, what the page is about."""

    title: str
    anchor: str
    parts: tuple[Block | Section, ...]


class Page(NamedTuple):
    """A whole page."""

    title: str
    about: str
    groups: tuple[Group, ...]
    foot: str


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = Path(__file__).with_suffix(".css")


def html(page: Page) -> str:
    """One file that needs no other."""
    body = "".join(_group(group, "page" if number else "") for number, group in enumerate(page.groups))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escaped(page.title)}</title>"
        f"<style>{svg.theme(':root')}{svg.STYLE}{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f'<body><main id="page"><header><h1>{escaped(page.title)}</h1>'
        f'<p class="muted">{escaped(page.about)}</p></header>'
        f"\n{body}\n<footer><p>{escaped(page.foot)}</p></footer></main></body></html>\n"
    )


def _group(group: Group, back: str) -> str:
    level = 3 if group.title else 2
    parts = "\n".join(_section(part, level) if isinstance(part, Section) else _block(part) for part in group.parts)
    link = f'<a href="#{back}">back to the top</a>' if back else ""
    head = f"<h2><span>{escaped(group.title)}</span>{link}</h2>" if group.title else ""
    return f'<section class="group" id="{escaped(group.anchor)}">{head}<div class="grid">{parts}</div></section>\n'


def _section(section: Section, level: int) -> str:
    blocks, head = "".join(map(_block, section.blocks)), f"<h{level}>{escaped(section.title)}</h{level}>"
    kind = "card half" if section.half else "card"
    if section.folded:
        return f'<details class="{kind}"><summary>{head}</summary>{blocks}</details>'
    return f'<section class="{kind}">{head}{blocks}</section>'


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Facts(rows):
            return f'<dl class="facts">{"".join(f"<dt>{escaped(a)}</dt><dd>{escaped(b)}</dd>" for a, b in rows)}</dl>'
        case Tiles(rows):
            return f'<dl class="tiles">{"".join(_tile(*row) for row in rows)}</dl>'
        case Chart(drawing, wide):
            return f'<figure class="scroll" tabindex="0">{drawing}</figure>' if wide else f"<figure>{drawing}</figure>"
        case Note(said, muted):
            return f'<p class="muted">{escaped(said)}</p>' if muted else f"<p>{escaped(said)}</p>"
        case Code(said):
            return f"<pre><code>{escaped(said)}</code></pre>"
        case Banner():
            return _banner(block)
        case _:
            assert_never(block)


def _tile(label: str, value: str, note: str) -> str:
    more = f'<dd class="note">{escaped(note)}</dd>' if note else ""
    return f'<div><dt>{escaped(label)}</dt><dd class="value">{escaped(value)}</dd>{more}</div>'


def _banner(banner: Banner) -> str:
    reasons = "".join(f"<li>{escaped(reason)}</li>" for reason in banner.reasons)
    kind = f"banner {banner.colour}" + " solid" * banner.solid
    return (
        f'<div class="{kind}"><strong class="verdict">{escaped(banner.verdict)}</strong>'
        f'<p class="headline">{escaped(banner.headline)}</p><p>{escaped(banner.about)}</p>'
        f"<ul>{reasons}</ul></div>"
    )


def _table(table: Table) -> str:
    words = {table.columns[0], *table.left}
    kinds = [' class="left"' * (column in words) for column in table.columns]
    head = "".join(
        f'<th scope="col"{kind}>{escaped(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "".join(f"<tr>{_row(row, kinds)}</tr>" for row in table.rows)
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(table.title)}">'
    return f"{region}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _row(row: Sequence[Cell], kinds: Sequence[str]) -> str:
    first = f'<th scope="row">{_cell(row[0])}</th>'
    return first + "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))


def _cell(cell: Cell) -> str:
    match cell:
        case Link(said, anchor):
            return f'<a href="#{escaped(anchor)}">{escaped(said)}</a>'
        case Mark(said, colour):
            return f'<span class="word {colour}">{escaped(said)}</span>'
        case str():
            return escaped(cell)
        case _:
            assert_never(cell)


SIGNS = {"good": "✅", "bad": "❌", "warn": "⚠️"}


def markdown(page: Page) -> str:
    """For a CI job's summary: the same page, without its charts."""
    lines = [f"# {plain(page.title)}", "", plain(page.about), ""]
    for group in page.groups:
        lines += [f"## {plain(group.title)}", ""] if group.title else []
        level = 3 if group.title else 2
        for part in group.parts:
            lines += _section_lines(part, level) if isinstance(part, Section) else _block_lines(part)
    return "\n".join([*lines, "---", "", plain(page.foot), ""])


def _section_lines(section: Section, level: int) -> list[str]:
    blocks = [line for block in section.blocks for line in _block_lines(block)]
    if not blocks:
        return []
    if section.folded:
        return [f"<details><summary>{escaped(section.title)}</summary>", "", *blocks, "</details>", ""]
    return [f"{'#' * level} {plain(section.title)}", "", *blocks]


def _block_lines(block: Block) -> list[str]:
    match block:
        case Table(_, columns, rows, left):
            marks = (":---" if column in {columns[0], *left} else "---:" for column in columns)
            return [_bars(columns), _bars(marks, raw=True), *(_bars(map(_said, row)) for row in rows), ""]
        case Facts(rows):
            return [*(f"- {plain(name)}: {plain(value)}" for name, value in rows), ""]
        case Tiles(rows):
            return [
                *(f"- {plain(label)}: **{plain(value)}** {plain(note)}".rstrip() for label, value, note in rows),
                "",
            ]
        case Chart():
            return []
        case Note(said):
            return [plain(said), ""]
        case Code(said, language):
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", said))])
            return [fence + language, clean(said).rstrip("\n"), fence, ""]
        case Banner(colour, _, verdict, headline, about, reasons):
            head = f"**{SIGNS[colour]} {plain(verdict)}: {plain(headline)}**"
            return [head, "", plain(about), "", *(f"- {plain(reason)}" for reason in reasons), ""]
        case _:
            assert_never(block)


def _said(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.said


def _bars(cells: Iterable[str], raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else plain(cell) for cell in cells)} |"


def clean(said: str) -> str:
    """Without what no text file should hold, escape sequences of terminals above all."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", said)


def plain(said: str) -> str:
    """Text that is nothing but text in Markdown, on one line, in a table, too."""
    line = " ".join(clean(said).split())
    line = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"^([-+=])", r"\\\1", line)  # the start of a list, of a heading
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)
