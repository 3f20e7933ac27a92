"""Pages: whatever they say is text, in HTML and in Markdown, and a page needs nothing but itself."""

import typing
from html.parser import HTMLParser

import jinja2
import pytest
from markupsafe import Markup

from pipelines.reporting.drawing import NAMES
from pipelines.reporting.pages import (
    Banner,
    Block,
    Chart,
    Code,
    Facts,
    Group,
    Link,
    Mark,
    Note,
    Page,
    Section,
    Table,
    Tiles,
    html,
    markdown,
)
from pipelines.reporting.rendering import in_html, in_markdown

HOSTILE = (
    "</style><script src=https://x.example/x.js>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7 * 7 }} \x1b[31m"
)
BLOCKS: tuple[Block, ...] = (
    Table(HOSTILE, (HOSTILE, "n"), ((HOSTILE, Link(HOSTILE, HOSTILE)), (Mark(HOSTILE, HOSTILE), HOSTILE)), (HOSTILE,)),
    Facts(((HOSTILE, HOSTILE),)),
    Tiles(((HOSTILE, HOSTILE, HOSTILE),)),
    Chart(Markup("<svg></svg>"), wide=True),
    Note(HOSTILE, muted=True),
    Code(HOSTILE),
    Banner("good", True, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,)),
)
"""One block of each kind, which says what it can."""
TAGS = frozenset(
    (
        *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "div"),
        *(
            "h1",
            "h2",
            "h3",
            "p",
            "a",
            "span",
            "strong",
            "ul",
            "li",
            "dl",
            "dt",
            "dd",
            "details",
            "summary",
            "pre",
            "code",
        ),
        *("table", "thead", "tbody", "tr", "th", "td", "figure", "svg"),
    )
)
"""What a page may be made of: nothing that runs, and nothing that is fetched."""


def page(*parts: Block | Section) -> Page:
    return Page(HOSTILE, HOSTILE, (Group("", HOSTILE, parts), Group(HOSTILE, "second", parts)), HOSTILE)


class Seen(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}


def test_every_kind_of_block_is_shown_in_both_forms() -> None:
    assert {type(block) for block in BLOCKS} == set(typing.get_args(Block))
    for block in BLOCKS:
        assert "alert" in html(page(block)) or isinstance(block, Chart)
        assert "alert" in markdown(page(block))


@pytest.mark.parametrize("folded", [False, True])
def test_templates_escape_whatever_a_page_says(folded: bool) -> None:
    text = html(page(*BLOCKS, Section(HOSTILE, BLOCKS, folded=folded)))
    seen = Seen(text)
    assert seen.tags <= TAGS
    assert not [name for name, _ in seen.attributes if name in ("src", "srcset") or name.startswith("on")]
    assert all(value.startswith("#") for name, value in seen.attributes if name == "href")
    assert "\x1b" not in text
    assert "{{ 7 * 7 }}" in text


def test_a_drawing_that_is_not_marked_as_markup_is_text() -> None:
    assert "<svg" not in html(page(Chart("<svg></svg>")))  # type: ignore[arg-type]


def test_markdown_holds_no_markup_of_what_a_page_says() -> None:
    text = markdown(page(*BLOCKS[:-2], BLOCKS[-1], Section(HOSTILE, (Note(HOSTILE),), folded=True)))
    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "{{ 7 \\* 7 }}" in text


def test_code_in_markdown_ends_where_it_is_meant_to() -> None:
    lines = markdown(page(Code("````\n# no heading\n", "yaml"))).splitlines()
    first = lines.index("`````yaml")
    assert lines[first : first + 4] == ["`````yaml", "````", "# no heading", "`````"]


def test_a_template_that_lacks_a_value_is_an_error() -> None:
    for fill, name in ((in_html, "page.html.j2"), (in_markdown, "page.md.j2"), (in_html, "chart.svg.j2")):
        with pytest.raises(jinja2.UndefinedError):
            fill(name)


def test_a_page_defines_every_colour_for_light_and_for_dark() -> None:
    text = html(page())
    assert all(text.count(f"--{name}: #") == 2 for name in NAMES)
