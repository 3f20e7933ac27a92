"""The error of each layer as a map in colours: kinds of modules by decoder layers."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipelines.reporting.charts import PAD, WIDE
from pipelines.reporting.drawing import HEAT, STAND_INS, axes, figure, markup, short, styled, tip, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    """Return text like `31.4 dB`, or `exact` where nothing was lost."""
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
