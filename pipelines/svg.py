"""What charts are drawn with: the parts of an SVG as strings, its colours, round numbers for axes, numbers as text.

A page holds `STYLE` once and `theme` for its root; a chart that stands alone carries both, a title and a background,
so that it is readable as a file of its own, on light and dark.
"""

import hashlib
import html
import math
import re
import textwrap
from collections.abc import Iterable

LIGHT = {
    "ink": "#1c2128", "muted": "#57606a", "paper": "#ffffff", "grid": "#e4e7eb", "axis": "#aab2bd",
    "accent": "#2f6db5", "good": "#1a7f4b", "bad": "#c2362b", "warn": "#8a5a00",
    "series0": "#2f6db5", "series1": "#c8641b", "series2": "#23835f", "series3": "#9a4798",
    "series4": "#8d6d0f", "series5": "#2489a8", "series6": "#8a4b3c", "series7": "#66707c",
    "heat0": "#7f1d13", "heat1": "#b8432a", "heat2": "#de7f4f", "heat3": "#f0bb8c",
    "heat4": "#cfe0e6", "heat5": "#86b6cb", "heat6": "#3f83a8",
}  # fmt: skip
"""Colour of each custom property; also the fallback where a page defines none."""
DARK = {
    "ink": "#e8ebef", "muted": "#a3adb8", "paper": "#171b21", "grid": "#2b323a", "axis": "#55606c",
    "accent": "#74b3f5", "good": "#4fc68d", "bad": "#f5867b", "warn": "#e3b554",
    "series0": "#74b3f5", "series1": "#f0a066", "series2": "#5cc9a0", "series3": "#d592d3",
    "series4": "#d9bd5a", "series5": "#66c6e0", "series6": "#d19a8c", "series7": "#aab3bd",
    "heat0": "#ff9d86", "heat1": "#e8694a", "heat2": "#b14a2d", "heat3": "#75402c",
    "heat4": "#2c4654", "heat5": "#34708f", "heat6": "#5fb0d6",
}  # fmt: skip
SERIES, HEAT = 8, 7
"""How many colours there are for lines, and for steps of a heat map (the first is the worst)."""
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'


def theme(selector: str) -> str:
    """CSS that gives `selector` the colours of light and dark; print is always light."""
    light, dark = (";".join(f"--{name}:{colour}" for name, colour in colours.items()) for colours in (LIGHT, DARK))
    return f"{selector}{{--font:{FONT};{light}}}@media screen and (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"


def _style() -> str:
    rules = [
        f".chart{{display:block;width:100%;height:auto;font:13px/1.3 var(--font,{FONT})}}",
        ".chart{font-variant-numeric:tabular-nums}",
        f".chart text{{fill:{_colour('ink')}}}",
        f".chart .halo{{paint-order:stroke;stroke:{_colour('paper')};stroke-width:4px;stroke-linejoin:round}}",
        ".chart .small{font-size:12px}.chart .strong{font-weight:650}.chart .title{font-size:15px;font-weight:650}",
        ".chart .line{fill:none;stroke-width:2px;stroke-linejoin:round}.chart .thin{stroke-width:1px}",
        ".chart .bar{stroke-width:2.5px}.chart .dashed{stroke-dasharray:4 3}",
        ".chart .faint{stroke-width:1.5px;opacity:.6}",
    ]
    rules += [f".chart .fill-{name}{{fill:{_colour(name)}}}.chart .{name}{{stroke:{_colour(name)}}}" for name in LIGHT]
    return "".join(rules)


def _colour(name: str) -> str:
    return f"var(--{name},{LIGHT[name]})"


STYLE = _style()
"""CSS of every chart; a page needs it once."""


def escaped(said: object) -> str:
    """Any text, for XML and HTML: markup escaped, characters that XML does not have replaced."""
    return html.escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(said)))


def ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Round numbers in equal steps, the first at or below `low`, the last at or above `high`."""
    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice * about >= (high - low) * 0.999)
    digits = max(0, 2 - math.floor(math.log10(step)))
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return tuple(round(number * step, digits) for number in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten around positive `low` and `high`, with their doubles and fives where there are few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    every = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
    start = max((number for number in range(len(every)) if every[number] <= low * (1 + 1e-9)), default=0)
    end = next((number for number in range(len(every)) if every[number] >= high * (1 - 1e-9)), len(every) - 1)
    return tuple(every[start : max(end, start + 1) + 1])


def plain(value: float) -> str:
    """`12,500`, `0.25`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def size(count: float) -> str:
    """Bytes for people: `163.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """`0.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def roughly(seconds: float) -> str:
    """`8 s`, `11 min`, `2 h 5 min`: as exact as a forecast is."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else duration(seconds)


def percent(value: float) -> str:
    """`98.5%`, with as many digits as it has, three at most after the point."""
    return f"{100 * value:.3f}".rstrip("0").rstrip(".") + "%"


def svg(title: str, told: str, width: float, height: float, body: Iterable[str], standalone: bool) -> str:
    """The whole chart; `told` is what it says, in words and numbers."""
    key = "c" + hashlib.sha256(f"{title}\n{told}".encode(errors="replace")).hexdigest()[:12]
    space, style, shown = "", "", "".join(body)
    if standalone:
        heads = textwrap.wrap(title, int((width - 28) / 8.2)) or [""]
        above = 12 + 20 * len(heads)
        space = 'xmlns="http://www.w3.org/2000/svg" '
        style = f"<style>{theme('svg')}{STYLE}.chart{{width:auto;max-width:100%}}</style>"
        style += f'<rect class="fill-paper" width="{width:g}" height="{height + above:g}" rx="8"/>'
        style += "".join(text(14, 24 + 20 * row, head, "title") for row, head in enumerate(heads))
        shown, height = f'<g transform="translate(0 {above})">{shown}</g>', height + above
    from markupsafe import Markup
    return Markup(
        f'<svg {space}class="chart" role="img" aria-labelledby="{key}-t {key}-d" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
        f'<title id="{key}-t">{escaped(title)}</title><desc id="{key}-d">{escaped(told)}</desc>{style}{shown}</svg>'
    )


def width_of(said: str, size: float = 12) -> float:
    """About how wide text is."""
    return len(said) * size * 0.56


def short(said: str, most: int) -> str:
    return said if len(said) <= most else said[: most - 1] + "…"


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start", more: str = "") -> str:
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{placed}{more and " " + more}>{escaped(said)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, told: str = "", radius: float = 2) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" rx="{radius:g}"'
    return f'<rect class="{kind}" {shape}>{tip(told)}</rect>'


def dot(x: float, y: float, radius: float, kind: str, told: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{tip(told)}</circle>'


def tip(told: str) -> str:
    """What the pointer shows."""
    return told and f"<title>{escaped(told)}</title>"
