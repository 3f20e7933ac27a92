"""Text from the templates of `templates/`, in which every value is escaped unless it is marked as markup.

HTML and SVG are escaped by Jinja2 itself. In Markdown each value becomes text that is nothing but text (`plain`).
"""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment


def in_html(template: str, **values: object) -> str:
    """Fill a template of HTML or SVG."""
    return _html().get_template(template).render(**values)


def in_markdown(template: str, **values: object) -> str:
    """Fill a template of Markdown."""
    return _markdown().get_template(template).render(**values)


@functools.cache
def _html() -> "Environment":
    return _environment(lambda value: clean(value) if _is_text(value) else value)


@functools.cache
def _markdown() -> "Environment":
    # A value that is marked as markup is not escaped again, so that Jinja2 adds no escaping of HTML to ours.
    return _environment(lambda value: Markup(plain(value)) if _is_text(value) else value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not isinstance(value, Markup)


def _environment(each: Callable[[str], str]) -> "Environment":
    """Make an environment that refuses names without a value and does `each` to every text that a template says."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("pipelines.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=each,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"kind": _kind, "clean": clean, "fence": _fence, "verbatim": _verbatim}
    return made


def _kind(block: object) -> str:
    """Name a block's class, by which a template chooses what to write."""
    return type(block).__name__


def _fence(code: str) -> Markup:
    """Return a fence that no run of backticks in `code` closes."""
    return Markup("`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))]))


def _verbatim(code: str) -> Markup:
    """Return text for between fences, where Markdown knows no markup."""
    return Markup(clean(code).rstrip("\n"))


def clean(said: str) -> str:
    """Replace what no text file should hold, escape sequences of terminals above all."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", said)


def plain(said: str) -> str:
    """Escape a text so that it is nothing but text in Markdown, on one line, in a table, too."""
    line = " ".join(clean(said).split())
    line = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"^([-+=])", r"\\\1", line)  # the start of a list, of a heading
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)
