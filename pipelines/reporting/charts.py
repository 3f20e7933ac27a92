"""Charts as self-contained SVG: no scripts, no fonts, colours only by custom properties, numbers in the description.

All take `standalone`: whether to draw a file of its own, or a part of a page that holds `svg.STYLE` and `svg.theme`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pipelines.core.text import duration, percent, plain
from pipelines.reporting.svg import HEAT, SERIES, box, dot, line, log_ticks, short, svg, text, ticks, tip, width_of

WIDE, NARROW = 640, 440
"""Widths of charts, in their own units: of those with two axes, and of rows of bars."""
PAD = 8
"""Left and right of rows of bars."""
DASHES = ("", "7 3", "2 3", "9 3 2 3")


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
) -> str:
    """A line through the points (x, y) of each series; `reference` labels horizontal lines. Points that cannot be
    drawn (not finite, or not positive where x is logarithmic) are left out."""
    drawn = {name: [point for point in points if _drawable(point, log_x)] for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    xs, ys = [x for x, _ in every] or [1.0, 10.0], [y for _, y in every]
    say = percent if percent_y else plain
    plot = _Plot(
        log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs), 6),
        ticks(min([*ys, *reference.values()] or [0.0]), max([*ys, *reference.values()] or [1.0])),
        log_x,
        top=14 + 22 * len(_legend_rows(list(drawn))),
    )
    body = [*_legend(list(drawn)), *_axes(plot, x_label, y_label, plain, say)]
    body += [part for name, y in reference.items() for part in _reference(plot, name, y)]
    body += [part for number, points in enumerate(drawn.values()) for part in _series(plot, number, points, say)]
    told = [f"{name}: {', '.join(f'{plain(x)} → {say(y)}' for x, y in _some(drawn[name]))}." for name in drawn]
    told += [f"Line at {say(y)}: {name}." for name, y in reference.items()]
    return svg(title, f"{y_label} by {x_label}. {' '.join(told)}", WIDE, plot.height, body, standalone)


def _drawable(point: tuple[float, float], log_x: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[0] > 0 or not log_x)


def _some(points: Sequence[tuple[float, float]], most: int = 16) -> Sequence[tuple[float, float]]:
    """Points to tell of: all, or `most` of them, evenly, with both ends."""
    if len(points) <= most:
        return points
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


class _Plot(NamedTuple):
    """Where numbers lie in a chart with two axes; the outermost ticks are its edges."""

    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]
    log_x: bool = False
    left: float = 66
    top: float = 14
    width: float = WIDE - 66 - 20
    tall: float = 290

    @property
    def height(self) -> float:
        """Of the whole chart."""
        return self.top + self.tall + 52

    def x(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log_x else float
        low, high = scale(self.x_ticks[0]), scale(self.x_ticks[-1])
        return self.left + self.width * (scale(value) - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.top + self.tall * (high - value) / (high - low)


def _axes(
    plot: _Plot, x_label: str, y_label: str, say_x: Callable[[float], str], say_y: Callable[[float], str]
) -> list[str]:
    right, bottom = plot.left + plot.width, plot.top + plot.tall
    parts = [line(plot.left, plot.y(tick), right, plot.y(tick), "grid thin") for tick in plot.y_ticks]
    parts += [line(plot.x(tick), plot.top, plot.x(tick), bottom, "grid thin") for tick in plot.x_ticks]
    parts += [text(plot.left - 8, plot.y(tick) + 4, say_y(tick), "small fill-muted", "end") for tick in plot.y_ticks]
    parts += [text(plot.x(tick), bottom + 18, say_x(tick), "small fill-muted", "middle") for tick in plot.x_ticks]
    parts.append(line(plot.left, bottom, right, bottom, "axis thin"))
    parts.append(text(plot.left + plot.width / 2, bottom + 40, x_label, "fill-muted", "middle"))
    middle = plot.top + plot.tall / 2
    turned = f'transform="rotate(-90 14 {middle:.1f})"'
    return [*parts, text(14, middle, y_label, "fill-muted", "middle", turned)]


def _legend_rows(names: Sequence[str]) -> list[list[int]]:
    """Numbers of the series, in rows that fit."""
    rows: list[list[int]] = []
    room = 0.0
    for number, name in enumerate(names):
        needed = 44 + width_of(name)
        if not rows or needed > room:
            rows.append([])
            room = WIDE - 86.0
        rows[-1].append(number)
        room -= needed
    return rows


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for row, numbers in enumerate(_legend_rows(names)):
        x, y = 66.0, 12 + 22 * row
        for number in numbers:
            parts += [_dashed(f"M{x:.1f} {y}h26", number), text(x + 32, y + 4, names[number], "small")]
            x += 44 + width_of(names[number])
    return parts


def _dashed(path: str, number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'<path class="line series{number % SERIES}" d="{path}"{dash and f""" stroke-dasharray="{dash}" """}/>'


def _series(
    plot: _Plot, number: int, points: Sequence[tuple[float, float]], say: Callable[[float], str]
) -> Iterable[str]:
    places = [(plot.x(x), plot.y(y)) for x, y in points]
    if places:
        yield _dashed("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), number)
    if len(points) <= 40:
        for (x, y), (left, top) in zip(points, places, strict=True):
            yield dot(left, top, 3, f"fill-series{number % SERIES}", f"{plain(x)}: {say(y)}")


def _reference(plot: _Plot, name: str, value: float, at_left: bool = False) -> list[str]:
    right, y = plot.left + plot.width, plot.y(value)
    above = y - 6 if y > plot.top + 18 else y + 15
    x, anchor = (plot.left + 4, "start") if at_left else (right - 4, "end")
    return [
        line(plot.left, y, right, y, "ink thin dashed"),
        text(x, above, name, "small halo fill-ink", anchor),
    ]


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


def intervals(
    title: str, rows: Sequence[Interval], *, target: float, floor: float | None = None, standalone: bool = False
) -> str:
    """Each row's value with its bounds as an error bar, against the target and the floor."""
    reference = {"target": target, **({} if floor is None else {"floor": floor})}
    scale = ticks(*_domain(rows, reference.values()), 6)
    low, high = scale[0], scale[-1]

    def x(value: float) -> float:
        return PAD + (NARROW - 2 * PAD) * (min(max(value, low), high) - low) / (high - low)

    bottom = 8 + 46.0 * len(rows)
    body = [part for number, row in enumerate(rows) for part in _interval(row, 8 + 46.0 * number, x, target, floor)]
    body.append(line(PAD, bottom, NARROW - PAD, bottom, "axis thin"))
    for number, tick in enumerate(scale):
        anchor = "start" if number == 0 else "end" if number == len(scale) - 1 else "middle"
        body += [line(x(tick), bottom, x(tick), bottom + 4, "axis thin")]
        body += [text(x(tick), bottom + 18, percent(tick), "small fill-muted", anchor)]
    body += _interval_key(bottom + 40, reference)
    told = [f"{row.label}: {row}." for row in rows] + [f"{name} {percent(at)}." for name, at in reference.items()]
    return svg(title, f"Retention with one-sided bounds. {' '.join(told)}", NARROW, bottom + 52, body, standalone)


