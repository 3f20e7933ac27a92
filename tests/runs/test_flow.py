"""Whole runs on the real default model, with the real engines and lm-eval; only the suites are small."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipelines import run_all
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.cli.commands.run import finish_all
from pipelines.cli.main import main
from pipelines.core.cache import cache_dir
from pipelines.core.errors import BadInput, Problem, QuantgateError
from pipelines.flow.journal import Run
from pipelines.flow.run import run
from pipelines.formats import rounding
from pipelines.formats.description import Scales
from pipelines.planning.stage import make_plan
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from pipelines.reporting.record import Manifest
from tests.conftest import EASY, PLAIN, Cli, make_tiny, own_cache
from tests.helpers import warm
from tests.helpers.suites import little, sums_hold

LENIENT = ("--set", "gate.retention=0.6")


@pytest.mark.long
def test_fp8_from_checkpoint_to_published_artifact_and_again(cli: Cli, tmp_path: Path, smollm2: Checkpoint) -> None:
    suite = little(tmp_path, sciq=12)
    done = cli("run", "fp8", *LENIENT, "--set", suite, "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for expected in (
        "sciq",
        "lambada_openai",
        "PASS",
        "bits       16.00 → 10.12",
        "vllm serve",
        "published",
        "peak memory",
    ):
        assert expected in done.stdout
    assert "4-bit grid" in done.stdout
    out = tmp_path / "out"
    assert sums_hold(out)
    stored = read_checkpoint(out)
    assert {name: stored.digests[name] for name in smollm2.companions} == {
        name: smollm2.digests[name] for name in smollm2.companions
    }
    record = Manifest.model_validate_json((out / "quantgate.json").read_text())
    assert record.gate.verdict == "PASS"
    assert record.gate.retention is not None and record.gate.lower_bound is not None
    assert record.gate.lower_bound < record.gate.retention
    assert record.gate.certified == (record.gate.lower_bound > record.gate.target == 0.6)
    assert record.size.bits_per_weight == pytest.approx(make_plan("fp8", smollm2).bits_per_weight)
    assert str(Path.home()) not in (out / "quantgate.json").read_text()
    card = (out / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows[:4]] == [9, 9, 9, 9] and set(rows[1]) == {"|", "-"}
    assert rows[2].startswith("| sciq | accuracy | acc, 0-shot | 12 | ")
    for expected in (
        'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"',
        'base_model_relation: "quantized"',
        "4-bit grid",
    ):
        assert expected in card

    again = cli("run", "fp8", *LENIENT, "--set", suite, "--to", tmp_path / "out", "--json")
    assert again.returncode == 0, again.stderr
    printed = json.loads(again.stdout)
    assert all(stage["reused"] for stage in printed["stages"])
    assert {**printed, "stages": 0, "created": 0} == {**record.model_dump(mode="json"), "stages": 0, "created": 0}


@pytest.mark.slow
def test_int8_is_calibrated_and_its_record_says_on_what(cli: Cli, tmp_path: Path) -> None:
    small = ("--set", "calibrate.samples=4", "--set", "calibrate.seq_len=64")
    done = cli("run", "int8", *LENIENT, *small, "--set", little(tmp_path), "--to", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    record = Manifest.model_validate_json(done.stdout)
    assert record.calibration is not None
    assert (record.calibration.set, record.calibration.tokens) == ("passages", 256)
    assert record.calibration.gate_documents == 48
    assert record.verification.quantized == 210
    assert min(layer.sqnr for layer in record.verification.layers) > 20  # GPTQ on 256 tokens moves weights further
    assert [stage.stage for stage in record.stages][:3] == ["calibrate", "quantize", "verify"]


def stages(done: Run | QuantgateError) -> dict[str, bool]:
    """Stage → whether it was reused."""
    assert isinstance(done, Run)
    return {stage.stage: stage.reused for stage in done.stages}


@pytest.mark.slow
def test_recipes_share_baseline_and_calibration_text(tiny: Path, tmp_path: Path) -> None:
    suite, text = little(tmp_path, 6, 9), ("calibrate.samples=5", "calibrate.seq_len=56")  # no other test's
    recipes = [load_recipe(name, [suite, *text]) for name in ("fp8-static", "int8")]
    recipes.insert(1, load_recipe("fp8", [suite]))
    before = set(cache_dir().glob("stages/calibrate/*/result.json"))
    outcomes = run_all(recipes, tiny, tmp_path / "out")
    assert list(outcomes) == ["fp8-static", "fp8", "int8"]
    static, plain, int8 = map(stages, outcomes.values())
    assert not any(static.values())
    assert "calibrate" not in plain and plain["evaluate baseline"] and not plain["evaluate artifact"]
    assert int8["calibrate"] and int8["evaluate baseline"] and not int8["quantize"]
    assert len(set(cache_dir().glob("stages/calibrate/*/result.json")) - before) == 1
    for done in outcomes.values():
        assert isinstance(done, Run)
        recorded = {stage.stage: stage.reused for stage in done.manifest.stages}
        assert recorded == {name: reused for name, reused in stages(done).items() if name in recorded}
    again = run_all(recipes, tiny, tmp_path / "out")
    for done in again.values():
        assert isinstance(done, Run)
        assert all(stage.reused for stage in done.manifest.stages)


def test_a_reused_artifact_has_the_recipe_it_was_asked_for(tiny: Path) -> None:
    first, second = (
        quantize(make_plan(load_recipe("fp8", [f"gate.retention=0.{n}"]), read_checkpoint(tiny))) for n in (6, 7)
    )
    assert second.reused and second.key == first.key
    assert (first.recipe.gate.retention, second.recipe.gate.retention) == (0.6, 0.7)


@pytest.mark.slow
def test_several_recipes_are_published_below_one_folder_and_compared(cli: Cli, tmp_path: Path) -> None:
    arguments = (*LENIENT, "--set", little(tmp_path), "--to", tmp_path / "out")
    done = cli("run", "fp8", "int8-weight-only", *arguments)
    assert done.returncode == 0, done.stderr
    for name in ("fp8", "int8-weight-only"):
        assert sums_hold(tmp_path / "out" / name)
        assert re.search(rf"^{name}: PASS, (not )?certified: [\d.]+% of accuracy kept", done.stderr, re.MULTILINE)
    assert "SmolLM2-135M-Instruct, suite little" in done.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["fp8", "int8-weight-only"]
    assert rows[0][1:3] == ["269.0 MB → 170.2 MB", "10.12"]
    assert all(row[6].startswith("PASS") and row[7] == "yes" for row in rows)
    assert done.stdout.count("published  ") == 2

    again = cli("run", "fp8", "int8-weight-only", *arguments, "--json")
    assert again.returncode == 0, again.stderr
    printed = [Manifest.model_validate(record) for record in json.loads(again.stdout)]
    assert [record.recipe.name for record in printed] == ["fp8", "int8-weight-only"]
    assert all(stage.reused for record in printed for stage in record.stages)
    for record, row in zip(printed, rows, strict=True):
        assert record.gate.accuracy and record.gate.expected
        assert record.gate.retention == record.gate.accuracy.retention
        assert row[3].startswith(f"{record.gate.retention:.2%} (")
        assert row[4].startswith(f"{record.gate.expected.retention:.2%} (")


@pytest.mark.slow
def test_a_recipe_that_fails_does_not_stop_the_others(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A few words.")
    text = tmp_path / "short.yaml"
    text.write_text("{version: 1, name: short, summary: short, source: {kind: files, paths: [short.txt]}}")
    recipe = tmp_path / "mine.yaml"
    quantize = "quantize: {method: rtn, scheme: FP8_STATIC}"
    recipe.write_text(f"version: 1\nname: mine\nsummary: mine\n{quantize}\ncalibrate: {{set: {text}}}\n")
    arguments = ("--model", tiny, "--set", little(tmp_path, 5, 7), "--to", tmp_path / "out")
    done = cli("run", recipe, "fp8", *arguments)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith(
        "(texts read: 1, left out as shorter than 8 tokens: 1)\n    add texts that are longer\n"
    )
    assert f"error: mine: calibration set {text}: has text for 0 samples of 512 tokens" in done.stderr
    assert "fp8: INCONCLUSIVE: " in done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [(row[0], row[6], row[7]) for row in rows] == [("mine", "error", "no"), ("fp8", "INCONCLUSIVE", "no")]
    as_json = cli("run", recipe, "fp8", *arguments, "--json")
    assert as_json.returncode == 1
    assert [record["recipe"]["name"] for record in json.loads(as_json.stdout)] == ["fp8"]


def test_several_recipes_exit_with_the_worst_of_theirs(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run, whose verdict is replaced: which code wins does not depend on how a verdict came about."""
    done = run(load_recipe("fp8", [little(tmp_path, 5, 7)]), tiny, tmp_path / "out")
    passed, refused, unsure = (
        done.model_copy(update={"verdict": done.verdict.model_copy(update={"verdict": name})})
        for name in ("PASS", "FAIL", "INCONCLUSIVE")
    )
    broken = QuantgateError("broken")
    cases: list[tuple[list[Run | QuantgateError], int]] = [
        ([passed, passed], 0),
        ([passed, unsure], 4),
        ([unsure, refused, passed], 3),
        ([refused, broken, unsure], 1),
        ([BadInput([Problem("set", "is too short")]), passed], 1),
    ]
    for outcomes, code in cases:
        with pytest.raises(SystemExit) as left:
            finish_all({str(number): outcome for number, outcome in enumerate(outcomes)}, as_json=False)
        assert left.value.code == code
        assert capsys.readouterr().out.count("│ error ") == sum(isinstance(o, QuantgateError) for o in outcomes)


