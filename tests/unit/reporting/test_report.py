"""The report says what the record says, in HTML, in Markdown and in a real browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipelines.flow.journal import Run
from pipelines.flow.run import run
from pipelines.gating.measures import Measure
from pipelines.recipe.load import load_recipe
from pipelines.reporting.record import Manifest
from pipelines.reporting.report import html, markdown
from pipelines.reporting.sentences import retained, verdict_line
from tests.conftest import Cli
from tests.helpers.benches import kept_bench
from tests.helpers.records import by_accuracy, kept
from tests.helpers.suites import little

HOSTILE = '<script>alert(1)</script> | `a` & "b"'
CHARTS = 4
"""Of one run: retention, flips, layers, stages."""


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run of a small model."""
    place = tmp_path_factory.mktemp("report")
    return run(load_recipe("fp8", [little(place, 6, 7)]), tiny, place / "out")


def told(done: Run, name: str, verdict: str = "FAIL", **gate: Any) -> Manifest:
    """The record of `done` under another name, with another outcome."""
    asked = Measure(name="flips", value=0.3, lower=0.2, upper=0.4, limit=0.1, says="beyond")
    found = kept(gate.pop("retention", 0.9512), 0.93, 0.97, says="below")
    fields = {"verdict": verdict, "measures": (asked,), **by_accuracy(found), "expected": kept(0.9634, 0.951, 0.975)}
    return done.manifest.model_copy(
        update={
            "recipe": done.manifest.recipe.model_copy(update={"name": name}),
            "gate": done.manifest.gate.model_copy(update={**fields, **gate}),
        }
    )


def test_the_verdict_in_one_line_says_at_which_confidence_it_was_shown(done: Run) -> None:
    stopped = told(done, "four", confidence=0.999, target=0.99).gate
    assert verdict_line(stopped) == (
        "FAIL: 95.12% of accuracy kept, at least 93.00%; 96.34% of the expected score kept, at least 95.10% "
        "(bounds at 99.9%, which is 95% over all looks; target 99.00%)."
    )


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_a_report_says_what_the_record_says(done: Run) -> None:
    record = told(done, "four", spared=1234, reasons=("task sciq is shown to keep less than 90%",))
    for text in (html([record]), markdown([record]).replace("\\", "")):
        both = ("95.12% (93.0% … 97.0%) of accuracy and 96.34% (95.1% … 97.5%) of the expected score kept",)
        for expected in (
            *both,
            "FAIL",
            "95.12%",
            "93.0% … 97.0%",
            "1,234",
            "sciq is shown to keep less than 90%",
            "beyond",
        ):
            assert expected in text
        assert record.model.digest in text
        assert min(record.verification.layers, key=lambda layer: layer.sqnr).module in text
        assert all(stage.stage in text for stage in record.stages)
        assert all(digest in text for digest in record.files.values())


def test_charts_are_drawings_with_a_name_and_their_numbers_as_text(done: Run) -> None:
    found = drawings(html([done.manifest]))
    assert len(found) == CHARTS
    for svg in found:
        assert svg.get("role") == "img"
        names = {element.get("id"): "".join(element.itertext()) for element in svg.iter()}
        assert all(names[part].strip() for part in str(svg.get("aria-labelledby")).split())
    assert len(drawings(html([told(done, "a"), told(done, "b", "PASS")]))) == 2 * CHARTS + 1


def test_the_chart_of_intervals_and_the_table_of_tasks_show_both_scores(done: Run) -> None:
    said = " ".join("".join(svg.itertext()) for svg in drawings(html([done.manifest])))
    rows = [line.split("|")[1:-1] for line in markdown([done.manifest]).splitlines() if line.startswith("| ")]
    told = {tuple(cell.strip().replace("\\", "") for cell in row[:2]) for row in rows}
    for task in done.verdict.tasks:
        assert task.expected is not None
        for score, found in (("accuracy", task), ("expected score", task.expected)):
            number = "no retention" if found.retention is None else retained(found.retention)
            assert f"{task.task}, {score}: {number}" in said
            assert (task.task, score) in told
    for score in ("accuracy", "expected score"):
        assert f"all tasks, {score}: " in said


def test_several_runs_are_compared_and_those_that_did_not_finish_are_told(done: Run) -> None:
    runs = [told(done, "small"), told(done, "good", "PASS", retention=0.9951)]
    for text in (html(runs, {"broken": "the disk is full"}), markdown(runs, {"broken": "the disk is full"})):
        assert "Recommended: good, the smallest that passed." in text
        assert "the disk is full" in text
        assert "99.51%" in text
    assert "did not finish" in html([], {"broken": "the disk is full"})


