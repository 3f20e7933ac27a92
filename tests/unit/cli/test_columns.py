"""Tables on screens of any width: no figure is cut off, no text is lost, and what is left out is named."""

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from pipelines.cli import columns
from pipelines.cli.columns import Column, fitted, show_table
from pipelines.cli.tables import plan, runs
from pipelines.flow.estimate import Expected

GATE = (
    Column("task", text=True),
    Column("score", text=True),
    Column("documents", spare=1),
    Column("baseline"),
    Column("artifact"),
    Column("retention above chance"),
    Column("lost", spare=2),
    Column("gained", spare=2),
    Column("verdict", text=True),
)
ROWS: list[columns.Row] = [
    (
        "mmlu_anatomy_generative",
        "accuracy",
        "13500",
        "0.2500",
        "0.2571",
        "100.31% (98.1% … 101.3%)",
        "112",
        "110",
        "above floor",
    ),
    ("sciq", "expected score", "1000", "0.8940", "0.8940", "– (– … –)", "7", "9", "below floor"),
]
FIGURES = ("0.2500", "0.2571", "100.31%", "98.1%", "101.3%", "0.8940", "floor", "score")
COMPARED = (*runs._comparison(Column("published", left=True, spare=1)),)
MARK = Text("PASS, not certified", style="green")
KEPT = "99.31% (98.1% … 101.3%)"
RUNS: list[columns.Row] = [
    ("int4-gptq-of-a-long-name", "269.1 MB → 134.5 MB", "4.51", KEPT, "99.87% (99.1% … 100.5%)", "4.4%", MARK, "yes"),
    ("fp8", "–", "–", "–", "–", "–", "error", "no"),
]


def drawn(title: str, shown: tuple[Column, ...], rows: list[columns.Row], width: int) -> str:
    table, needed = fitted(title, shown, rows, width)
    console = Console(file=io.StringIO(), width=needed)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def words(text: str) -> list[str]:
    return re.split(r"[\s│┃()]+", text)


@pytest.mark.parametrize("width", [60, 80, 120, 140])
def test_figures_are_whole_and_no_line_is_longer_than_the_screen(width: int) -> None:
    text = drawn("suite core", GATE, [*ROWS], width)
    assert set(FIGURES) <= {*words(text)}
    assert max(map(len, text.splitlines())) <= width
    shown = {*words(text.partition("left out")[0])}
    left_out = text.partition("too narrow:")[2]
    for name, figure in (("documents", "13500"), ("lost", "112"), ("gained", "110")):
        assert (figure in shown) != (name in left_out), "what is not shown is named"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_comparison_keeps_its_figures(width: int) -> None:
    text = drawn("model", COMPARED, [*RUNS], width)
    assert {"269.1", "134.5", "99.31%", "98.1%", "101.3%", "PASS,", "certified"} <= {*words(text)}
    assert max(map(len, text.splitlines())) <= width
    assert ("left out" in text) == (width == 60)


@pytest.mark.parametrize("width", [60, 80])
def test_text_wraps_and_loses_nothing(width: int) -> None:
    name = "model.layers.*.self_attn.some_projection_of_a_long_name"
    lines = drawn("", (Column("modules", text=True), Column("shape")), [(name * 2, "49152×576")], width).splitlines()
    assert "".join(line.split("│")[1].strip() for line in lines if line.startswith("│")) == name * 2


def test_where_nothing_helps_the_lines_are_longer_than_the_screen() -> None:
    text = drawn("", GATE, [*ROWS], 20)
    assert set(FIGURES) <= {*words(text)}


def test_without_a_terminal_the_table_is_as_wide_as_it_likes(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("suite core", GATE, [*ROWS])
    told = capsys.readouterr().out
    assert "98.1% … 101.3%" in told and "left out" not in told
    assert max(map(len, told.splitlines())) <= columns.PIPED


def test_a_plan_adds_up_what_is_left_and_names_what_is_done() -> None:
    times = (
        Expected(stage="quantize", seconds=0.0, basis="kept results"),
        Expected(stage="verify", seconds=20.0, basis="a probe of this machine"),
        Expected(stage="evaluate", seconds=40.0, basis="a guess", documents_kept=1200),
    )
    assert plan.time_lines(times) == [
        "finished already: quantize",
        "expected time, by a probe of this machine: verify 20 s",
        "expected time, by a guess: evaluate 40 s for what is left (1,200 answers are kept)",
        "a run now: about 60 s in all",
    ]
    assert plan.time_lines(times[:1]) == ["finished already: quantize", "a run now: nothing that takes long is left"]
