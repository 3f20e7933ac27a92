"""Charts: hostile and odd values, the same bytes each time, nothing from outside."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from pipelines.reporting.charts import Interval, durations, flips, intervals, lines
from pipelines.reporting.drawing import STAND_INS
from pipelines.reporting.frontier import Point, frontier
from pipelines.reporting.heat import heat_map

HOSTILE = '_<script>alert(1)</script> & "b" $x^2$ \x07\x1b[31m\ud800\nzwei 日本語'
KEPT = (Interval(HOSTILE, 0.9, None, None, strong=True), Interval("none", None, None, None), Interval("far", 1, 0, 9))
POINTS = tuple(
    Point(100.0 + number, Interval(f"{HOSTILE}{number}", 0.9, 0.8, None), verdict, True, number == 1)
    for number, verdict in enumerate(("PASS", "FAIL", "INCONCLUSIVE"))
)
LAYERS = {f"model.layers.{number}.{HOSTILE}.weight": 20.0 + number for number in range(12)} | {HOSTILE: 300.0}
SERIES = {HOSTILE: [(1.0, 0.5), (2000.0, 0.7), (-1.0, 1.0), (3.0, math.nan)], "empty": []}
CHARTS: dict[str, Callable[[], str]] = {
    "intervals": lambda: intervals(HOSTILE, KEPT, target=0.99, floor=0.9),
    "flips": lambda: flips(HOSTILE, {HOSTILE: (0, 0), "b": (123456, 1)}),
    "durations": lambda: durations(HOSTILE, [(HOSTILE, 0.0, HOSTILE), ("long", 1e6, "")]),
    "heat map": lambda: heat_map(HOSTILE, LAYERS),
    "frontier": lambda: frontier(HOSTILE, HOSTILE, POINTS, target=0.97),
    "lines": lambda: lines(HOSTILE, HOSTILE, HOSTILE, SERIES, reference={HOSTILE: 0.6}, log_x=True),
    "alone": lambda: lines(HOSTILE, HOSTILE, HOSTILE, SERIES, percent_y=True, standalone=True),
    "no flips": lambda: flips("none", {}),
    "no stages": lambda: durations("none", []),
    "no layers": lambda: heat_map("none", {}),
    "no points": lambda: frontier("none", "MB", [], target=0.97),
    "no lines": lambda: lines("none", "x", "y", {}),
}
ALLOWED = {"svg", "g", "title", "desc", "path", "text", "style", "rect"}


def local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.filterwarnings("error")
def test_a_chart_is_a_drawing_and_nothing_else_whatever_its_names(name: str) -> None:
    chart = CHARTS[name]()
    root = ElementTree.fromstring(chart)
    assert {local(element) for element in root.iter()} <= ALLOWED
    attributes = {attribute for element in root.iter() for attribute in element.attrib}
    assert not [attribute for attribute in attributes if "href" in attribute or attribute.startswith("on")]
    assert not re.search(r"url\(|@import|@font-face|\x07|\x1b", chart)
    assert not [colour for colour in STAND_INS.values() if colour in chart]
    assert len([element for element in root.iter() if element.get("id")]) == 2  # what names it, and what it says
    assert "font-family" not in re.sub("<style>.*?</style>", "", chart, flags=re.DOTALL)


def test_names_are_shown_as_they_are() -> None:
    chart = ElementTree.fromstring(flips("x", {'_<b> $x^2$ & "q"': (1, 2)}))
    assert '_<b> $x^2$ & "q"' in [element.text for element in chart.iter() if local(element) == "text"]
    series = ElementTree.fromstring(lines("x", "x", "y", {"_$a$": [(1.0, 1.0)]}))
    assert "_$a$" in [element.text for element in series.iter() if local(element) == "text"]


def test_a_pointer_is_told_the_number() -> None:
    told = {element.text for element in ElementTree.fromstring(heat_map("x", {"layers.3.q_proj.weight": 31.44})).iter()}
    assert "layer 3, q_proj: 31.4 dB" in told


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_the_same_each_time_whatever_matplotlib_is_set_to(name: str) -> None:
    first = CHARTS[name]()
    with mpl.rc_context({"font.size": 30, "text.usetex": True, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert CHARTS[name]() == first


def test_a_chart_that_stands_alone_brings_its_colours_and_its_title() -> None:
    alone = lines("What it shows", "x", "y", {"a": [(0.0, 1.0)]}, standalone=True)
    assert 'xmlns="http://www.w3.org/2000/svg"' in alone
    assert "prefers-color-scheme: dark" in alone
    assert re.search("<text[^>]*>What it shows</text>", alone)
