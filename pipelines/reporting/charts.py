"""Charts of lines and of rows of bars, as self-contained SVG: numbers in the description, names as they are.

All take `standalone`: whether to draw a file of its own, or a part of a page that holds `theme.css` and `chart.css`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from pipelines.core.text import duration, percent, plain
from pipelines.reporting.drawing import SERIES, STAND_INS, axes, figure, halo, markup, short, styled, tip, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDE, NARROW = 640, 440
"""Widths of charts, in their own units: of those with two axes, and of rows of bars."""
PAD = 8
"""Space to the left and the right of rows of bars."""
DASHES = ("solid", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))
STEPS = (1, 2, 2.5, 5, 10)
"""Steps that axes are divided in, and their multiples by powers of ten."""


@styled()
def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    reference: Mapping[str, float] = {},
    log_x: bool = False,
    percent_y: bool = False,
    standalone: bool = False,
) -> Markup:
    """Draw a line through the points (x, y) of each series; `reference` labels horizontal lines. Points that cannot be
    drawn (not finite, or not positive where x is logarithmic) are left out."""
    drawn = {name: [point for point in points if _drawable(point, log_x)] for name, points in series.items()}
    say = percent if percent_y else plain
    columns = _columns(list(drawn))
    top = 14.0 + 22 * math.ceil(len(drawn) / columns)
    whole = figure(WIDE, top + 342)
    plot = axes(whole, 66, top, WIDE - 86, 290)
    ys = [*(y for points in drawn.values() for _, y in points), *reference.values()] or [0.0, 1.0]
    xs = [x for points in drawn.values() for x, _ in points] or [1.0, 10.0]
    scale_x(plot, _powers(min(xs), max(xs)) if log_x else rounds(min(xs), max(xs), 6), log_x)
    scale_y(plot, rounds(min(ys), max(ys), 5), say)
    plot.set(xlabel=x_label, ylabel=y_label)
    handles = [_series(plot, number, points, say) for number, points in enumerate(drawn.values())]
    for name, y in reference.items():
        reference_line(plot, name, y)
    plot.legend(handles, drawn, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns)
    told = [f"{name}: {', '.join(f'{plain(x)} → {say(y)}' for x, y in _some(drawn[name]))}." for name in drawn]
    told += [f"Line at {say(y)}: {name}." for name, y in reference.items()]
    return markup(whole, title, f"{y_label} by {x_label}. {' '.join(told)}", standalone)


def _drawable(point: tuple[float, float], log_x: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[0] > 0 or not log_x)


def _some(points: Sequence[tuple[float, float]], most: int = 16) -> Sequence[tuple[float, float]]:
    """Choose points to tell of: all, or `most` of them, evenly, with both ends."""
    if len(points) <= most:
        return points
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


def _columns(names: Sequence[str]) -> int:
    """Count the names of a legend that fit beside each other."""
    widest = max(map(width_of, names), default=0.0)
    return max(1, min(len(names), int((WIDE - 86) / (widest + 52))))


def rounds(low: float, high: float, about: int) -> Sequence[float]:
    """Return round numbers in equal steps, the first at or below `low`, the last at or above `high`."""
    from matplotlib.ticker import MaxNLocator

    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    return [float(tick) for tick in MaxNLocator(about, steps=STEPS).tick_values(low, high)]


def _powers(low: float, high: float) -> Sequence[float]:
    """Return powers of ten around positive `low` and `high`, with their doubles and fives where there are few."""
    from matplotlib.ticker import LogLocator

    ticker = LogLocator(subs=(1, 2, 5) if high / low <= 1000 else (1,), numticks=100)
    every = [float(tick) for tick in ticker.tick_values(low / 10, high * 10)]
    first = max(tick for tick in every if tick <= low * (1 + 1e-9))
    last = min(tick for tick in every if tick >= high * (1 - 1e-9) and tick > first)
    return [tick for tick in every if first <= tick <= last]


def scale_x(plot: "Axes", ticks: Sequence[float], log: bool = False) -> None:
    """Let the outermost ticks be the ends of the axis, and draw a line at each."""
    if log:
        plot.set_xscale("log")
        plot.minorticks_off()
    plot.set_xticks(ticks, [plain(tick) for tick in ticks])
    plot.set_xlim(ticks[0], ticks[-1])
    plot.grid(True, axis="x")


def scale_y(plot: "Axes", ticks: Sequence[float], say: Callable[[float], str]) -> None:
    plot.set_yticks(ticks, [say(tick) for tick in ticks])
    plot.set_ylim(ticks[0], ticks[-1])
    plot.grid(True, axis="y")


def _series(plot: "Axes", number: int, points: Sequence[tuple[float, float]], say: Callable[[float], str]) -> "Line2D":
    """Draw a line, with a mark for each point where they are few."""
    colour, xs, ys = STAND_INS[f"series{number % SERIES}"], [x for x, _ in points], [y for _, y in points]
    (line,) = plot.plot(xs, ys, color=colour, linewidth=2, linestyle=DASHES[number % len(DASHES)])
    if len(points) <= 40:
        for x, y in points:
            (mark,) = plot.plot(x, y, "o", color=colour, markersize=6, markeredgewidth=0)
            tip(mark, f"{plain(x)}: {say(y)}")
    return line


def reference_line(plot: "Axes", name: str, value: float, at_left: bool = False) -> None:
    """Draw a dashed line with its name above it, or below where there is no room."""
    plot.axhline(value, color=STAND_INS["ink"], linewidth=1, dashes=(4, 3))
    above = plot.transAxes.inverted().transform(plot.transData.transform((plot.get_xlim()[0], value)))[1] < 0.93
    x, side = (0.0, "left") if at_left else (1.0, "right")
    rise, base = (5, "baseline") if above else (-5, "top")
    shift = 4 if at_left else -4
    said = plot.annotate(
        short(name),
        (x, value),
        (shift, rise),
        xycoords=plot.get_yaxis_transform(),
        textcoords="offset points",
        ha=side,
        va=base,
    )
    halo(said)


class Interval(NamedTuple):
    """A retention with its one-sided bounds; None where the data gives none."""

    label: str
    value: float | None
    lower: float | None
    upper: float | None
    strong: bool = False
    """Whether the others add up to this one."""

    def __str__(self) -> str:
        bounds = ("–" if bound is None else f"{bound:.1%}" for bound in (self.lower, self.upper))
        return "no retention" if self.value is None else f"{self.value:.2%} ({' … '.join(bounds)})"


@styled()
def intervals(
    title: str, rows: Sequence[Interval], *, target: float, floor: float | None = None, standalone: bool = False
) -> Markup:
    """Draw each row's value with its bounds as an error bar, against the target and the floor."""
    marks = {"target": target, **({} if floor is None else {"floor": floor})}
    ticks, tall = rounds(*domain(rows, marks.values()), 6), 46.0 * len(rows)
    whole = figure(NARROW, tall + 60)
    plot = _rows(whole, 8, tall, (ticks[0], ticks[-1]))
    for number, row in enumerate(rows):
        _interval(plot, row, 46.0 * number, target, floor)
    plot.tick_params("x", size=4, color=STAND_INS["axis"], pad=4)
    plot.spines["bottom"].set_visible(True)
    plot.set_xticks(ticks, [percent(tick) for tick in ticks])
    first, *_, last = plot.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    _interval_key(plot, marks)
    told = [f"{row.label}: {row}." for row in rows] + [f"{name} {percent(at)}." for name, at in marks.items()]
    return markup(whole, title, f"Retention with one-sided bounds. {' '.join(told)}", standalone)


