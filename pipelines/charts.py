"""Charts as self-contained SVG, drawn by matplotlib: numbers in the description, names as they are.

All take `standalone`: whether to draw a file of its own, or a part of a page that holds `theme.css` and `chart.css`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from pipelines.drawing import HEAT, SERIES, STAND_INS, axes, figure, halo, markup, short, styled, tip, width_of
from pipelines.svg import duration, percent, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDE, NARROW = 640, 440
"""Widths of charts, in their own units: of those with two axes, and of rows of bars."""
PAD = 8
"""Left and right of rows of bars."""
DASHES = ("solid", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))
STEPS = (1, 2, 2.5, 5, 10)
"""Axes are divided in these, and their powers of ten."""


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
    _scale_x(plot, _powers(min(xs), max(xs)) if log_x else _rounds(min(xs), max(xs), 6), log_x)
    _scale_y(plot, _rounds(min(ys), max(ys), 5), say)
    plot.set(xlabel=x_label, ylabel=y_label)
    handles = [_series(plot, number, points, say) for number, points in enumerate(drawn.values())]
    for name, y in reference.items():
        _reference(plot, name, y)
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


def _rounds(low: float, high: float, about: int) -> Sequence[float]:
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


def _scale_x(plot: "Axes", ticks: Sequence[float], log: bool = False) -> None:
    """Let the outermost ticks be the ends of the axis, and draw a line at each."""
    if log:
        plot.set_xscale("log")
        plot.minorticks_off()
    plot.set_xticks(ticks, [plain(tick) for tick in ticks])
    plot.set_xlim(ticks[0], ticks[-1])
    plot.grid(True, axis="x")


def _scale_y(plot: "Axes", ticks: Sequence[float], say: Callable[[float], str]) -> None:
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


def _reference(plot: "Axes", name: str, value: float, at_left: bool = False) -> None:
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
    """Whether it is the one that the others add up to."""

    def __str__(self) -> str:
        bounds = ("–" if bound is None else f"{bound:.1%}" for bound in (self.lower, self.upper))
        return "no retention" if self.value is None else f"{self.value:.2%} ({' … '.join(bounds)})"


@styled()
def intervals(
    title: str, rows: Sequence[Interval], *, target: float, floor: float | None = None, standalone: bool = False
) -> Markup:
    """Draw each row's value with its bounds as an error bar, against the target and the floor."""
    marks = {"target": target, **({} if floor is None else {"floor": floor})}
    ticks, tall = _rounds(*_domain(rows, marks.values()), 6), 46.0 * len(rows)
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


def _domain(rows: Iterable[Interval], marks: Iterable[float]) -> tuple[float, float]:
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


LOSSLESS = 200.0
"""Decibels from which on nothing was lost that a float could tell."""


@styled()
def heat_map(title: str, layers: Mapping[str, float], *, standalone: bool = False) -> Markup:
    """Draw signal to noise (dB) of each module, by kind of module and decoder layer; experts of a layer share a cell,
    which shows the worst of them. What is in no decoder layer is named below."""
    cells, outside = _cells(layers)
    numbers = [number for _, number in cells] or [0]
    columns, kinds = range(min(numbers), max(numbers) + 1), list(dict.fromkeys(kind for kind, _ in cells))
    left = PAD + 10 + max(width_of(short(said, 26)) for said in (*kinds, "layer"))
    tall, low_high = 24.0 * len(kinds), _decibels(cells.values())
    whole = figure(WIDE, tall + (93 if outside else 71))
    plot = axes(whole, left, 7, WIDE - PAD - left, max(tall, 1))
    plot.spines["bottom"].set_visible(False)
    plot.set_xlim(columns[0], columns[-1] + 1)
    plot.set_ylim(max(len(kinds), 1), 0)
    _heat_axes(plot, columns, kinds)
    for row, kind in enumerate(kinds):
        for number in columns:
            _cell(plot, row, number, kind, cells.get((kind, number)), low_high)
    key = axes(whole, left, 7 + tall + 32, 30 * HEAT, 10)
    _heat_key(key, *low_high)
    if said := ", ".join(f"{name} {decibels(value)}" for name, value in outside.items()):
        key.text(0, -3.5, short(f"in no layer: {said}", 84), color=STAND_INS["muted"])
    return markup(whole, title, _heat_told(cells, outside), standalone)


