"""vLLM's environment, the process in it, and what it computes against transformers.

The tests marked `vllm` need that environment (`quantgate env make vllm`).
"""

import ensurepip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import load_recipe, make_plan, quantize
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.errors import QuantgateError
from pipelines.environments import isolated
from pipelines.environments.isolated import Build, Distribution, Environment
from pipelines.evaluation.stage import evaluate
from pipelines.formats.schemes import SchemeName
from pipelines.recipe.suite import Suite, SuiteTask
from pipelines.runtimes import vllm
from pipelines.runtimes.probe import PROMPT
from pipelines.serving.checks import parsed_by_vllm
from pipelines.serving.configs import make_config
from pipelines.serving.served import read_served
from pipelines.serving.serving import Draft, Serving
from tests.conftest import edit_json
from tests.helpers.served import write_checkpoint

STUB = Distribution(name="stand-in", version="1.2+test")


def small(*requirements: str) -> Environment:
    """An environment of nothing but `requirements`."""
    build = Build(requirements=requirements, unwanted=("setuptools",), stub=STUB)
    return Environment(name="small", module="pip", builds={"cpu": build, "cuda": build})


@pytest.fixture(params=["uv", "pip"])
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an environment `small` of what comes with Python: there is no index to take more from."""
    if request.param == "pip":
        monkeypatch.setattr("pipelines.environments.installers.find_uv", lambda: None)
    cache: Path = tmp_path / request.param
    monkeypatch.setenv("QUANTGATE_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(Path(ensurepip.__file__).with_name("_bundled")))
    monkeypatch.setitem(isolated.ENVIRONMENTS, "small", small("pip"))
    return cache


def test_an_environment_is_made_once_found_checked_and_removed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isolated.find("small") is None
    python = isolated.make("small")
    assert python == isolated.find("small")
    assert python.is_relative_to(own_cache / "environments")
    assert capsys.readouterr().err.startswith("making the environment small in ")
    assert isolated.make("small") == python
    assert capsys.readouterr().err == ""
    assert isolated.check("small").split(".")[0].isdigit()
    ask = "import importlib.metadata as m; print(m.version('stand-in'), [d.name for d in m.distributions()])"
    told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert told.startswith("1.2+test") and "setuptools" not in told
    with monkeypatch.context() as patch:  # other requirements are another environment
        patch.setitem(isolated.ENVIRONMENTS, "small", small("pip", "setuptools"))
        assert isolated.find("small") is None
    isolated.remove("small")
    assert isolated.find("small") is None
    with pytest.raises(QuantgateError, match="`quantgate env make small` makes it"):
        isolated.check("small")


def test_a_killed_creation_leaves_nothing_that_counts(own_cache: Path) -> None:
    code = "from tests.environments.test_vllm import *; "
    code += "isolated.ENVIRONMENTS['small'] = small('pip'); isolated.make('small')"
    maker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not (left := list(own_cache.glob("environments/small-*/pyvenv.cfg"))):
        assert maker.poll() is None
        time.sleep(0.02)
    os.killpg(maker.pid, signal.SIGKILL)
    maker.wait()
    assert isolated.find("small") is None
    remains = left[0].with_name("remains")
    remains.touch()
    assert isolated.make("small").exists()
    assert not remains.exists()


def test_a_failed_install_shows_the_end_of_its_log(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(isolated.ENVIRONMENTS, "small", small("there-is-no-such-package==1"))
    with pytest.raises(QuantgateError) as failed:
        isolated.make("small")
    (log,) = own_cache.glob("environments/small-*.log")
    assert f"the end of {log}:" in str(failed.value)
    said = {
        "uv": "there-is-no-such-package was not found in the provided package locations",
        "pip": "No matching distribution found for there-is-no-such-package==1",
    }
    assert said[own_cache.name] in " ".join(str(failed.value).split()), "but for where uv breaks its lines"
    assert isolated.find("small") is None
    assert not list(own_cache.glob("environments/small-*/"))


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W8A8", "W4A16", "W4A16_ASYM"])
def test_schemes_that_run_on_a_cpu(scheme: SchemeName) -> None:
    assert vllm.runs_on_cpu([(scheme, None)]) is None


@pytest.mark.parametrize("scheme", ["FP8_STATIC", "NVFP4", "NVFP4A16", "MXFP4", "W8A16", "W4AFP8"])
def test_schemes_that_do_not_run_on_a_cpu(scheme: SchemeName) -> None:
    reason = vllm.runs_on_cpu([("W4A16", 64), (scheme, None)])
    assert reason is not None and reason.startswith(f"{scheme}: vLLM for CPUs ")


INT8: tuple[SchemeName, None] = ("W8A8", None)
BLOCKS: tuple[SchemeName, int] = ("FP8_BLOCK", 128)


def test_what_depends_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags of CPUs that this machine is not."""
    monkeypatch.setattr(vllm, "cpu_lines", lambda _: ["avx2"])
    assert vllm.runs_on_cpu([INT8]) is None
    assert vllm.runs_on_cpu([BLOCKS]) == "FP8_BLOCK: vLLM for CPUs needs AMX for it (Sapphire Rapids or later)"
    assert vllm.runs_on_cpu([INT8], "FP8") == "kv_cache FP8: vLLM for CPUs needs AVX-512 or AMX for it"
    monkeypatch.setattr(vllm, "cpu_lines", lambda _: ["avx2 avx512f amx_tile"])
    assert vllm.runs_on_cpu([BLOCKS], "FP8") is None
    reason = "FP8_BLOCK: vLLM for CPUs has kernels for blocks of 128, and some here are of 64"
    assert vllm.runs_on_cpu([("FP8_BLOCK", 64)]) == reason