def domain(rows: Iterable[Interval], marks: Iterable[float]) -> tuple[float, float]:
    """Choose what is to be seen, from the lowest to the highest; bounds that are far off do not count in full."""
    rows = list(rows)
    sure = [value for value in [*marks, *(row.value for row in rows)] if value is not None]
    least, most = min(sure) - 0.3, max(sure) + 0.3
    bounds = [bound for row in rows for bound in (row.lower, row.upper) if bound is not None]
    seen = [*sure, *(min(max(bound, least), most) for bound in bounds)]
    return max(0.0, min(seen)), max(seen)


def _rows(whole: "Figure", top: float, tall: float, scale: tuple[float, float]) -> "Axes":
    """Add axes for rows of bars, whose y is counted from the top in the chart's units."""
    plot = axes(whole, PAD, top, NARROW - 2 * PAD, tall)
    plot.set_xlim(*scale)
    plot.set_ylim(tall, 0)
    plot.set_xticks([])
    plot.set_yticks([])
    plot.spines["bottom"].set_visible(False)
    return plot


def _row_head(plot: "Axes", y: float, label: str, said: str, strong: bool = False) -> None:
    """Write a row's label on the left and its numbers on the right."""
    weight, sides = "bold" if strong else "normal", plot.get_yaxis_transform()
    room = int((NARROW - 2 * PAD - width_of(said, 13, strong)) / 7.4) - 1
    plot.text(0, y, short(label, max(room, 4)), size=13, weight=weight, transform=sides)
    plot.text(1, y, short(said), size=13, weight=weight, ha="right", transform=sides)


def _interval(plot: "Axes", row: Interval, top: float, target: float, floor: float | None) -> None:
    """Draw a row: its label and numbers, a track with the floor and the target, the bounds, the value."""
    (low, high), middle = plot.get_xlim(), top + 28
    _row_head(plot, top + 14, row.label, str(row), row.strong)
    plot.barh(middle, high - low, left=low, height=16, color=STAND_INS["grid"])
    if floor is not None and low <= floor <= high:
        plot.vlines(floor, top + 20, top + 36, STAND_INS["muted"], linewidth=2, linestyles=(0, (2, 1.5)))
    plot.vlines(target, top + 18, top + 38, STAND_INS["ink"], linewidth=2)
    if row.value is None:
        return
    colour = STAND_INS[standing(row.lower, row.upper, target)]
    left, value, right = (min(max(at, low), high) for at in (row.lower or 0.0, row.value, _top(row.upper)))
    plot.plot((left, right), (middle, middle), color=colour, linewidth=2.5, solid_capstyle="butt")
    caps = [at for at, bound in ((left, row.lower), (right, row.upper)) if bound is not None]
    plot.plot(caps, [middle] * len(caps), "|", color=colour, markersize=10, markeredgewidth=2.5)
    size = 12 if row.strong else 10
    (mark,) = plot.plot(value, middle, "o", color=colour, markersize=size, markeredgewidth=0)
    tip(mark, f"{row.label}: {row}")