def _heat_axes(plot: "Axes", columns: range, kinds: Sequence[str]) -> None:
    wide = plot.bbox.width / len(columns)
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * wide >= 28)
    shown = [number for number in columns if number % every == 0]
    plot.set_xticks([number + 0.5 for number in shown], list(map(str, shown)))
    plot.set_yticks([row + 0.5 for row in range(len(kinds))], [short(kind, 26) for kind in kinds])
    plot.tick_params("x", pad=4)
    plot.tick_params("y", labelcolor=STAND_INS["ink"])
    plot.annotate(
        "layer",
        (0, 0),
        (-8, -15),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        color=STAND_INS["muted"],
    )


def _cell(plot: "Axes", row: int, number: int, kind: str, value: float | None, low_high: tuple[float, float]) -> None:
    """Draw a module's square, or a hint of one where nothing was quantized."""
    from matplotlib.patches import Rectangle

    colour = STAND_INS["grid" if value is None else f"heat{_step(value, *low_high)}"]
    wide, tall = (abs(float(length)) for length in plot.transData.transform((1, 1)) - plot.transData.transform((0, 0)))
    x, y = (0.2, 4 / tall) if value is None else (min(1.0, wide / 8) / wide, 1 / tall)
    square = Rectangle((number + x, row + y), 1 - 2 * x, 1 - 2 * y, linewidth=0, facecolor=colour)
    plot.add_patch(tip(square, f"layer {number}, {kind}: {'not quantized' if value is None else decibels(value)}"))


def decibels(value: float) -> str:
    """Say `31.4 dB`, or that nothing was lost."""
    return "exact" if value >= LOSSLESS else f"{value:.1f} dB"


def _cells(layers: Mapping[str, float]) -> tuple[dict[tuple[str, int], float], dict[str, float]]:
    """Return the worst value of each kind and layer number, and the modules that have no number."""
    names = {name: name.removesuffix(".weight") for name in layers}
    patterns = {name: re.sub(r"(?<![^.])\d+(?![^.])", "*", short) for name, short in names.items()}
    kinds = _endings(sorted({pattern for pattern in patterns.values() if "*" in pattern}))
    cells: dict[tuple[str, int], float] = {}
    outside: dict[str, float] = {}
    for name, value in layers.items():
        if number := re.search(r"(?<![^.])\d+(?![^.])", name):
            place = (kinds[patterns[name]], int(number[0]))
            cells[place] = min(value, cells.get(place, math.inf))
        else:
            outside[names[name]] = value
    return cells, outside


def _endings(patterns: Sequence[str]) -> dict[str, str]:
    """Find the shortest ending of each dotted name that no other has."""

    def ending(pattern: str) -> str:
        parts = pattern.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts)))
        alone = (tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in patterns) == 1)
        return next(alone, pattern)

    return {pattern: ending(pattern) for pattern in patterns}


def _decibels(values: Iterable[float]) -> tuple[float, float]:
    """Choose the range of the colours: at least 6 dB, so that layers that are nearly alike look alike."""
    lossy = [value for value in values if value < LOSSLESS] or [30.0]
    low, high = math.floor(min(lossy)), math.ceil(max(lossy))
    lacking = max(0, 6 - (high - low))
    return low - lacking / 2, high + lacking / 2


def _step(value: float, low: float, high: float) -> int:
    return min(HEAT - 1, max(0, int(HEAT * (value - low) / (high - low))))


def _heat_key(key: "Axes", low: float, high: float) -> None:
    key.set_axis_off()
    key.set_xlim(0, HEAT)
    key.set_ylim(0, 1)
    for step in range(HEAT):
        key.barh(0.5, 1, left=step, height=1, color=STAND_INS[f"heat{step}"])
    key.text(0, -1.4, f"{low:g} dB, worse", color=STAND_INS["muted"])
    key.text(HEAT, -1.4, f"better, {high:g} dB", ha="right", color=STAND_INS["muted"])


def _heat_told(cells: Mapping[tuple[str, int], float], outside: Mapping[str, float]) -> str:
    told = ["Signal to quantization noise of the weights."]
    for kind in dict.fromkeys(kind for kind, _ in cells):
        values = {number: value for (other, number), value in cells.items() if other == kind}
        worst, best = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        told.append(
            f"{kind}: {len(values)} layers, from {decibels(values[worst])} in layer {worst} "
            f"to {decibels(values[best])} in layer {best}."
        )
    return " ".join([*told, *(f"{name}: {decibels(value)}." for name, value in outside.items())])