def test_a_python_that_does_not_start(tiny: Path) -> None:
    with pytest.raises(QuantgateError, match="cannot be started: Permission denied"):
        vllm.VllmProcess(tiny, tiny, "cpu", 64)


def test_a_python_without_vllm_is_said_to_be_that(tiny: Path) -> None:
    """Above all, it does not take pipelines/vllm.py for it."""
    with pytest.raises(QuantgateError, match="vLLM failed to load: ModuleNotFoundError: No module named 'vllm'"):
        vllm.VllmProcess(Path(sys.executable), tiny, "cpu", 64)


def test_a_process_that_dies_leaves_its_last_words(tiny: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(QuantgateError, match="vLLM failed to load: its process ended with code 3\n    out of memory"):
        vllm.VllmProcess(python, tiny, "cpu", 64)


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["fp8", "int8", "int4-gptq", "int4-awq"])
def test_vllm_computes_what_transformers_computes(name: str, smollm2: Checkpoint, vllm_python: Path) -> None:
    few = () if name == "fp8" else ("calibrate.samples=8", "calibrate.seq_len=128")
    artifact = quantize(make_plan(load_recipe(name, few), smollm2))
    compared = vllm.compare(artifact.checkpoint, vllm_python, "cpu")
    assert compared.agrees, compared
    assert compared.tokens == 71
    assert compared.tolerance == (vllm.TOLERANCE if name.startswith("int4") else vllm.ROUNDED_TOLERANCE)


@pytest.mark.vllm
def test_a_checkpoint_that_vllm_cannot_run_says_why(smollm2: Checkpoint, vllm_python: Path) -> None:
    artifact = quantize(make_plan("int8-weight-only", smollm2))
    with pytest.raises(QuantgateError, match=r"vLLM failed to load: ValueError: [\s\S]*not supported by CPUWNA16"):
        vllm.compare(artifact.checkpoint, vllm_python, "cpu")


@pytest.fixture(scope="module")
def exact(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model in float32, where runtimes differ by thousandths, and with a short context."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("exact") / "model"
    AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2.folder).save_pretrained(folder)
    edit_json(folder / "config.json", max_position_embeddings=256)
    return folder


