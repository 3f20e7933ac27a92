"""What finished runs say: real runs of a small model, and records made from them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from pipelines.core.errors import BadInput, QuantgateError
from pipelines.flow.journal import Run, write_report
from pipelines.flow.run import run
from pipelines.gating.power import typical_changes
from pipelines.recipe.load import load_recipe
from pipelines.reporting.history import PRIOR, changes, compare, read_runs
from tests.conftest import Cli
from tests.helpers.records import with_result
from tests.helpers.suites import little


@pytest.fixture
def done(tiny: Path, tmp_path: Path) -> Run:
    return run(load_recipe("fp8", [little(tmp_path, 6, 7)]), tiny, tmp_path / "out")


def test_what_a_run_saw_is_what_the_next_expects(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "cache" / "runs"
    for name in ("once", "again", "killed"):
        shutil.copytree(done.record.parent, runs / name)
    (runs / "killed" / "run.json").write_text("{")
    record = json.loads(done.record.read_text())
    record["manifest"]["recipe"]["quantize"] = "odd"
    for name, text in (("deep", "[" * 100_000), ("odd", json.dumps(record))):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text)
        with pytest.raises(BadInput, match="is not the record of a run by this version"):
            read_runs([runs / name])
    monkeypatch.setenv("QUANTGATE_CACHE", str(tmp_path / "cache"))
    changed = sum(task.lost + task.gained for task in done.verdict.tasks)
    squares = sum(task.documents * (task.deviation or 0) ** 2 for task in done.verdict.tasks)
    typical = typical_changes("FP8_DYNAMIC")
    seen = changes(load_recipe("fp8-kv"))
    assert seen.discordance == pytest.approx((changed + PRIOR * typical.discordance) / (13 + PRIOR)) and seen.runs == 1
    assert seen.deviation == pytest.approx(((squares + PRIOR * typical.deviation**2) / (13 + PRIOR)) ** 0.5)
    assert squares > 0, "the tasks have expected scores"
    assert abs(seen.discordance - typical.discordance) < 13 / PRIOR, "so few documents say little"
    assert changes(load_recipe("fp8-static")) == typical_changes("FP8_STATIC")


def test_the_smallest_that_passed_is_recommended_and_what_is_beaten_is_said(done: Run) -> None:
    made = [
        with_result(done.manifest, "eight", 800, 0.995),
        with_result(done.manifest, "four", 400, 0.90, "FAIL"),
        with_result(done.manifest, "six", 600, 0.991),
        with_result(done.manifest, "worse six", 600, 0.97, "FAIL"),
        with_result(done.manifest, "no ratio", 700, None, "INCONCLUSIVE"),
    ]
    (ranking,) = compare(made)
    said = [(run.manifest.recipe.name, run.efficient) for run in ranking.runs]
    assert said == [("four", True), ("six", True), ("worse six", False), ("no ratio", False), ("eight", True)]
    assert ranking.recommended == 1


def test_two_of_one_size_and_quality_do_not_beat_each_other(done: Run) -> None:
    (ranking,) = compare([with_result(done.manifest, name, 800, 0.9, "FAIL") for name in "ab"])
    assert [run.efficient for run in ranking.runs] == [True, True]
    assert ranking.recommended is None


def test_runs_without_a_common_baseline_are_ranked_apart(done: Run) -> None:
    elsewhere = done.manifest.evaluation.model_copy(update={"device": "cuda"})
    rankings = compare([done.manifest, done.manifest.model_copy(update={"evaluation": elsewhere})])
    assert [(ranking.device, len(ranking.runs)) for ranking in rankings] == [("cpu", 1), ("cuda", 1)]


def test_the_command_ranks_records_and_artifacts(cli: Cli, done: Run, tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    passed = with_result(done.manifest, "small", done.manifest.size.bytes_after - 1, 0.995)
    (published / "quantgate.json").write_text(passed.model_dump_json())
    ((first, second),) = [
        ranking["runs"] for ranking in json.loads(cli("compare", done.record, published, "--json").stdout)
    ]
    assert first["manifest"] == passed.model_dump(mode="json")
    assert second["manifest"] == done.manifest.model_dump(mode="json")
    shown = cli("compare", done.record.parent, published).stdout
    assert re.search(r"│ small +│.* 99.50% \([^│]+ … [^│]+\) │ +98.76% \(98.0% … 99.5%\) │.*│ recommended", shown)
    assert re.search(r"│ fp8 +│", shown)


def test_a_folder_of_runs_stands_for_each_of_them_once(cli: Cli, done: Run, tmp_path: Path) -> None:
    smaller = with_result(done.manifest, "small", done.manifest.size.bytes_after - 1, 0.995)
    for name, manifest in (("a/b/published/quantgate.json", smaller), ("a/again/quantgate.json", smaller)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(manifest.model_dump_json())
    (tmp_path / "a" / "run").mkdir()
    (tmp_path / "a" / "run" / "run.json").write_text(done.record.read_text())
    assert read_runs([tmp_path / "a"]) == [smaller, done.manifest]
    assert read_runs([tmp_path / "a" / "run", tmp_path]) == [done.manifest, smaller]
    (ranking,) = json.loads(cli("compare", tmp_path, "--json").stdout)
    assert [run["manifest"]["recipe"]["name"] for run in ranking["runs"]] == ["small", "fp8"]
    assert cli("report", tmp_path, "--out", tmp_path / "report.html").returncode == 0
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="none: holds no run"):
        read_runs([tmp_path / "none"])


def test_a_report_is_written_beside_and_renamed(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees the old one or the new one, even where the disk is full in the middle of it."""
    folder = tmp_path / "reports"
    folder.mkdir()
    for name in ("report.html", "report.md"):
        (folder / name).write_text("old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(QuantgateError, match=r"report\.html cannot be written: No space left on device"):
        write_report([done.manifest], folder=folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"report.html": "old", "report.md": "old"}


def test_everything_that_is_no_run_is_named_at_once(done: Run, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished" / "run.json"
    unfinished.parent.mkdir()
    record = json.loads(done.record.read_text())
    unfinished.write_text(json.dumps({name: record[name] for name in ("model", "recipe", "stages")}))
    odd = tmp_path / "odd.json"
    odd.write_text("[1]")
    with pytest.raises(BadInput) as refused:
        read_runs([tmp_path / "none", unfinished.parent, odd, done.record])
    told = str(refused.value)
    assert f"{tmp_path / 'none'}: holds no run" in told
    assert f"{unfinished}: is of a run that did not finish" in told
    assert f"{odd}: is not the record of a run" in told


def test_the_report_of_several_runs_is_one_file_of_either_kind(cli: Cli, done: Run, tmp_path: Path) -> None:
    other = tmp_path / "other" / "run.json"
    other.parent.mkdir()
    failed = with_result(done.manifest, "four", 400, 0.90, "FAIL")
    other.write_text(json.dumps({"manifest": failed.model_dump(mode="json"), "stages": []}))
    for kind, start in (("html", "<!doctype html>"), ("md", "# ")):
        out = tmp_path / f"report.{kind}"
        assert cli("report", done.record, other, "--out", out).stdout == f"{out}\n"
        assert out.read_text().lower().startswith(start)
        assert "quantgate run four-next.yaml" in out.read_text()
    refused = cli("report", done.record, "--out", tmp_path / "report.pdf")
    assert (refused.returncode, "end it in .html or .md" in refused.stderr) == (2, True)


def test_a_run_leaves_its_report_beside_its_record_and_its_artifact(done: Run) -> None:
    assert done.report.read_text().lower().startswith("<!doctype html>")
    assert done.report.with_suffix(".md").is_file()
    assert all((Path(place) / "report.html").is_file() for place in done.published)
