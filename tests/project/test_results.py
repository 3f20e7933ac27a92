"""docs/results.md has a row for each run whose record it was given."""

from pathlib import Path

import pytest

from docs import results
from pipelines.flow.journal import Run
from pipelines.flow.run import run
from pipelines.recipe.load import load_recipe
from pipelines.reporting.record import RECORD
from tests.helpers.records import by_accuracy, kept, with_result
from tests.helpers.suites import little


@pytest.fixture
def done(tiny: Path, tmp_path: Path) -> Run:
    return run(load_recipe("fp8", [little(tmp_path, 6, 7)]), tiny, tmp_path / "out")


def test_each_record_becomes_a_row(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    results.PAGE.write_text(page, encoding="utf-8")
    smaller = with_result(done.manifest, "small", 100_000, 0.9949, "FAIL")
    found = {**by_accuracy(kept(0.9949, 0.98, 1.01)), "expected": kept(0.9812, 0.975, 0.9871)}
    spared = smaller.gate.model_copy(update={"spared": 1000, "confidence": 0.999, **found})
    (tmp_path / "runs" / "deep" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "deep" / "small" / RECORD).write_text(
        smaller.model_copy(update={"gate": spared}).model_dump_json()
    )
    results.main([str(tmp_path / "runs"), str(done.record), str(done.record.parent)])

    written = results.PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(results.BEGIN)
    assert written.startswith(before) and written.endswith(rest.partition(results.END)[2])
    block = written.partition(results.BEGIN)[2].partition(results.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("|")]
    header, _, first, second = rows
    assert header == [*results.COLUMNS] and len(first) == len(second) == len(header)
    cells = dict(zip(header, first, strict=True))
    assert (cells["recipe"], cells["weights"], cells["verdict"]) == ("`small`", "0.1 MB", "FAIL")
    assert (cells["accuracy"], cells["expected score"]) == ("99.49% (98.0% … 101.0%)", "98.12% (97.5% … 98.7%)")
    assert (cells["bounds at"], cells["documents"]) == ("99.9%", "13 of 1,013")
    cells = dict(zip(header, second, strict=True))
    manifest = done.manifest
    distance = manifest.verification.distance
    assert distance
    assert cells["recipe"] == "`fp8`"
    assert cells["bits per weight"] == f"{manifest.size.bits_per_weight:.2f}"
    assert cells["KL divergence"] == f"{distance.divergence:.4f} ± {distance.divergence_error:.4f}"
    assert cells["processor"] and cells["computed in"] == "float32"
    results.main([str(done.record)])
    assert results.PAGE.read_text(encoding="utf-8").count("`small`") == 0, "the table is made anew"


def test_what_holds_no_run_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="holds no run"):
        results.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="say which runs"):
        results.main([])
    assert results.PAGE.read_text(encoding="utf-8") == page


def test_the_page_has_a_place_for_the_table() -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    assert results.replaced(page, "x").count("x\n" + results.END) == 1