def _domain(rows: Iterable[Interval], marks: Iterable[float]) -> tuple[float, float]:
    """From the lowest to the highest that is to be seen; bounds that are far off do not count in full."""
    rows = list(rows)
    sure = [value for value in [*marks, *(row.value for row in rows)] if value is not None]
    least, most = min(sure) - 0.3, max(sure) + 0.3
    bounds = [bound for row in rows for bound in (row.lower, row.upper) if bound is not None]
    seen = [*sure, *(min(max(bound, least), most) for bound in bounds)]
    return max(0.0, min(seen)), max(seen)


def _interval(
    row: Interval, top: float, x: Callable[[float], float], target: float, floor: float | None
) -> Iterable[str]:
    colour = standing(row.lower, row.upper, target)
    middle = top + 28
    yield from _row_head(top + 14, row.label, str(row), row.strong)
    yield box(PAD, middle - 8, NARROW - 2 * PAD, 16, "fill-grid", radius=3)
    if floor is not None:
        yield line(x(floor), middle - 8, x(floor), middle + 8, "muted line dashed")
    yield line(x(target), middle - 10, x(target), middle + 10, "ink line")
    if row.value is not None:
        left, right = x(0.0 if row.lower is None else row.lower), x(math.inf if row.upper is None else row.upper)
        yield line(left, middle, right, middle, f"bar {colour}")
        caps = [at for at, bound in ((left, row.lower), (right, row.upper)) if bound is not None]
        yield from (line(at, middle - 5, at, middle + 5, f"bar {colour}") for at in caps)
        yield dot(x(row.value), middle, 6 if row.strong else 5, f"fill-{colour}", f"{row.label}: {row}")


def standing(lower: float | None, upper: float | None, target: float) -> str:
    """The colour of bounds: shown to be above the target, shown to be below, or neither."""
    if lower is not None and lower > target:
        return "good"
    return "bad" if upper is not None and upper < target else "accent"


