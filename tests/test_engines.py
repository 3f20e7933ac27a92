"""Other projects' engines: the protocol with a real worker in an environment of its own, and the engines themselves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipelines import environments
from pipelines.checkpoint import Checkpoint
from pipelines.errors import BadInput, QuantgateError
from pipelines.plan import make_plan
from pipelines.processes import Worker, clean_variables, serve
from pipelines.quantize import Artifact, quantize
from pipelines.recipe import load_recipe
from pipelines.runtime import load_for_inference
from pipelines.verify import verify
from tests.conftest import make_tiny

ENGINE = """
import os, signal, sys, time

def commands(report):
    def add(a, b):
        report(1, 2, "adding")
        print("said on standard output")
        return a + b
    def fail():
        raise ValueError("no such layer")
    def end(code):
        print("last words", file=sys.stderr, flush=True)
        os._exit(code)
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    def wait():
        time.sleep(600)
    def prefix():
        return sys.prefix
    return {"add": add, "fail": fail, "end": end, "die": die, "wait": wait, "prefix": prefix}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What starts the real worker, with an engine of a few lines, in an environment that has nothing else."""
    folder = tmp_path_factory.mktemp("engine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    main, _ = serve("tiny_engine")
    shutil.copytree(main, folder / "workers")
    (folder / "workers" / "tiny_engine.py").write_text(ENGINE)
    return [str(folder / "venv" / "bin" / "python"), str(folder / "workers"), "tiny_engine"]


def test_an_answer_comes_with_progress_peak_memory_and_a_log(command: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    log = tmp_path / "engine.log"
    with Worker("tiny", command, clean_variables(), log, lambda *told: seen.append(told)) as worker:
        assert worker.ask("add", a=2, b=3) == 5
        assert worker.ask("prefix") == str(Path(command[0]).parents[1])
        assert seen == [(1, 2, "adding")]
        assert 1 << 20 < worker.peak_memory < 1 << 30
    assert "said on standard output" in log.read_text()


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (("fail",), "tiny failed to fail: ValueError: no such layer"),
        (("end", {"code": 3}), "its process ended with code 3\n    last words"),
        (("die",), "its process was killed, as the system does when memory is exhausted"),
    ],
)
def test_a_failure_is_one_clear_error(
    command: list[str], request_: tuple[str, dict[str, int]] | tuple[str], what: str
) -> None:
    name, *arguments = request_
    with Worker("tiny", command, clean_variables()) as worker:
        with pytest.raises(QuantgateError) as error:
            worker.ask(name, **(arguments[0] if arguments else {}))
        assert what in str(error.value)


def test_silence_ends_it(command: list[str]) -> None:
    worker = Worker("tiny", command, clean_variables(), silence=1.0)
    with worker, pytest.raises(QuantgateError, match="said nothing for 1 seconds and was ended"):
        worker.ask("wait")


def test_no_worker_survives_whoever_started_it(command: list[str]) -> None:
    code = "import sys; from pipelines.processes import *; Worker('tiny', sys.argv[1:], clean_variables()).ask('wait')"
    parent = subprocess.Popen([sys.executable, "-c", code, *command])
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not workers and time.monotonic() < deadline:
        workers = psutil.Process(parent.pid).children()
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["quantize.engine=modelopt"], "engine modelopt does not do gptq with W4A16 here, but rtn: FP8_TENSOR, NVFP4"),
        (["quantize.engine=gptqmodel", "quantize.smoothquant=0.5"], "engine gptqmodel takes no smoothquant here"),
        (["quantize.engine=auto-gptq"], "Input should be 'quantgate', 'gptqmodel' or 'modelopt'"),
        (["quantize.method=rtn", "quantize.scheme=FP8_TENSOR"], "FP8_TENSOR is quantized by engine modelopt only"),
    ],
)
def test_what_an_engine_does_not_do_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        load_recipe("int4-gptq", ["quantize.group_size=null", *overrides])


def test_locks_hold_a_digest_for_every_package_and_no_torch() -> None:
    for build in (environments.ENVIRONMENTS[name].builds["cpu"] for name in ("gptqmodel", "modelopt")):
        assert build.lock
        lines = (environments.LOCKS / build.lock).read_text().splitlines()
        packages = [number for number, line in enumerate(lines) if "==" in line and not line.startswith((" ", "#"))]
        assert len(packages) > 30
        assert all(lines[number + 1].strip().startswith("--hash=sha256:") for number in packages)
        assert not [
            lines[number] for number in packages if lines[number].startswith(("torch=", "triton=", "nvidia-cu"))
        ]


def test_what_gptqmodels_awq_would_stumble_over_is_refused(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"clips 64 output features at a time, and .* has 32"):
        make_plan(load_recipe("awq-gptqmodel", ["quantize.group_size=32"]), tiny)


@pytest.mark.parametrize(("overrides", "copies"), [([], 3), (["export=autoawq"], 4)])
def test_the_plan_counts_what_lies_on_disk_on_the_way(tiny: Path, overrides: list[str], copies: int) -> None:
    """The artifact in the cache and where it is published, what the engine wrote, and what is not repacked yet."""
    plan = make_plan(load_recipe("gptq-gptqmodel", ["quantize.group_size=32", *overrides]), tiny)
    assert sum(need.needed for need in plan.needs if need.resource == "disk") == copies * plan.bytes_after


# The engines


@pytest.fixture(scope="module")
def wide(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny`, with as many output features everywhere as GPTQModel's AWQ wants."""
    return make_tiny(tmp_path_factory.mktemp("checkpoints") / "wide", smollm2, num_key_value_heads=4)


