"""How long a run will take: from a probe, from finished runs, or guessed and called so."""

import shutil
from pathlib import Path

import pytest

from pipelines import run
from pipelines.checkpoint.headers import Checkpoint
from pipelines.core import progress
from pipelines.evaluation.stage import Share, evaluate
from pipelines.flow import estimate
from pipelines.flow.estimate import Finished, expected_times, probe
from pipelines.flow.forecast import forecast_plan
from pipelines.planning.stage import make_plan
from pipelines.recipe.load import load_recipe, load_suite, task_documents
from pipelines.recipe.suite import Suite, SuiteTask
from pipelines.verification import reader
from tests.conftest import EASY, Cli, own_cache
from tests.helpers.listening import Heard


@pytest.fixture
def no_runs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in which nothing was ever run."""
    monkeypatch.setenv("QUANTGATE_CACHE", str(own_cache(tmp_path / "cache", cache)))


def by_stage(found: tuple[estimate.Expected, ...]) -> dict[str, estimate.Expected]:
    return {one.stage: one for one in found}


@pytest.mark.usefixtures("no_runs")
def test_every_stage_that_takes_long_is_foretold(smollm2: Checkpoint) -> None:
    plan = make_plan("fp8", smollm2, device="cpu")
    found = by_stage(expected_times(plan, load_suite("smoke"), "transformers", "cpu"))
    assert found.keys() == {"quantize", "verify", "evaluate"}
    assert {one.basis for one in found.values()} == {"a probe of this machine"}
    assert 0 < found["quantize"].seconds < found["verify"].seconds < found["evaluate"].seconds


@pytest.mark.usefixtures("no_runs")
def test_more_documents_take_longer_and_calibration_longer_than_none(smollm2: Checkpoint) -> None:
    def foretold(recipe: str, suite: str) -> dict[str, estimate.Expected]:
        plan = make_plan(recipe, smollm2, device="cpu")
        return by_stage(expected_times(plan, load_suite(suite), "transformers", "cpu"))

    small, large = foretold("fp8", "smoke"), foretold("int4-gptq", "core")
    assert large["evaluate"].seconds > 4 * small["evaluate"].seconds
    assert large["quantize"].seconds > small["quantize"].seconds


@pytest.mark.usefixtures("no_runs")
def test_what_nothing_is_known_of_is_called_a_guess(smollm2: Checkpoint) -> None:
    unknown = Suite(version=1, name="own", summary="", tasks=(SuiteTask(task="mmlu_anatomy", limit=10),))
    plan = make_plan("fp8", smollm2, device="cpu")
    assert by_stage(expected_times(plan, unknown, "transformers", "cpu"))["evaluate"].basis == "a guess"
    gguf = by_stage(expected_times(make_plan("gguf-q8_0", smollm2), load_suite("smoke"), "llama.cpp", "cpu"))
    assert gguf["evaluate"].basis == gguf["quantize"].basis == "a guess"


def test_the_machine_is_probed_once(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(width: int, dtype: str, device: str) -> float:
        calls.append(dtype)
        return probe(width, dtype, device)

    monkeypatch.setattr(estimate, "probe", counted)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # a setting of no other test
    for _ in range(2):
        expected_times(make_plan("fp8", smollm2, device="cpu"), load_suite("smoke"), "transformers", "cpu")
    assert calls == ["float32"]


def test_finished_runs_say_it_better(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    suite = tmp_path / "easy.yaml"
    suite.write_text(EASY.replace("limit: 48", "limit: 44"))  # of no other test
    recipe = load_recipe("fp8", [f"gate.suite={suite}", "gate.retention=0.51"])
    done = run(recipe, tiny, tmp_path / "out", "cpu")
    plan = make_plan(recipe, tiny, device="cpu")
    found = by_stage(expected_times(plan, load_suite(str(suite)), "transformers", "cpu"))
    assert {one.basis for one in found.values()} == {"finished runs"}
    took = sum(stage.seconds for stage in done.stages if stage.stage.startswith("evaluate"))
    assert found["evaluate"].seconds == pytest.approx(took)
    command = ("plan", "fp8", "--model", tiny, "--set", f"gate.suite={suite}", "--device", "cpu")
    asked = [*command, "--set", "gate.retention=0.51"]
    assert "expected time, by finished runs: quantize " in cli(*asked, "--set", "quantize.ignore=[]").stdout
    told = cli(*asked).stdout
    assert "finished already: quantize, verify, evaluate\na run now: nothing that takes long is left\n" in told
    foretold = forecast_plan(plan, load_suite(str(suite)), "cpu", "auto")
    assert [(one.stage, one.seconds, one.done) for one in foretold] == [
        (stage, 0.0, True) for stage in ("quantize", "verify", "evaluate")
    ]
    heard = Heard()
    with progress.told_to(heard):
        evaluate(tiny, str(suite), "cpu")
    assert (heard.skipped, heard.done) == (44, 0), "what is kept is known at once, and says nothing of the pace"
    for block in done.verdict.evaluations[1].results:
        shutil.rmtree(block.folder)
    *_, left = forecast_plan(plan, load_suite(str(suite)), "cpu", "auto")
    assert (left.basis, left.documents_kept) == ("finished runs", 44)
    assert left.seconds <= took


@pytest.mark.usefixtures("no_runs")
def test_what_is_finished_takes_no_time(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "product_rate", lambda *_: 1e12)
    plan, suite = make_plan("fp8", smollm2, device="cpu"), load_suite("smoke")

    def foretold(finished: Finished) -> dict[str, estimate.Expected]:
        return by_stage(expected_times(plan, suite, "transformers", "cpu", finished))

    nothing = foretold(Finished())
    every = {task.task: task_documents(task) or 0 for task in suite.tasks}
    baseline = foretold(Finished(stages=("quantize",), baseline=Share(documents=every, seconds=50.0)))
    assert (baseline["quantize"].seconds, baseline["quantize"].left) == (0.0, "done")
    assert baseline["verify"] == nothing["verify"]
    assert baseline["evaluate"].seconds == pytest.approx(nothing["evaluate"].seconds / 2)
    assert baseline["evaluate"].documents_kept == sum(every.values())
    some = {task: documents // 2 for task, documents in every.items()}
    half = foretold(Finished(baseline=Share(documents=some)))["evaluate"].seconds
    assert baseline["evaluate"].seconds < half < nothing["evaluate"].seconds


@pytest.mark.usefixtures("no_runs")
def test_of_finished_runs_what_the_kept_documents_took_is_subtracted(
    smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped early took less than all documents would: a share of documents says nothing of it."""
    seen = {"quantize": 5.0, "verify": 9.0, "evaluate baseline": 100.0, "evaluate artifact": 120.0}
    monkeypatch.setattr(estimate, "seconds_of_runs", lambda *_: dict(seen))
    plan, suite = make_plan("fp8", smollm2, device="cpu"), load_suite("smoke")
    finished = Finished(baseline=Share(documents={"sciq": 64}, seconds=130.0))
    assert by_stage(expected_times(plan, suite, "transformers", "cpu", finished))["evaluate"].seconds == 120.0
    assert estimate.in_all(expected_times(plan, suite, "transformers", "cpu", finished)) == "about 2 min in all"


@pytest.mark.usefixtures("no_runs")
def test_the_reader_is_part_of_verification(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "product_rate", lambda *_: 1e12)
    plan, suite = make_plan("fp8", smollm2, device="cpu"), load_suite("smoke")

    def verification() -> float:
        return by_stage(expected_times(plan, suite, "transformers", "cpu"))["verify"].seconds

    read = verification()
    monkeypatch.setattr(reader, "is_here", lambda _: False)
    assert read > verification() + estimate.START
