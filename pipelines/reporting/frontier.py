"""Artifacts by size and retention, each with its name where it covers least."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from pipelines.core.text import percent, plain
from pipelines.reporting.charts import WIDE, Interval, domain, reference_line, rounds, scale_x, scale_y
from pipelines.reporting.drawing import STAND_INS, axes, figure, halo, markup, short, styled, tip, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


class Point(NamedTuple):
    """An artifact by size and retention."""

    size: float
    kept: Interval
    verdict: str
    """PASS, FAIL or INCONCLUSIVE."""
    efficient: bool
    recommended: bool = False


MARKS = {"PASS": ("good", "passed"), "FAIL": ("bad", "failed"), "INCONCLUSIVE": ("warn", "inconclusive")}
"""Verdict → its colour and its word in the legend."""


SHAPES = {"PASS": "o", "FAIL": "x", "INCONCLUSIVE": "D"}
"""Verdict → shape of its mark: a disc passed, a cross failed, a diamond is neither."""


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
    reference_line(plot, name, target, at_left)
    best = sorted((point.size, point.kept.value or 0.0) for point in shown if point.efficient)
    plot.plot([x for x, _ in best], [y for _, y in best], color=STAND_INS["muted"], linewidth=1)
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
    scale_x(plot, rounds(min(sizes) - reach, max(sizes) + reach, 7))
    scale_y(plot, rounds(*domain([point.kept for point in points], [target]), 7), percent)


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
"""Rectangle as left, bottom, right and top, in the chart's units."""


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
