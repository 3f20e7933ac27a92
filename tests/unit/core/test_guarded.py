"""Programs that end with their owner, whatever ends that."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipelines.core.guarded import GuardedProcess

FAMILY = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), grandchild.pid, flush=True)
time.sleep(600)
"""
"""A program that starts another one in a session of its own, and tells the ids of both."""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + FAMILY
OWNER = f"""
import os, sys, time
from pathlib import Path
from pipelines.core.guarded import GuardedProcess
with GuardedProcess([sys.executable, "-c", {FAMILY!r}], Path(sys.argv[1]), os.environ):
    time.sleep(600)
"""


def eventually(true: Callable[[], bool]) -> bool:
    """Whether `true` comes true within half a minute."""
    for _ in range(600):
        if true():
            return True
        time.sleep(0.05)
    return False


def family(log: Path) -> list[int]:
    """The ids that `FAMILY` printed into `log`, once it has."""
    assert eventually(lambda: log.exists() and len(log.read_text().split()) == 2)
    return [int(word) for word in log.read_text().split()]


def gone(ids: list[int]) -> bool:
    return not any(psutil.pid_exists(one) and psutil.Process(one).status() != psutil.STATUS_ZOMBIE for one in ids)


def test_the_program_and_what_it_started_end_with_the_block(tmp_path: Path) -> None:
    with GuardedProcess([sys.executable, "-c", FAMILY], tmp_path / "log", os.environ) as process:
        ids = family(tmp_path / "log")
        assert process.code is None
        assert {found.pid for found in process.processes} == {*ids}
        assert process.peak_memory() > 5_000_000
    assert gone(ids)
    assert process.ending() == "it was ended by SIGTERM"


def test_a_program_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    with GuardedProcess([sys.executable, "-c", STUBBORN], tmp_path / "log", os.environ) as process:
        ids = family(tmp_path / "log")
    assert gone(ids)
    assert "killed (SIGKILL)" in process.ending()


def test_a_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "log")])
    ids = family(tmp_path / "log")
    owner.kill()
    owner.wait()
    assert eventually(lambda: gone(ids))


def test_a_killed_guard_takes_the_program_with_it(tmp_path: Path) -> None:
    with GuardedProcess(
        [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", os.environ
    ) as process:
        assert eventually(lambda: len(process.processes) == 1)
        (program,) = process.processes
        os.kill(process._guard.pid, signal.SIGKILL)
        assert eventually(lambda: gone([program.pid]))


def test_the_end_and_the_last_words_are_told(tmp_path: Path) -> None:
    code = "import sys; print('one\\n\\ntwo'); sys.exit(3)"
    with GuardedProcess([sys.executable, "-c", code], tmp_path / "log", os.environ) as process:
        assert eventually(lambda: process.code is not None)
        assert process.ending() == "it ended with code 3"
        assert process.last_words(1) == "\n    two"
    with GuardedProcess(["/no/such/program"], tmp_path / "log", os.environ) as process:
        assert eventually(lambda: process.code == 127)
        assert "cannot be started: No such file" in process.last_words()
