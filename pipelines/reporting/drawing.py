"""Figures of matplotlib as SVG that a page can hold: colours by custom property, text as text, no fonts, no styles of
their own, no ids but those that name the drawing.

matplotlib knows no custom properties and no tips for a pointer. So each colour is drawn in a stand-in that is replaced
in the SVG, and an artist's group id carries its tip (`tip`), which becomes a `<title>`.
"""

import contextlib
import hashlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from xml.etree import ElementTree

from markupsafe import Markup

from pipelines.reporting.rendering import clean, in_html

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES, HEAT = 8, 7
"""Number of colours for lines, and for the steps of a heat map (the first is the worst)."""
NAMES = (
    *("ink", "muted", "paper", "grid", "axis", "accent", "good", "bad", "warn"),
    *(f"series{number}" for number in range(SERIES)),
    *(f"heat{number}" for number in range(HEAT)),
)
"""Custom properties of `templates/theme.css` that a chart may use."""
STAND_INS = {name: f"#fe00{number:02x}" for number, name in enumerate(NAMES)}
"""Colours that matplotlib draws with, one for each custom property."""
ACCURACY = 1
"""Digits after the point of a coordinate, in 96ths of an inch."""

KEPT = frozenset(
    (
        *("fill", "stroke", "opacity", "fill-opacity", "stroke-opacity", "stroke-width", "stroke-dasharray"),
        *("stroke-linecap", "stroke-linejoin", "font-size", "font-weight", "text-anchor"),
    )
)
"""Properties that a drawing keeps of what matplotlib says; the rest, fonts above all, is the page's."""
USUAL = {"opacity": "1", "font-size": "12px", "text-anchor": "start", "stroke-linejoin": "miter"}
"""Values that need not be said, as SVG or `templates/chart.css` says them already."""


def _settings() -> dict[Any, Any]:
    ink, muted, axis, grid = (STAND_INS[name] for name in ("ink", "muted", "axis", "grid"))
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "quantgate",
        "text.parse_math": False,  # a name with dollars is a name
        "font.size": 12,
        "text.color": ink,
        "axes.edgecolor": axis,
        "axes.labelcolor": muted,
        "axes.labelsize": 13,
        "axes.labelpad": 8,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.major.pad": 7,
        "ytick.major.pad": 8,
        "grid.color": grid,
        "grid.linewidth": 1,
        "axes.linewidth": 1,
        "axes.axisbelow": True,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "legend.frameon": False,
        "legend.borderpad": 0,
        "legend.borderaxespad": 0,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.5,
    }


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw as we do while this lasts, whatever a `matplotlibrc` of the user or of this folder says.

    Names in scripts that matplotlib has no glyphs for are no cause to warn: the page shows them in fonts that have.
    """
    import matplotlib as mpl

    usual: dict[Any, Any] = {
        name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")
    }
    with mpl.rc_context({**usual, **_settings()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def figure(width: float, height: float) -> "Figure":
    """Make a transparent figure, in the units of its SVG."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width / 72, height / 72), dpi=72)
    made.patch.set_visible(False)
    return made