def test_what_to_try_is_there_for_a_failure_only(done: Run) -> None:
    remedy = {told(done, "four").artifact_digest: "version: 1\nname: four-repair1\n"}
    for text in (html([told(done, "four")], {}, remedy), markdown([told(done, "four")], {}, remedy)):
        assert "name: four-repair1" in text
        assert "quantgate run four-next.yaml" in text
    assert "four-repair1" not in html([told(done, "four", "PASS")], {}, remedy)


def test_nothing_in_a_record_becomes_markup_and_nothing_is_fetched(done: Run) -> None:
    recipe = done.manifest.recipe.model_copy(update={"summary": HOSTILE})
    model = done.manifest.model.model_copy(update={"label": HOSTILE})
    record = done.manifest.model_copy(update={"recipe": recipe, "model": model})
    page = html([record, told(done, "b")], {HOSTILE: HOSTILE}, {"b": HOSTILE})
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import""", page)
    drawings(page)
    cells = [line for line in markdown([record]).splitlines() if "script" in line and line.startswith("|")]
    assert all(r"\|" in line for line in cells)


def test_a_report_on_three_runs_of_thirty_layers_is_under_400_kb(done: Run) -> None:
    first, kinds = done.manifest.verification.layers[0], ("q_proj", "k_proj", "v_proj", "o_proj", "up", "gate", "down")
    names = [f"model.layers.{number}.{kind}.weight" for number in range(30) for kind in kinds]
    layers = tuple(first.model_copy(update={"module": name}) for name in names)
    verification = done.manifest.verification.model_copy(update={"layers": layers})
    runs = [told(done, name).model_copy(update={"verification": verification}) for name in ("a", "b", "c")]
    page = html(runs)
    assert page.count("<title>layer ") == 3 * len(names)
    assert len(page.encode()) < 400_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    assert program, "these tests need Chromium: apt-get install chromium"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=[*quiet, "--disable-sync", "--no-first-run"])


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_all_and_asks_for_nothing(
    done: Run, browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    file = tmp_path / "report.html"
    remedy = {told(done, "small").artifact_digest: "version: 1\nname: small-repair1\n"}
    file.write_text(html([told(done, "small"), told(done, "good", "PASS")], {"broken": "no space"}, remedy))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert (said, asked) == ([], [file.as_uri()])
    charts = page.get_by_role("img").all()
    assert len(charts) == 2 * CHARTS + 1
    for chart in charts:
        box = chart.bounding_box()
        assert box
        assert min(box["width"], box["height"]) > 40
        assert chart.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert contrast(page) > 4.5
    assert len(page.pdf()) > 1000
    page.close()


def contrast(page: Any) -> float:
    """Of the page's text to its background, as WCAG 2 defines it."""
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    dark, light = sorted(luminance(colour) for colour in (ink, paper))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_gguf_is_by_llama_cpp(done: Run) -> None:
    """Records of earlier versions name no engine."""
    record = told(done, "file").model_copy(update={"recipe": load_recipe("gguf-q8_0"), "engine": ""})
    assert re.search(r"engine\W+llama\.cpp", markdown([record]).replace("\\", ""))
    assert "quantgate" not in re.findall(r"\| engine \| (.*?) \|", markdown([record]))


def test_speed_stands_beside_retention_where_it_was_measured(done: Run, cli: Cli, cache: Path, tmp_path: Path) -> None:
    record = told(done, "four")
    assert "Speed and retention" not in html([record])
    kept_bench(cache, record.artifact_digest)
    try:
        for page in (html([record]), html([record, told(done, "eight")]), markdown([record])):
            for expected in ("Speed and retention", "2.00 (2.00 … 2.00)", "1 at a time", "llama.cpp of the tests"):
                assert expected in page
        assert len(drawings(html([record]))) == CHARTS + 1
        (tmp_path / "quantgate.json").write_text(record.model_dump_json())
        ranked = cli("compare", tmp_path)
        assert ranked.returncode == 0, ranked.stderr
        assert "95.12%" in ranked.stdout and "2.00 (2.00 … 2.00)" in ranked.stdout
    finally:
        shutil.rmtree(cache / "stages" / "bench")