@pytest.fixture
def engines(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their environments are those of the user's own cache, made there unless they are."""
    own = (cache / "wheels").resolve().parent
    with monkeypatch.context() as patch:
        patch.setenv("QUANTGATE_CACHE", str(own))
        for name in ("gptqmodel", "modelopt"):
            environments.make(name)
    if not (cache / "environments").exists():
        (cache / "environments").symlink_to(own / "environments")


def made(recipe: str, model: Path, *overrides: str) -> Artifact:
    chosen = load_recipe(recipe, ["calibrate.samples=8", "calibrate.seq_len=128", *overrides])
    return quantize(make_plan(chosen, model))


@pytest.mark.engines
@pytest.mark.parametrize("recipe", ["gptq-gptqmodel", "awq-gptqmodel", "fp8-modelopt", "nvfp4-modelopt"])
@pytest.mark.usefixtures("engines")
def test_an_engine_makes_what_the_plan_says(recipe: str, wide: Path) -> None:
    """Verify compares every tensor with the plan, every kept one with the source, and lets the artifact speak."""
    small = ("quantize.group_size=32",) if "gptqmodel" in recipe else ()
    artifact = made(recipe, wide, *small, "quantize.ignore=[lm_head, 'layer:0']")
    seen = verify(artifact, "cpu")
    assert seen.quantized == 21
    assert seen.bytes_after == artifact.plan.bytes_after
    assert min(layer.sqnr for layer in seen.layers) > (25 if "fp8" in recipe else 12)
    assert artifact.written.engine.startswith(recipe.partition("-")[2])
    config = json.loads((artifact.checkpoint / "config.json").read_text())["quantization_config"]
    assert "/" not in json.dumps(config.get("meta", {})), "no path of this machine travels with it"
    assert not (artifact.folder / "raw").exists()


@pytest.mark.engines
@pytest.mark.usefixtures("engines")
def test_an_engines_result_read_back_as_compressed_tensors_computes_the_same(tiny: Path) -> None:
    ids = torch.arange(40)[None]
    own = made("gptq-gptqmodel", tiny, "quantize.group_size=32")
    back = made("gptq-gptqmodel", tiny, "quantize.group_size=32", "export=autoawq")
    with torch.inference_mode():
        logits = [load_for_inference(artifact.checkpoint, "cpu")(ids).logits for artifact in (own, back)]
    assert torch.equal(*logits)