def _interval_key(y: float, reference: Mapping[str, float]) -> Iterable[str]:
    x: float = PAD
    for name, value in reference.items():
        said = f"{name} {percent(value)}"
        yield line(x + 2, y - 9, x + 2, y + 3, "ink line" if name == "target" else "muted line dashed")
        yield text(x + 10, y + 1, said, "small fill-muted")
        x += 26 + width_of(said)


def _row_head(y: float, label: str, said: str, strong: bool = False) -> list[str]:
    """A row's label on the left and its numbers on the right."""
    kind = "strong" if strong else ""
    room = int((NARROW - 2 * PAD - width_of(said, 13)) / 7.4) - 1
    return [text(PAD, y, short(label, max(room, 4)), kind), text(NARROW - PAD, y, said, kind, "end")]


def flips(title: str, rows: Mapping[str, tuple[int, int]], *, standalone: bool = False) -> str:
    """Answers (lost, gained) of each task, as bars to the left and to the right."""
    middle, half = NARROW / 2, NARROW / 2 - PAD - 44
    most = max([1, *(count for pair in rows.values() for count in pair)])
    body = [
        text(middle - 8, 16, "lost", "small strong fill-bad", "end"),
        text(middle + 8, 16, "gained", "small strong fill-good"),
    ]
    for number, (task, (lost, gained)) in enumerate(rows.items()):
        y = 42 + 44.0 * number
        left, right = half * lost / most, half * gained / most
        body += [
            text(middle, y - 4, short(task, 50), "", "middle"),
            box(middle - left, y + 3, left, 16, "fill-bad", f"{task}: {lost} lost"),
            box(middle, y + 3, right, 16, "fill-good", f"{task}: {gained} gained"),
            text(middle - left - 6, y + 16, f"{lost:,}", "small", "end"),
            text(middle + right + 6, y + 16, f"{gained:,}", "small"),
            line(middle, y + 1, middle, y + 21, "ink thin"),
        ]
    told = " ".join(f"{task}: {lost} lost, {gained} gained." for task, (lost, gained) in rows.items())
    return svg(title, f"Answers that changed. {told}", NARROW, 30 + 44 * len(rows), body, standalone)


def durations(title: str, rows: Sequence[tuple[str, float, str]], *, standalone: bool = False) -> str:
    """Seconds of each stage as bars; the third of a row is what else there is to say of it."""
    longest = max([1e-9, *(seconds for _, seconds, _ in rows)])
    body: list[str] = []
    for number, (stage, seconds, note) in enumerate(rows):
        y = 16 + 40.0 * number
        length = (NARROW - 2 * PAD) * seconds / longest
        body += _row_head(y, stage, " · ".join(filter(None, (duration(seconds), note))))
        body.append(box(PAD, y + 7, NARROW - 2 * PAD, 9, "fill-grid", radius=4.5))
        body.append(box(PAD, y + 7, max(length, 3), 9, "fill-accent", f"{stage}: {duration(seconds)}", 4.5))
    told = " ".join(f"{', '.join(filter(None, (f'{stage}: {duration(spent)}', note)))}." for stage, spent, note in rows)
    return svg(title, f"Time of each stage. {told}", NARROW, 8 + 40 * len(rows), body, standalone)


LOSSLESS = 200.0
"""Decibels from which on nothing was lost that a float could tell."""


def heat_map(title: str, layers: Mapping[str, float], *, standalone: bool = False) -> str:
    """Signal to noise (dB) of each module, by kind of module and decoder layer; experts of a layer share a cell, which
    shows the worst of them. What is in no decoder layer is named below."""
    cells, outside = _cells(layers)
    numbers = [number for _, number in cells] or [0]
    columns, kinds = range(min(numbers), max(numbers) + 1), list(dict.fromkeys(kind for kind, _ in cells))
    left = PAD + 10 + max((width_of(short(kind, 26)) for kind in kinds), default=0.0)
    wide, tall = (WIDE - PAD - left) / len(columns), 24.0
    low, high = _decibels(cells.values())
    body = [text(left - 8, 23 + tall * row, short(kind, 26), "small", "end") for row, kind in enumerate(kinds)]
    for row, kind in enumerate(kinds):
        for column, number in enumerate(columns):
            value = cells.get((kind, number))
            colour = "fill-grid" if value is None else f"fill-heat{_step(value, low, high)}"
            told = f"layer {number}, {kind}: {'not quantized' if value is None else decibels(value)}"
            x, y = left + wide * column, 7 + tall * row
            small = 2.5 if value is None else 0.0  # what is not there is a hint of a cell
            shrunk = (x + 1 + wide / 5 * (small > 0), y + 1 + 3 * small, wide - 2 - wide / 2.5 * (small > 0))
            body.append(box(*shrunk, tall - 2 - 6 * small, colour, told))
    bottom = 7 + tall * len(kinds)
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * wide >= 22)
    body += [
        text(left + wide * (number - columns[0] + 0.5), bottom + 15, str(number), "small fill-muted", "middle")
        for number in columns
        if number % every == 0
    ]
    body.append(text(left - 8, bottom + 15, "layer", "small fill-muted", "end"))
    body += _heat_key(left, bottom + 32, low, high)
    if said := ", ".join(f"{name} {decibels(value)}" for name, value in outside.items()):
        body.append(text(left, bottom + 76, short(f"in no layer: {said}", 84), "small fill-muted"))
    height = bottom + (86 if outside else 64)
    return svg(title, _heat_told(cells, outside), WIDE, height, body, standalone)