class Point(NamedTuple):
    """An artifact by size and retention."""

    size: float
    kept: Interval
    verdict: str
    """PASS, FAIL or INCONCLUSIVE."""
    efficient: bool
    recommended: bool = False


MARKS = {"PASS": ("good", "passed"), "FAIL": ("bad", "failed"), "INCONCLUSIVE": ("warn", "inconclusive")}
"""Verdict → colour and word."""


SHAPES = {"PASS": "o", "FAIL": "x", "INCONCLUSIVE": "D"}
"""Shapes differ as colours do: a disc passed, a cross failed, a diamond is neither."""


@styled()
def frontier(title: str, x_label: str, points: Sequence[Point], *, target: float, standalone: bool = False) -> Markup:
    """Draw retention with its bounds by size; the efficient ones joined, the recommended one ringed. Points without a
    retention are only told of."""
    shown = [point for point in points if point.kept.value is not None]
    whole = figure(WIDE, 408)
    plot = axes(whole, 66, 36, WIDE - 86, 320)
    _frontier_axes(plot, shown, target)
    plot.set(xlabel=x_label, ylabel="retention")
    name = f"target {percent(target)}"
    at_left = _crowded(plot, shown, name, target)
    _reference(plot, name, target, at_left)
    best = sorted((point.size, point.kept.value or 0.0) for point in shown if point.efficient)
    plot.plot(*zip(*best, strict=True) or ((), ()), color=STAND_INS["muted"], linewidth=1)
    for point in shown:
        _error_bar(plot, point)
    for point in shown:
        _marked(plot, point)
    _frontier_key(plot, {point.verdict for point in shown})
    _labels(plot, shown, _taken(plot, name, target, at_left))
    told = (f"{_named(point)}: {plain(point.size)}, {point.kept}, {MARKS[point.verdict][1]}." for point in points)
    return markup(whole, title, f"Retention by {x_label}, target {percent(target)}. {' '.join(told)}", standalone)


def _named(point: Point) -> str:
    return point.kept.label + (", recommended" if point.recommended else "")


def _frontier_axes(plot: "Axes", points: Sequence[Point], target: float) -> None:
    sizes = [point.size for point in points] or [0.0]
    reach = (max(sizes) - min(sizes)) * 0.06
    _scale_x(plot, _rounds(min(sizes) - reach, max(sizes) + reach, 7))
    _scale_y(plot, _rounds(*_domain([point.kept for point in points], [target]), 7), percent)


def _at(plot: "Axes", point: Point) -> tuple[float, float]:
    """Return where a point lies, in the chart's units from the left and the bottom."""
    x, y = plot.transData.transform((point.size, point.kept.value or 0.0))
    return float(x), float(y)


def _crowded(plot: "Axes", points: Sequence[Point], name: str, target: float) -> bool:
    """Tell whether the target's name has room at the left only."""
    line_at, width = plot.transData.transform((plot.get_xlim()[0], target))[1], width_of(name)
    near = [x for x, y in (_at(plot, point) for point in points) if abs(y - line_at) < 30]
    return bool(near) and max(near) > plot.bbox.x1 - 2 * width and min(near) > plot.bbox.x0 + 2 * width


def _taken(plot: "Axes", name: str, target: float, at_left: bool) -> "Sequence[Box]":
    """Return the room of the target's name and line."""
    y, width = float(plot.transData.transform((plot.get_xlim()[0], target))[1]), width_of(name) + 8
    left = plot.bbox.x0 if at_left else plot.bbox.x1 - width
    return [(left, y, left + width, y + 20), (plot.bbox.x0, y - 2, plot.bbox.x1, y + 2)]


def _frontier_key(plot: "Axes", verdicts: set[str]) -> None:
    names = [verdict for verdict in MARKS if verdict in verdicts]
    handles = [_mark(plot, [], [], verdict) for verdict in names]
    handles.append(plot.plot([], [], color=STAND_INS["muted"], linewidth=1)[0])
    said = [*(MARKS[verdict][1] for verdict in names), "no other is smaller and keeps as much"]
    plot.legend(
        handles,
        said,
        loc="lower left",
        bbox_to_anchor=(0, 1.03),
        ncols=len(said),
        handlelength=1.5,
        labelcolor=STAND_INS["muted"],
    )