def axes(within: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add transparent axes at a place that is counted from the left and the top."""
    whole, tall = (72 * float(inches) for inches in within.get_size_inches())
    made = within.add_axes((left / whole, 1 - (top + height) / tall, width / whole, height / tall))
    made.patch.set_visible(False)
    return made


A = TypeVar("A", bound="Artist")


def tip(artist: A, said: str) -> A:
    """Let a pointer over the artist show `said`."""
    artist.set_gid(f"tip:{said}")
    return artist


def halo(artist: A) -> A:
    """Keep what is below a text from running through it."""
    artist.set_gid("halo")
    return artist


def width_of(said: str, size: float = 12, strong: bool = False) -> float:
    """Measure a text in matplotlib's own font, which is wider than most."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if strong else "normal")
    return float(text_to_path.get_text_width_height_descent(short(said), font, ismath=False)[0])


def short(said: str, most: int = 200) -> str:
    """Return a text that fits: one line without control characters, cut where it has more than `most` characters."""
    line = " ".join(clean(said).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def markup(drawn: "Figure", title: str, told: str, standalone: bool) -> Markup:
    """Return the whole drawing; `told` is what it says, in words and numbers.

    Where it is to stand alone, as a file, it carries colours, title and background.
    """
    key = "c" + hashlib.sha256(f"{title}\n{told}".encode(errors="replace")).hexdigest()[:12]
    width, height = (72 * float(inches) for inches in drawn.get_size_inches())
    heads = (textwrap.wrap(title, int((width - 28) / 8.2)) or [""]) if standalone else []
    inside = Markup("".join(ElementTree.tostring(part, encoding="unicode") for part in _parts(_raw(drawn))))
    return Markup(
        in_html("chart.svg.j2", key=key, title=title, told=told, width=width, height=height, heads=heads, inside=inside)
    )


def _raw(drawn: "Figure") -> ElementTree.Element:
    """Return matplotlib's own SVG, the same for the same figure."""
    from matplotlib.text import Text

    for artist in drawn.findobj():
        artist.set_clip_on(False)  # a clip path would need an id
        if isinstance(artist, Text):
            artist.set_text(short(artist.get_text()))
    written = io.StringIO()
    drawn.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(clean(written.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows SVG's namespace without being told
    return root


def _parts(raw: ElementTree.Element) -> list[ElementTree.Element]:
    shapes = {f"#{each.get('id')}": each for each in raw.iter("path") if each.get("id")}
    return [part for child in raw for part in _converted(child, shapes)]


def _converted(raw: ElementTree.Element, shapes: Mapping[str, ElementTree.Element]) -> list[ElementTree.Element]:
    """Return the elements that an element becomes: groups are dissolved, and marks are drawn wherever they are used."""
    match raw.tag:
        case "g":
            parts = [part for child in raw for part in _converted(child, shapes)]
            return _named(raw.get("id", ""), parts)
        case "use":
            shape = shapes[raw.attrib["{http://www.w3.org/1999/xlink}href"]]
            place = f"translate({_rounded(raw.get('x', '0'))} {_rounded(raw.get('y', '0'))})"
            style = _style(raw) | _style(shape)
            return [_element("path", style, d=_rounded(shape.attrib["d"]), transform=place)]
        case "path":
            drawn = raw.get("d")  # a line outside of the axes has none
            return [_element("path", _style(raw), d=_rounded(drawn))] if drawn else []
        case "text":
            made = _element("text", _style(raw), **_place(raw))
            made.text = raw.text
            return [made]
        case _:  # metadata, definitions and their style
            return []


def _named(name: str, parts: list[ElementTree.Element]) -> list[ElementTree.Element]:
    """Give the parts of a group the tip or the halo that its id asks for."""
    for part in parts:
        if name.startswith("tip:"):
            ElementTree.SubElement(part, "title").text = name.removeprefix("tip:")
        elif name == "halo":
            part.set("class", "halo")
    return parts


def _place(raw: ElementTree.Element) -> dict[str, str]:
    x, y, turned = raw.get("x", "0"), raw.get("y", "0"), raw.get("transform", "")
    if turned.startswith(("rotate(-0 ", "rotate(0 ")):
        return {"x": _rounded(x), "y": _rounded(y)}
    return {"x": _rounded(x), "y": _rounded(y), "transform": _rounded(turned)}


def _element(tag: str, style: Mapping[str, str], **attributes: str) -> ElementTree.Element:
    said = ";".join(f"{name}:{value}" for name, value in style.items() if USUAL.get(name) != value)
    return ElementTree.Element(tag, {**({"style": said} if said else {}), **attributes})


def _style(raw: ElementTree.Element) -> dict[str, str]:
    """Return the properties of an element, its colours as custom properties."""
    pairs = (each.split(":", 1) for each in raw.get("style", "").split(";") if each.strip())
    said = {name.strip(): value.strip() for name, value in pairs}
    return {name: PROPERTIES.get(value, _rounded(value)) for name, value in said.items() if name in KEPT}


PROPERTIES = {colour: f"var(--{name})" for name, colour in STAND_INS.items()}


def _rounded(said: str) -> str:
    """Shorten the numbers in coordinates and paths, and paths along the axes."""
    line = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.{ACCURACY}f}".removesuffix(".0"), said)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(line.split())) if line.lstrip().startswith("M") else line