@pytest.mark.slow
def test_a_ruined_artifact_is_refused_and_nothing_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is made to add noise to every weight: a stand-in for any bug that quantizes badly.

    No other test keeps layer 3, so that none finds this artifact in the cache.
    """
    sound = rounding.quantize

    def ruined(weight: torch.Tensor, scales: Scales) -> torch.Tensor:
        generator = torch.Generator().manual_seed(weight.shape[0])
        noise = torch.randn(weight.shape, generator=generator) * weight.float().std() * 0.08
        return sound(weight.float() + noise, scales)

    monkeypatch.setattr(rounding, "quantize", ruined)
    recipe = ["fp8", "--set", "quantize.ignore=[lm_head, 'layer:3']", "--set", little(tmp_path, 60, 100)]
    done = CliRunner().invoke(main, ["run", *recipe, "--to", str(tmp_path / "out")])
    assert done.exit_code == 3, done.output
    assert "FAIL" in done.output and "not published" in done.output
    assert "retention is shown to be below 99.00%" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_inconclusive_is_exit_code_4_where_the_policy_wants_certainty(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "fp8", "--set", little(tmp_path, 8, 8, "certified"), "--to", tmp_path / "out", "--json")
    assert done.returncode == 4, done.stderr
    record = json.loads(done.stdout)
    assert record["gate"]["verdict"] == "INCONCLUSIVE"
    assert record["gate"]["more_documents"] > 0
    assert not (tmp_path / "out").exists()


def test_verify_says_what_it_measured(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    printed = json.loads(cli("quantize", "fp8", "--model", tiny, "--json").stdout)
    checked = cli("verify", printed["artifact"], "--json")
    assert checked.returncode == 0, checked.stderr
    again = json.loads(checked.stdout)
    assert again["reused"] and again["quantized"] == 14
    assert {name: printed[name] for name in again if name != "reused"} == {
        name: value for name, value in again.items() if name != "reused"
    }
    table = cli("verify", printed["artifact"]).stdout
    assert "14 quantized, 24 tensors kept" in table and "dB signal to noise" in table

    published = tmp_path / "published"
    shutil.copytree(printed["artifact"], published / "artifact")
    (published / "artifact" / "quantgate.json").write_text("{}")
    refused = cli("verify", published / "artifact")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is not what was published:" in refused.stderr


def test_a_format_that_vllm_cannot_run_here_is_refused_before_the_work(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    arguments = ("--model", tiny, "--device", "cpu", "--runtime", "vllm", "--vllm-python", sys.executable)
    done = cli("run", "nvfp4", "mxfp4", *arguments, "--to", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    for name, scheme in (("nvfp4", "NVFP4"), ("mxfp4", "MXFP4")):
        assert done.stderr.count(f"recipe {name}: {scheme}: vLLM for CPUs has no kernel for FP4\n") == 1


@pytest.mark.slow
def test_what_this_device_cannot_run_is_never_said_to_be_verified(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    done = run(
        load_recipe("nvfp4-weight-only", [little(tmp_path, 5, 7), "calibrate.samples=4", "calibrate.seq_len=64"]),
        tiny,
        tmp_path / "out",
    )
    published = Path(shutil.copytree(done.artifact, tmp_path / "published"))
    (published / "quantgate.json").write_text(done.manifest.model_dump_json())
    for folder in (done.artifact, published):
        for as_json in ((), ("--json",)):
            arguments = ("--runtime", "vllm", "--vllm-python", sys.executable, "--device", "cpu", *as_json)
            checked = cli("verify", folder, *arguments)
            assert (checked.returncode, checked.stdout) == (4, "")
            told = "not verifiable on this device: NVFP4A16: vLLM for CPUs has no kernel for FP4\n"
            assert checked.stderr == told


@pytest.mark.vllm
def test_verify_in_vllm_prints_its_figures(cli: Cli, tmp_path: Path, vllm_python: Path) -> None:
    artifact = json.loads(cli("quantize", "fp8", "--json").stdout)["artifact"]
    done = cli("verify", artifact, "--runtime", "vllm", "--vllm-python", vllm_python, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["agrees"] and printed["mean_difference"] < printed["tolerance"]

    published = Path(shutil.copytree(artifact, tmp_path / "published"))
    manifest = run(load_recipe("fp8", [little(tmp_path, 4, 4)]), to=tmp_path / "out").manifest
    (published / "quantgate.json").write_text(manifest.model_dump_json())
    done = cli("verify", published, "--runtime", "vllm", "--vllm-python", vllm_python)
    assert done.returncode == 0, done.stderr
    assert re.search(r"│ agrees +│ yes +│", done.stdout)


@pytest.mark.vllm
def test_a_run_in_vllm_evaluates_both_sides_there(cli: Cli, tmp_path: Path, vllm_python: Path) -> None:
    arguments = (*LENIENT, "--set", little(tmp_path, 8, 8), "--to", tmp_path / "out")
    done = cli("run", "fp8", *arguments, "--runtime", "vllm", "--vllm-python", vllm_python, "--json")
    assert done.returncode == 0, done.stderr
    record = Manifest.model_validate_json(done.stdout)
    assert record.evaluation.runtime.startswith("vllm")


def test_each_stage_on_its_own(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    suite = tmp_path / "easy.yaml"
    suite.write_text(EASY)
    made = cli("quantize", "fp8", "--model", tiny, "--json")
    assert made.returncode == 0, made.stderr
    artifact = json.loads(made.stdout)["artifact"]
    assert cli("evaluate", tiny, "--suite", suite, "--out", tmp_path / "b.json").returncode == 0
    assert cli("evaluate", artifact, "--suite", suite, "--out", tmp_path / "c.json").returncode == 0
    judge = ("gate", tmp_path / "b.json", tmp_path / "c.json", "--out", tmp_path / "v.json", "--retention")
    assert cli(*judge, "0.6").returncode == 0
    published = cli("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out")
    assert published.returncode == 0, published.stderr
    assert sums_hold(tmp_path / "out")

    assert cli("gate", tmp_path / "b.json", tmp_path / "b.json", "--out", tmp_path / "other.json").returncode == 0
    foreign = cli("publish", artifact, "--verdict", tmp_path / "other.json", "--to", tmp_path / "out2")
    assert foreign.returncode == 2 and "the verdict belongs to other bytes" in foreign.stderr
    assert not (tmp_path / "out2").exists()


@pytest.mark.slow
def test_without_a_pass_publish_needs_a_reason_and_writes_it_down(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    suite = little(tmp_path, 8, 8, "certified").removeprefix("gate.suite=")
    artifact = json.loads(cli("quantize", "fp8", "--model", tiny, "--json").stdout)["artifact"]
    assert cli("evaluate", tiny, "--suite", suite, "--out", tmp_path / "b.json").returncode == 0
    assert cli("evaluate", artifact, "--suite", suite, "--out", tmp_path / "c.json").returncode == 0
    assert cli("gate", tmp_path / "b.json", tmp_path / "c.json", "--out", tmp_path / "v.json").returncode == 4
    arguments = ("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out")
    refused = cli(*arguments)
    assert refused.returncode == 4 and "not published: the gate says INCONCLUSIVE" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert cli(*arguments, "--force", "demo for the sales team").returncode == 0
    assert "demo for the sales team" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "quantgate.json").read_text())["gate"]["verdict"] == "INCONCLUSIVE"


@pytest.mark.slow
def test_an_artifact_changed_after_it_was_judged_is_refused(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTGATE_CACHE", str(own_cache(tmp_path / "cache", cache_dir())))
    suite = little(tmp_path, 4, 4).removeprefix("gate.suite=")
    artifact = Path(json.loads(cli("quantize", "fp8", "--model", tiny, "--json").stdout)["artifact"])
    assert cli("evaluate", tiny, "--suite", suite, "--out", tmp_path / "b.json").returncode == 0
    assert cli("evaluate", artifact, "--suite", suite, "--out", tmp_path / "c.json").returncode == 0
    cli("gate", tmp_path / "b.json", tmp_path / "c.json", "--out", tmp_path / "v.json", "--retention", "0.51")
    with (artifact / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    done = cli("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out", "--force", "why not")
    assert done.returncode == 2 and "was changed after it was made" in done.stderr
    assert not (tmp_path / "out").exists()
    assert json.loads(cli("quantize", "fp8", "--model", tiny, "--json").stdout)["artifact"] == str(
        artifact
    )  # made again, and sound
    healed = cli("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out", "--force", "why not")
    assert healed.returncode == 0, healed.stderr


def kill_when(arguments: list[str], environment: dict[str, str], seen: Path, pattern: str) -> bool:
    """Start the command, kill -9 it as soon as a path like `pattern` is below `seen`; whether it came to that."""
    process = warm.start(arguments, seen, environment, Path(os.devnull), Path(os.devnull))
    try:
        while process.is_alive():
            if any(seen.glob(pattern)):
                return True
            time.sleep(0.002)
        return False
    finally:
        process.kill()  # SIGKILL
        process.join()


@pytest.mark.long
def test_a_killed_run_resumes_and_never_shows_a_partial_artifact(
    cli: Cli, tmp_path: Path, cache: Path, smollm2: Checkpoint
) -> None:
    """Two layers, with as many bytes as it takes to be seen while they are written."""
    wide = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 12}
    model = make_tiny(tmp_path / "model", smollm2, **wide, num_key_value_heads=6)
    suite = tmp_path / "easy.yaml"
    suite.write_text(EASY)
    own = own_cache(tmp_path / "cache", cache)
    artifacts = tmp_path / "artifacts"
    arguments = [
        "run",
        "fp8",
        *PLAIN,
        "--model",
        str(model),
        *LENIENT,
        "--set",
        f"gate.suite={suite}",
        "--to",
        str(artifacts / "m" / "fp8"),
        "--json",
    ]
    environment = {**os.environ, "QUANTGATE_CACHE": str(own)}
    moments = {
        "quantize": "cache/stages/quantize/*.partial/artifact/model.safetensors",
        "evaluate": "cache/stages/evaluate/*.partial",
        "bundle": "cache/stages/bundle/*.partial/files/model.safetensors",
        "publish": "artifacts/m/.fp8.*.partial/files/*",
    }
    finished: dict[str, set[str]] = {}
    for stage, pattern in moments.items():
        assert kill_when(arguments, environment, tmp_path, pattern), f"{stage} was not seen"
        assert not (artifacts / "m" / "fp8").exists()
        results = {path.parent.name for path in own.glob("stages/*/*/result.json")}
        assert all(before <= results for before in finished.values()), "a finished stage was lost"
        finished[stage] = results
    # lm-eval's tasks, the source of the tokenizer, the probe, the task's documents and prompts, artifact, verification,
    # blocks of two models, the bundle
    stages = [path.relative_to(own / "stages").parts[0] for path in own.glob("stages/*/*/result.json")]
    assert set(stages) == {
        *("tasks", "default-model", "anatomy", "rehearsal", "probe", "documents", "prompts"),
        *("quantize", "verify", "evaluate", "bundle"),
    }  # fmt: skip
    assert stages.count("evaluate") % 2 == 0, "as many blocks of either side"

    done = cli(*arguments, QUANTGATE_CACHE=str(own))
    assert done.returncode == 0, done.stderr
    assert all(stage["reused"] for stage in json.loads(done.stdout)["stages"])
    assert sums_hold(artifacts / "m" / "fp8")
    assert not list(tmp_path.rglob("*.partial"))