@pytest.fixture
def models(exact: Path, vllm_python: Path) -> Iterator[tuple[Any, Any]]:
    """lm-eval's own model, and ours."""
    from lm_eval.models.huggingface import HFLM

    yield HFLM(pretrained=str(exact), device="cpu", batch_size=4), vllm.VllmLM(exact, vllm_python, "cpu")


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, asked, 0, ("test", 0, 1)) for asked in arguments]


@pytest.mark.vllm
def test_requests_are_understood_as_lm_eval_understands_them(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    assert ours.max_length == theirs.max_length == 256
    long = PROMPT * 5
    asked = requests(
        "loglikelihood",
        ("The capital of France is", " Paris"),
        ("The capital of France is", " London"),  # the same context: read once
        ("The capital of France is", " the city of light"),
        ("Trailing spaces belong to the answer  ", "here"),
        ("", "An answer to nothing"),
        ("<|im_start|>user\nHello<|im_end|>\n", "<|im_start|>"),
    )
    for (logprob, likeliest), (expected, as_well) in zip(
        ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True
    ):
        assert logprob == pytest.approx(expected, abs=0.02)
        assert likeliest == as_well
    rolling = requests("loglikelihood_rolling", (long,), ("Short.",))
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), abs=0.5)
    until = requests(
        "generate_until",
        ("Question: What is 2 + 2?\nAnswer:", {"until": ["\n"], "max_gen_toks": 12}),
        ("Once upon a time", {"until": [" was"], "max_gen_toks": 40, "do_sample": False}),
        ("Water boils at", {"until": [], "max_gen_toks": 8}),
    )
    assert ours.generate_until(until) == theirs.generate_until(until)
    with pytest.raises(QuantgateError, match=r"a prompt takes \d+ tokens, and the model reads 256"):
        ours.loglikelihood(requests("loglikelihood", (long, " and an answer")))
    with pytest.raises(QuantgateError, match="task test samples"):
        ours.generate_until(requests("generate_until", ("a", {"do_sample": True, "temperature": 1.0})))


@pytest.mark.vllm
def test_documents_score_as_in_transformers(exact: Path, vllm_python: Path) -> None:
    tasks = (SuiteTask(task="copa", limit=12), SuiteTask(task="lambada_openai", limit=12))
    suite = Suite(version=1, name="little", summary="of the test", tasks=tasks)
    checkpoint = read_checkpoint(exact)
    theirs = evaluate(checkpoint, suite, "cpu").scores()
    ours = evaluate(checkpoint, suite, "cpu", runtime="vllm", python=vllm_python).scores()
    assert not psutil.Process().children(recursive=True)
    for task in ("copa", "lambada_openai"):
        assert [document.score for document in ours[task]] == [document.score for document in theirs[task]]
        assert [document.prompt_hash for document in ours[task]] == [document.prompt_hash for document in theirs[task]]


@pytest.mark.vllm
def test_its_own_parser_reads_every_config(tmp_path: Path, vllm_python: Path) -> None:
    served = read_served(write_checkpoint(tmp_path / "mine", ("FP8_DYNAMIC", None)))
    said = Serving(context=4096, concurrency=8, kv_cache="fp8", prefix_caching=False, tensor=2, pipeline=3, data=4)
    for draft in (Draft(model=tmp_path / "small"), Draft(model=None)):
        config = make_config("vllm", served, said.model_copy(update={"draft": draft}))
        told = parsed_by_vllm(config, served, vllm_python)
        assert told == f"read by the argument parser of vLLM {vllm_version(vllm_python)}, not run"
    for text, refused in (("max-model-lenn: 3\n", "unrecognized arguments"), ("max-num-seqs: many\n", "invalid int")):
        with pytest.raises(QuantgateError, match=refused):
            parsed_by_vllm(config.model_copy(update={"text": text}), served, vllm_python)


def vllm_version(python: Path) -> str:
    """What the package of vLLM in an environment says of itself."""
    ask = "import vllm.version; print(vllm.version.__version__)"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
