"""Whole runs on the real default model, with the real engines and lm-eval; only the suites are small."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.cli import main
from pipelines.package import Manifest
from pipelines.plan import make_plan
from tests.conftest import Cli

SUITE = """
version: 1
name: little
summary: of the tests
tasks:
  - {{task: sciq, limit: {sciq}}}
  - {{task: lambada_openai, limit: {lambada}}}
policy: {{decide: {decide}}}
"""
LENIENT = ("--set", "gate.retention=0.6")


def little(folder: Path, sciq: int = 24, lambada: int = 24, decide: str = "point") -> str:
    path = folder / "little.yaml"
    path.write_text(SUITE.format(sciq=sciq, lambada=lambada, decide=decide))
    return f"gate.suite={path}"


def sums_hold(folder: Path) -> bool:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    named = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    return named.keys() == present and all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == value for name, value in named.items()
    )


def test_fp8_from_checkpoint_to_published_artifact_and_again(cli: Cli, tmp_path: Path, smollm2: Checkpoint) -> None:
    suite = little(tmp_path)
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
    assert [row.count("|") for row in rows[:4]] == [8, 8, 8, 8] and set(rows[1]) == {"|", "-"}
    assert rows[2].startswith("| sciq | acc, 0-shot | 24 | ")
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


def test_int8_is_calibrated_and_its_record_says_on_what(cli: Cli, tmp_path: Path) -> None:
    small = ("--set", "calibrate.samples=4", "--set", "calibrate.seq_len=64")
    done = cli("run", "int8", *LENIENT, *small, "--set", little(tmp_path), "--to", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    record = Manifest.model_validate_json(done.stdout)
    assert record.calibration is not None
    assert (record.calibration.set, record.calibration.tokens) == ("passages", 256)
    assert record.calibration.gate_documents == 48
    assert record.verification.quantized == 210
    assert min(layer.sqnr for layer in record.verification.layers) > 25
    assert [stage.stage for stage in record.stages][:3] == ["calibrate", "quantize", "verify"]


def test_a_ruined_artifact_is_refused_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """The engine is made to add noise to every weight: a stand-in for any bug that quantizes badly."""
    from pipelines.engines import streaming

    sound = streaming.fp8_codes

    def ruined(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(weight.shape[0])
        noise = torch.randn(weight.shape, generator=generator) * weight.float().std() * 0.08
        return sound(weight.float() + noise, scale)

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "wheels").symlink_to((cache / "wheels").resolve())
    monkeypatch.setenv("QUANTGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streaming, "fp8_codes", ruined)
    suite = little(tmp_path, 80, 120)
    done = CliRunner().invoke(main, ["run", "fp8", "--set", suite, "--to", str(tmp_path / "out")])
    assert done.exit_code == 3, done.output
    assert "FAIL" in done.output and "not published" in done.output
    assert "retention is shown to be below 99.00%" in done.output
    assert not (tmp_path / "out").exists()


def test_inconclusive_is_exit_code_4_where_the_policy_wants_certainty(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", "fp8", "--set", little(tmp_path, 8, 8, "certified"), "--to", tmp_path / "out", "--json")
    assert done.returncode == 4, done.stderr
    record = json.loads(done.stdout)
    assert record["gate"]["verdict"] == "INCONCLUSIVE"
    assert record["gate"]["more_documents"] > 0
    assert not (tmp_path / "out").exists()


def test_each_stage_on_its_own(cli: Cli, tmp_path: Path) -> None:
    suite = little(tmp_path, 8, 8).removeprefix("gate.suite=")
    made = cli("quantize", "fp8", "--json")
    assert made.returncode == 0, made.stderr
    artifact = json.loads(made.stdout)["artifact"]
    assert cli("evaluate", "--suite", suite, "--out", tmp_path / "b.json").returncode == 0
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


def test_without_a_pass_publish_needs_a_reason_and_writes_it_down(cli: Cli, tmp_path: Path) -> None:
    suite = little(tmp_path, 8, 8, "certified").removeprefix("gate.suite=")
    artifact = json.loads(cli("quantize", "fp8", "--json").stdout)["artifact"]
    assert cli("evaluate", "--suite", suite, "--out", tmp_path / "b.json").returncode == 0
    assert cli("evaluate", artifact, "--suite", suite, "--out", tmp_path / "c.json").returncode == 0
    assert cli("gate", tmp_path / "b.json", tmp_path / "c.json", "--out", tmp_path / "v.json").returncode == 4
    arguments = ("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out")
    refused = cli(*arguments)
    assert refused.returncode == 4 and "not published: the gate says INCONCLUSIVE" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert cli(*arguments, "--force", "demo for the sales team").returncode == 0
    assert "demo for the sales team" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "quantgate.json").read_text())["gate"]["verdict"] == "INCONCLUSIVE"


def test_an_artifact_changed_after_it_was_judged_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(os.environ["QUANTGATE_CACHE"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "wheels").symlink_to((cache / "wheels").resolve())
    monkeypatch.setenv("QUANTGATE_CACHE", str(tmp_path / "cache"))
    suite = little(tmp_path, 4, 4).removeprefix("gate.suite=")
    artifact = Path(json.loads(cli("quantize", "fp8", "--json").stdout)["artifact"])
    assert cli("evaluate", "--suite", suite, "--out", tmp_path / "b.json").returncode == 0
    assert cli("evaluate", artifact, "--suite", suite, "--out", tmp_path / "c.json").returncode == 0
    cli("gate", tmp_path / "b.json", tmp_path / "c.json", "--out", tmp_path / "v.json", "--retention", "0.51")
    with (artifact / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    done = cli("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out", "--force", "why not")
    assert done.returncode == 2 and "was changed after it was made" in done.stderr
    assert not (tmp_path / "out").exists()
    assert json.loads(cli("quantize", "fp8", "--json").stdout)["artifact"] == str(artifact)  # made again, and sound
    healed = cli("publish", artifact, "--verdict", tmp_path / "v.json", "--to", tmp_path / "out", "--force", "why not")
    assert healed.returncode == 0, healed.stderr


def kill_when(command: list[str], environment: dict[str, str], seen: Path, pattern: str) -> bool:
    """Start `command`, kill -9 it as soon as a path like `pattern` is below `seen`; whether it came to that."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if any(seen.glob(pattern)):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.002)
        return False
    finally:
        if process.poll() is None:
            process.kill()