def _top(bound: float | None) -> float:
    return math.inf if bound is None else bound


def standing(lower: float | None, upper: float | None, target: float) -> str:
    """Choose the colour of bounds: shown to be above the target, shown to be below, or neither."""
    if lower is not None and lower > target:
        return "good"
    return "bad" if upper is not None and upper < target else "accent"


def _interval_key(plot: "Axes", marks: Mapping[str, float]) -> None:
    """Name the lines of the target and the floor below the axis."""
    from matplotlib.path import Path

    broken = Path([(0, -1), (0, -0.2), (0, 0.2), (0, 1)], [Path.MOVETO, Path.LINETO] * 2)
    handles = [
        plot.plot([], [], marker=shape, linestyle="none", color=STAND_INS[colour], markersize=12, markeredgewidth=2)[0]
        for colour, shape, _ in zip(("ink", "muted"), ("|", broken), marks, strict=False)
    ]
    names = [f"{name} {percent(at)}" for name, at in marks.items()]
    plot.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(0, -32 / plot.bbox.height),
        ncols=2,
        handlelength=0.5,
        labelcolor=STAND_INS["muted"],
    )


@styled()
def flips(title: str, rows: Mapping[str, tuple[int, int]], *, standalone: bool = False) -> Markup:
    """Draw answers (lost, gained) of each task as bars to the left and to the right."""
    most = max([1, *(count for pair in rows.values() for count in pair)])
    half = NARROW / 2 - PAD
    reach = most * half / (half - max(44.0, width_of(f"{most:,}") + 12))
    tall = 30.0 + 44 * len(rows)
    whole = figure(NARROW, tall)
    plot = _rows(whole, 0, tall, (-reach, reach))
    plot.text(-8 * reach / half, 16, "lost", weight="bold", ha="right", color=STAND_INS["bad"])
    plot.text(8 * reach / half, 16, "gained", weight="bold", color=STAND_INS["good"])
    for number, (task, (lost, gained)) in enumerate(rows.items()):
        y = 42 + 44.0 * number
        plot.text(0, y - 4, short(task, 50), size=13, ha="center")
        _flip(plot, y + 11, -lost, f"{task}: {lost} lost", "bad")
        _flip(plot, y + 11, gained, f"{task}: {gained} gained", "good")
        plot.vlines(0, y + 1, y + 21, STAND_INS["ink"], linewidth=1)
    told = " ".join(f"{task}: {lost} lost, {gained} gained." for task, (lost, gained) in rows.items())
    return markup(whole, title, f"Answers that changed. {told}", standalone)


def _flip(plot: "Axes", y: float, count: int, said: str, colour: str) -> None:
    (bar,) = plot.barh(y, count, height=16, color=STAND_INS[colour])
    tip(bar, said)
    shift, side = (-6, "right") if colour == "bad" else (6, "left")
    plot.annotate(f"{abs(count):,}", (count, y + 5), (shift, 0), textcoords="offset points", ha=side)


@styled()
def durations(title: str, rows: Sequence[tuple[str, float, str]], *, standalone: bool = False) -> Markup:
    """Draw seconds of each stage as bars; the third of a row is what else there is to say of it."""
    longest, tall = max([1e-9, *(seconds for _, seconds, _ in rows)]), 8.0 + 40 * len(rows)
    whole = figure(NARROW, tall)
    plot = _rows(whole, 0, tall, (0, NARROW - 2 * PAD))
    for number, (stage, seconds, note) in enumerate(rows):
        y = 16 + 40.0 * number
        _row_head(plot, y, stage, " · ".join(filter(None, (duration(seconds), note))))
        _pill(plot, y + 11.5, NARROW - 2 * PAD, "grid")
        tip(_pill(plot, y + 11.5, (NARROW - 2 * PAD) * seconds / longest, "accent"), f"{stage}: {duration(seconds)}")
    spoken = (f"{', '.join(filter(None, (f'{stage}: {duration(spent)}', note)))}." for stage, spent, note in rows)
    return markup(whole, title, f"Time of each stage. {' '.join(spoken)}", standalone)


def _pill(plot: "Axes", y: float, length: float, colour: str) -> "Line2D":
    """Draw a bar with round ends, which is at least as long as it is thick."""
    (bar,) = plot.plot(
        (4.5, max(4.5, length - 4.5)), (y, y), color=STAND_INS[colour], linewidth=9, solid_capstyle="round"
    )
    return bar
