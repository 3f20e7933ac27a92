"""What a person sees while a run lasts: in a CI job's log, on a real terminal, and in the run's own log."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from select import select
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipelines.core import progress
from pipelines.core.cache import cache_dir
from pipelines.flow import display
from pipelines.flow.display import Display
from tests.conftest import EASY, Cli, own_cache
from tests.helpers import warm

LIBRARIES = ("Loading weights", "Compressing model", "Dispatching model", "it/s]", "UserWarning")
"""What the bars and warnings of libraries say."""
STAGES = ("quantize", "verify", "evaluate", "package", "publish")


def arguments(tiny: Path, folder: Path) -> list[str]:
    """A run of a small model that passes."""
    suite = folder / "easy.yaml"
    suite.write_text(EASY)
    settings = ["--set", f"gate.suite={suite}", "--set", "gate.retention=0.51"]
    return ["run", "fp8", "--model", str(tiny), *settings, "--to", str(folder / "out")]


def test_without_a_terminal_a_stage_is_a_line_when_it_begins_and_one_when_it_ends(
    cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    own = own_cache(tmp_path / "cache", cache_dir())
    done = cli(*arguments(tiny, tmp_path), QUANTGATE_CACHE=str(own))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for stage in STAGES:
        begun = [number for number, line in enumerate(lines) if line.startswith(f"{stage}: begins")]
        ended = [number for number, line in enumerate(lines) if re.match(rf"{stage}: (\d|reused)", line)]
        assert len(begun) == len(ended) == 1 and begun[0] < ended[0], done.stderr
    assert any(line.endswith("in float32 on cpu") for line in lines)
    record = json.loads((tmp_path / "out" / "quantgate.json").read_text())
    assert (record["evaluation"]["dtype"], record["evaluation"]["device"]) == ("float32", "cpu")
    assert not any(told in done.stderr or told in done.stdout for told in LIBRARIES)
    (log,) = (Path(line.split(maxsplit=1)[1]) for line in lines if line.startswith("log  "))
    assert "Loading weights" in log.read_text()


def test_on_a_terminal_a_run_is_one_picture(tiny: Path, tmp_path: Path) -> None:
    """A terminal of the system's own, of 100 columns."""
    ours, theirs = pty.openpty()
    own = own_cache(tmp_path / "cache", cache_dir())
    environment = {**os.environ, "QUANTGATE_CACHE": str(own), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command, terminal = [*arguments(tiny, tmp_path), "--full"], Path(os.ttyname(theirs))
    running = warm.start(command, tmp_path, environment, Path(os.devnull), terminal)
    shown = bytearray()
    while select([ours, running.sentinel], [], [])[0] != [running.sentinel]:
        shown += os.read(ours, 1 << 16)
    os.close(theirs)
    os.close(ours)
    assert running.exitcode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert all(f"✓ {stage}" in text for stage in STAGES)
    assert "· publish" in text, "stages to come are shown from the beginning"
    assert re.search(r"━.* of 96 documents", text), "an evaluation is one bar over all documents of both sides"
    assert not any(told in text for told in LIBRARIES)


def test_what_is_written_below_python_goes_to_the_log_and_the_rest_comes_back(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys; from pathlib import Path; from pipelines.flow.display import Display\n"
        "with Display('title', ['one'], {}, Path(sys.argv[1])).shown() as display:\n"
        "    with display.stage('one'):\n"
        "        os.write(2, b'from C\\n'); subprocess.run(['sh', '-c', 'echo from a child >&2'])\n"
        "        print('from print'); print('to standard error', file=sys.stderr)\n"
        "print('after', file=sys.stderr); print('result')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "result\n"
    assert done.stderr.splitlines() == ["title", f"log        {tmp_path / 'log'}", "one: begins", "one: 0 s", "after"]
    logged = (tmp_path / "log").read_text()
    assert all(text in logged for text in ("from C", "from a child", "from print", "to standard error"))


def test_secrets_do_not_stay_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SecretTokenOfSomebody")
    with Display("title", [], {}, tmp_path / "log").shown():
        print("refused: hf_SecretTokenOfSomebody", file=sys.stderr)
    assert (tmp_path / "log").read_text() == "refused: (hidden)\n"


def test_a_long_stage_tells_how_far_it_is_and_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "LINE_INTERVAL", 0.0)
    monkeypatch.setattr(display, "LEAST_WORK", 0.0)
    shown = Display("title", ["evaluate", "publish"], {"evaluate": 600.0}, tmp_path / "log")
    with shown.shown(), shown.stage("evaluate"), progress.bar(400, "evaluate", "document") as bar:
        progress.note("so far 99.1% of the baseline kept")
        time.sleep(0.01)
        bar.update(100)
        shown.finish("reused")
    lines = capsys.readouterr().err.splitlines()
    assert "evaluate: begins, about 10 min" in lines
    assert "evaluate: 100 of 400 documents, 0 s left; so far 99.1% of the baseline kept" in lines
    assert lines[-1] == "evaluate: reused"


def test_the_time_left_is_reckoned_from_what_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that were kept are done in no time: at their pace the others would be done at once."""
    clock = [1000.0]
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    work = display.Work("evaluate", 1000, "document")
    work.skip(400)
    clock[0] += display.LEAST_WORK + 1
    assert work.left() is None, "nothing was evaluated yet"
    for _ in range(10):
        clock[0] += 7.9
        work.advance(10)
    work.skip(100)
    assert work.summary() == "600 of 1,000 documents, 7 min left"  # 100 in 100 seconds, and 400 are left


def test_a_stage_that_is_done_already_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display("title", ["quantize", "verify"], {"quantize": 0.0, "verify": 100.0}, tmp_path / "log")
    with shown.shown():
        for stage in ("quantize", "verify"):
            with shown.stage(stage):
                shown.finish("reused")
    lines = capsys.readouterr().err.splitlines()
    assert "quantize: begins, done" in lines and "verify: begins, about 2 min" in lines


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_screen_cuts_nothing_off(width: int, tmp_path: Path) -> None:
    shown = Display("title", ["evaluate source in transformers", "evaluate"], {}, tmp_path / "log")
    shown._console = Console(file=io.StringIO(), width=width)
    shown._running = shown._stages["evaluate"]
    shown.begin("evaluate", 13500, "document")
    shown.advance(1200)
    both = "99.10% (98.0% … 100.2%) of accuracy and 99.87% (99.1% … 100.5%) of the expected score"
    shown.note(f"so far {both} kept, on 1,200 documents")
    shown._console.print(shown._picture(), soft_wrap=False)
    text = " ".join(shown._console.file.getvalue().split())  # type: ignore[attr-defined]
    assert all(word in text.split() for word in ("1,200", "13,500", "99.10%", "(98.0%", "100.2%)", "99.87%", "100.5%)"))


def test_an_error_in_a_stage_reaches_the_caller_and_the_terminal_is_whole_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stderr
    shown = Display("title", ["one"], {}, tmp_path / "log")
    with pytest.raises(ZeroDivisionError), shown.shown(), shown.stage("one"):
        raise ZeroDivisionError
    assert sys.stderr is before
    print("after", file=sys.stderr)
    assert capsys.readouterr().err.splitlines()[-1] == "after"


BROKEN = (
    "import sys; from pathlib import Path; from pipelines.flow.display import Display\n"
    "with Display('title', ['one'], {}, Path(sys.argv[1])).shown() as display, display.stage('one'):\n"
    "    print('a library')\n"
    "print('result')\n"
)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's disk that is always full")
def test_a_run_does_not_end_because_nobody_can_see_it(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", BROKEN, str(tmp_path / "log")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=True)
    assert done.stdout == "result\n"
    assert "a library" in (tmp_path / "log").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's disk that is always full")
def test_a_full_standard_output_is_one_line_and_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "pipelines.cli", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_process_that_is_told_to_end_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    code = BROKEN.replace("print('a library')", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    own = own_cache(tmp_path / "cache", cache_dir())
    environment = {**os.environ, "QUANTGATE_CACHE": str(own), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    assert running.wait() == 128 + 15
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "✗" in shown