def test_a_killed_run_resumes_and_never_shows_a_partial_artifact(tmp_path: Path, cache: Path) -> None:
    own = tmp_path / "cache"
    own.mkdir()
    (own / "wheels").symlink_to((cache / "wheels").resolve())
    artifacts = tmp_path / "artifacts"
    arguments = [
        "run",
        "fp8",
        *LENIENT,
        "--set",
        little(tmp_path, 12, 12),
        "--to",
        str(artifacts / "m" / "fp8"),
        "--json",
    ]
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = {**os.environ, "QUANTGATE_CACHE": str(own)}
    moments = {
        "default-model": "stages/default-model/*.partial",
        "quantize": "stages/quantize/*.partial/artifact/model.safetensors",
        "verify": "stages/verify/*.partial",
        "evaluate": "stages/evaluate/*.partial",
        "publish": "publish/*.partial/model.safetensors",
    }
    finished: dict[str, set[str]] = {}
    for stage, pattern in moments.items():
        assert kill_when(command, environment, own, pattern), f"{stage} was not seen"
        assert not list(artifacts.rglob("*")) or [p for p in artifacts.rglob("*") if p.is_file()] == []
        results = {path.parent.name for path in own.glob("stages/*/*/result.json")}
        assert all(before <= results for before in finished.values()), "a finished stage was lost"
        finished[stage] = results
    assert len(finished["publish"]) == 7  # model, artifact, verification, two tasks of two models

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(stage["reused"] for stage in json.loads(done.stdout)["stages"])
    assert sums_hold(artifacts / "m" / "fp8")
    assert not list(own.rglob("*.partial"))