def _mark(plot: "Axes", x: Sequence[float], y: Sequence[float], verdict: str) -> "Line2D":
    colour = STAND_INS[MARKS[verdict][0]]
    inside = STAND_INS["paper"] if verdict == "INCONCLUSIVE" else colour
    width = 0 if verdict == "PASS" else 2.5
    (mark,) = plot.plot(
        x,
        y,
        SHAPES[verdict],
        markersize=12 if verdict == "PASS" else 10,
        markerfacecolor=inside,
        markeredgecolor=colour,
        markeredgewidth=width,
    )
    return mark


def _ends(plot: "Axes", kept: Interval) -> tuple[float, float]:
    """Return the ends of an error bar, within the plot."""
    lowest, highest = plot.get_ylim()
    lower, upper = (lowest if kept.lower is None else kept.lower), (highest if kept.upper is None else kept.upper)
    return max(lower, lowest), min(upper, highest)


def _error_bar(plot: "Axes", point: Point) -> None:
    (low, high), value = _ends(plot, point.kept), point.kept.value or 0.0
    plot.errorbar(
        point.size,
        value,
        [[max(0.0, value - low)], [max(0.0, high - value)]],
        fmt="none",
        capsize=4,
        alpha=0.6,
        color=STAND_INS[MARKS[point.verdict][0]],
        elinewidth=1.5,
        capthick=1.5,
    )


def _marked(plot: "Axes", point: Point) -> None:
    value = point.kept.value or 0.0
    if point.recommended:
        plot.plot(
            point.size,
            value,
            "o",
            markersize=20,
            markerfacecolor="none",
            markeredgecolor=STAND_INS["ink"],
            markeredgewidth=2,
        )
    tip(_mark(plot, [point.size], [value], point.verdict), f"{_named(point)}: {plain(point.size)}, {point.kept}")


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in the chart's units."""


def _labels(plot: "Axes", points: Sequence[Point], taken: Sequence[Box]) -> None:
    """Write names beside their points, each where it covers least of what is `taken`, of points, error bars and
    earlier names."""
    places = [_at(plot, point) for point in points]
    taken = [*taken, *((x - 8, y - 8, x + 8, y + 8) for x, y in places)]
    for (x, _), point in zip(places, points, strict=True):
        low, high = (float(plot.transData.transform((point.size, end))[1]) for end in _ends(plot, point.kept))
        taken.append((x - 3, low, x + 3, high))
    for place, point in sorted(zip(places, points, strict=True), key=lambda each: not each[1].recommended):
        taken.append(_label(plot, point, place, taken))


def _label(plot: "Axes", point: Point, place: tuple[float, float], taken: Sequence[Box]) -> Box:
    """Write a point's name where it covers least, with a line to the point where it is far; return its room."""
    (x, y), said = place, short(_named(point), 40)
    candidates = _candidates(x, y, width_of(said, strong=point.recommended))
    box = min(candidates, key=lambda each: _badness(each, taken, plot, x, y))
    left, bottom, right, top = box
    middle = (bottom + top) / 2
    if abs(middle - y) > 24:
        near = left if left > x else right if right < x else x
        plot.plot((x, near), (y, middle), color=STAND_INS["muted"], linewidth=1, transform=None)
    weight = "bold" if point.recommended else "normal"
    halo(plot.text(left, middle - 4, said, weight=weight, transform=None))
    return box


def _candidates(x: float, y: float, width: float) -> Iterable[Box]:
    for rise in (0, 14, -14, 28, -28, 44, -44, 62, -62, 82, -82):
        for left in (x + 11, x - 11 - width):
            yield left, y + rise - 8, left + width, y + rise + 8


def _badness(box: Box, taken: Sequence[Box], plot: "Axes", x: float, y: float) -> float:
    left, bottom, right, top = box
    covered = sum(
        max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(top, other[3]) - max(bottom, other[1]))
        for other in taken
    )
    room = plot.bbox
    beyond = max(0.0, room.x0 - left) + max(0.0, right - room.x1 - 14)
    beyond += max(0.0, room.y0 - bottom) + max(0.0, top - room.y1)
    return covered + 200 * float(beyond) + abs((bottom + top) / 2 - y) * 0.6 + (left < x) * 4