def decibels(value: float) -> str:
    """`31.4 dB`, or that nothing was lost."""
    return "exact" if value >= LOSSLESS else f"{value:.1f} dB"


def _cells(layers: Mapping[str, float]) -> tuple[dict[tuple[str, int], float], dict[str, float]]:
    """The worst value of each kind and layer number, and the modules that have no number."""
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
    """The shortest ending of each dotted name that no other has."""

    def ending(pattern: str) -> str:
        parts = pattern.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts)))
        alone = (tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in patterns) == 1)
        return next(alone, pattern)

    return {pattern: ending(pattern) for pattern in patterns}


def _decibels(values: Iterable[float]) -> tuple[float, float]:
    """The range of the colours: at least 6 dB, so that layers that are nearly alike look alike."""
    lossy = [value for value in values if value < LOSSLESS] or [30.0]
    low, high = math.floor(min(lossy)), math.ceil(max(lossy))
    lacking = max(0, 6 - (high - low))
    return low - lacking / 2, high + lacking / 2


def _step(value: float, low: float, high: float) -> int:
    return min(HEAT - 1, max(0, int(HEAT * (value - low) / (high - low))))


def _heat_key(x: float, y: float, low: float, high: float) -> Iterable[str]:
    for step in range(HEAT):
        yield box(x + 30 * step, y, 30, 10, f"fill-heat{step}", radius=0)
    yield text(x, y + 24, f"{low:g} dB, worse", "small fill-muted")
    yield text(x + 30 * HEAT, y + 24, f"better, {high:g} dB", "small fill-muted", "end")


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


def frontier(title: str, x_label: str, points: Sequence[Point], *, target: float, standalone: bool = False) -> str:
    """Retention with its bounds by size; the efficient ones joined, the recommended one ringed. Points without a
    retention are only told of."""
    shown = [point for point in points if point.kept.value is not None]
    sizes = [point.size for point in shown] or [0.0]
    reach = (max(sizes) - min(sizes)) * 0.06
    domain = _domain([point.kept for point in shown], [target])
    plot = _Plot(ticks(min(sizes) - reach, max(sizes) + reach, 6), ticks(*domain, 6), top=36, tall=320)
    body = [*_marks_key({point.verdict for point in shown}), *_axes(plot, x_label, "retention", plain, percent)]
    name, line_at, right = f"target {percent(target)}", plot.y(target), plot.left + plot.width
    near = [plot.x(point.size) for point in shown if abs(plot.y(point.kept.value or 0.0) - line_at) < 30]
    at_left = bool(near) and max(near) > right - 2 * width_of(name) and min(near) > plot.left + 2 * width_of(name)
    body += [*_reference(plot, name, target, at_left), *_joined(plot, shown)]
    body += [part for point in shown for part in _error_bar(plot, point)]
    body += [part for point in shown for part in _marked(plot, point)]
    told = (f"{_named(point)}: {plain(point.size)}, {point.kept}, {MARKS[point.verdict][1]}." for point in points)
    about = f"Retention by {x_label}, target {percent(target)}. {' '.join(told)}"
    start = plot.left if at_left else right - width_of(name) - 8
    named = (start, line_at - 20, start + width_of(name) + 8, line_at)
    labels = _labels(plot, shown, [named, (plot.left, line_at - 2, right, line_at + 2)])
    return svg(title, about, WIDE, plot.height, [*body, *labels], standalone)


def _named(point: Point) -> str:
    return point.kept.label + (", recommended" if point.recommended else "")


