"""`quantgate serve-config` as a user meets it. The environments of vLLM and llama-server are not made here."""

from pathlib import Path
from typing import get_args

import pytest

from pipelines.cli.commands import serve_config
from pipelines.serving.loads import TITLES, Runtime
from pipelines.serving.serving import GOALS
from tests.conftest import Cli
from tests.helpers.served import write_checkpoint, write_gguf

CONFIG = """\
# For SGLang 0.5.23, by quantgate serve-config.
context-length: 4096
max-running-requests: 8
tp-size: 2
speculative-algorithm: NGRAM
speculative-num-draft-tokens: 4
"""


def test_its_choices_are_those_of_the_table() -> None:
    assert serve_config.RUNTIMES == tuple(TITLES) == get_args(Runtime)
    assert serve_config.GOALS == GOALS


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "fp8", ("FP8_DYNAMIC", None))


def test_the_config_is_written_and_its_use_is_told(cli: Cli, fp8: Path, tmp_path: Path) -> None:
    asked = ("--goal", "latency", "--gpus", 2, "--context", 4096, "--draft", "ngram")
    shown = cli("serve-config", fp8, "--runtime", "sglang", *asked)
    assert (shown.returncode, shown.stdout) == (0, CONFIG)
    out = tmp_path / "mine.yaml"
    written = cli("serve-config", fp8, "--runtime", "sglang", *asked, "--out", out)
    assert (written.returncode, written.stdout, out.read_text()) == (0, "", CONFIG)
    command, loads, checked = written.stderr.splitlines()
    assert command == f"serve      python -m sglang.launch_server --model-path {fp8} --config {out}"
    assert loads.startswith("note       SGLang 0.5.23: native on NVIDIA GPUs of compute capability 8.9 or later")
    assert checked == "checked    names checked against SGLang 0.5.23, not run"


def test_a_gguf_is_served_by_llama_server(cli: Cli, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Mine-Q8_0.gguf")
    shown = cli("serve-config", file, "--runtime", "llama.cpp", "--draft", file, QUANTGATE_CACHE=str(tmp_path))
    assert shown.returncode == 0
    assert f"[Mine-Q8_0]\nmodel = {file}\n" in shown.stdout
    assert f"spec-type = draft-simple\nspec-draft-model = {file}\n" in shown.stdout
    assert "checked    names checked against llama.cpp of llama-cpp-python 0.3.36, not run" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--runtime", "llama.cpp"), "holds FP8_DYNAMIC (compressed-tensors), and llama.cpp"),
        (("--runtime", "deepspeed-mii"), "DeepSpeed-MII 0.3.3 reads no config of quantized weights"),
        (("--runtime", "vllm", "--draft", "nowhere"), "nowhere: is no quantized checkpoint, and no GGUF"),
        (("--runtime", "vllm", "--context", "9000"), "--context 9000: is longer than what fp8 can read"),
        (("--runtime", "vllm", "--out", "nowhere/x"), "cannot be written: its folder is not there"),
        (("--runtime", "vllm", "--gpus", "0"), "0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_is_one_clear_error(arguments: tuple[str, ...], what: str, cli: Cli, fp8: Path) -> None:
    shown = cli("serve-config", fp8, *arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert what in shown.stderr
    assert "Traceback" not in shown.stderr