def _marks_key(verdicts: set[str]) -> Iterable[str]:
    x = 72.0
    for verdict, (_, word) in MARKS.items():
        if verdict in verdicts:
            yield _mark(x, 14, verdict, word)
            yield text(x + 12, 18, word, "small fill-muted")
            x += 34 + width_of(word)
    yield line(x, 14, x + 22, 14, "muted thin")
    yield text(x + 28, 18, "no other is smaller and keeps as much", "small fill-muted")


def _mark(x: float, y: float, verdict: str, told: str) -> str:
    """Shapes differ as colours do: a disc passed, a cross failed, a diamond is neither."""
    colour = MARKS[verdict][0]
    if verdict == "PASS":
        return dot(x, y, 6, f"fill-{colour}", told)
    cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
    diamond = f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"
    kind, path = ("line bar", cross) if verdict == "FAIL" else ("fill-paper bar", diamond)
    return f'<path class="{kind} {colour}" d="{path}">{tip(told)}</path>'


def _joined(plot: _Plot, points: Sequence[Point]) -> Iterable[str]:
    best = sorted((plot.x(point.size), plot.y(point.kept.value or 0.0)) for point in points if point.efficient)
    if len(best) > 1:
        yield f'<path class="line thin muted" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in best)}"/>'


def _error_bar(plot: _Plot, point: Point) -> Iterable[str]:
    x, (top, bottom) = plot.x(point.size), _ends(plot, point.kept)
    yield line(x, top, x, bottom, f"{MARKS[point.verdict][0]} faint")
    yield from (line(x - 4, at, x + 4, at, f"{MARKS[point.verdict][0]} faint") for at in (top, bottom))


def _ends(plot: _Plot, kept: Interval) -> tuple[float, float]:
    """Of an error bar, within the plot."""
    highest, lowest = plot.y_ticks[-1], plot.y_ticks[0]
    upper, lower = (highest if kept.upper is None else kept.upper), (lowest if kept.lower is None else kept.lower)
    return plot.y(min(upper, highest)), plot.y(max(lower, lowest))


def _marked(plot: _Plot, point: Point) -> Iterable[str]:
    x, y = plot.x(point.size), plot.y(point.kept.value or 0.0)
    if point.recommended:
        yield f'<circle class="line ink" cx="{x:.1f}" cy="{y:.1f}" r="10"/>'
    yield _mark(x, y, point.verdict, f"{_named(point)}: {plain(point.size)}, {point.kept}")


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _labels(plot: _Plot, points: Sequence[Point], taken: Iterable[Box]) -> Iterable[str]:
    """Names beside their points, each where it covers least of what is `taken`, of points, error bars and earlier
    names."""
    places = [(plot.x(point.size), plot.y(point.kept.value or 0.0)) for point in points]
    taken = [*taken, *((x - 8, y - 8, x + 8, y + 8) for x, y in places)]
    bars = [(x - 3, *_ends(plot, point.kept)) for (x, _), point in zip(places, points, strict=True)]
    taken += [(left, top, left + 6, bottom) for left, top, bottom in bars]
    order = sorted(range(len(points)), key=lambda number: not points[number].recommended)
    for number in order:
        (x, y), said = places[number], short(_named(points[number]), 40)
        width = width_of(said, 13.5 if points[number].recommended else 12)
        box = min(_candidates(x, y, width), key=lambda box: _badness(box, taken, plot, x, y))
        taken.append(box)
        left, top, right, bottom = box
        if abs((top + bottom) / 2 - y) > 24:
            near = left if left > x else right if right < x else x
            yield line(x, y, near, (top + bottom) / 2, "muted thin")
        yield text(left, bottom - 4, said, f"small halo fill-ink{' strong' * points[number].recommended}")


def _candidates(x: float, y: float, width: float) -> Iterable[Box]:
    for rise in (0, -14, 14, -28, 28, -44, 44, -62, 62, -82, 82):
        for left in (x + 11, x - 11 - width):
            yield left, y + rise - 8, left + width, y + rise + 8


def _badness(box: Box, taken: Sequence[Box], plot: _Plot, x: float, y: float) -> float:
    left, top, right, bottom = box
    covered = sum(
        max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(bottom, other[3]) - max(top, other[1]))
        for other in taken
    )
    beyond = max(0.0, plot.left - left) + max(0.0, right - plot.left - plot.width - 14)
    beyond += max(0.0, plot.top - top) + max(0.0, bottom - plot.top - plot.tall)
    return covered + 200 * beyond + abs((top + bottom) / 2 - y) * 0.6 + (left < x) * 4
