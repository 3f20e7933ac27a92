"""A program that runs another one, and ends it with all that it started once nobody holds the other end of our input.

Run as `python -I -S guard.py COMMAND…`: whoever starts it keeps a pipe to its standard input open. When that is closed,
by a `kill -9` of its owner, too, the command and its descendants are told to end, and killed if they do not.
It exits with the command's code, or with 128 and the number of the signal that ended it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE = 10.0
"""Seconds that a command has to end by itself after SIGTERM."""
POLL = 0.05


def main(command: list[str]) -> int:
    """Run `command`; return the code to exit with."""
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)  # our owner gets them, too, and closes the pipe
    _control(PR_SET_CHILD_SUBREAPER, 1)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_guard,  # noqa: PLW1509
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_end_with_owner, args=(process,), daemon=True).start()
    code = process.wait()
    _kill_rest()
    return 128 - code if code < 0 else code


def _end_with_owner(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of our input, then end `process`."""
    while os.read(0, 4096):
        pass
    _signal(process.pid, signal.SIGTERM, os.killpg)
    end = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < end:
        time.sleep(POLL)
    _signal(process.pid, signal.SIGKILL, os.killpg)


def _kill_rest() -> None:
    """Kill what the command left: orphans of any group are our children by now, and so are theirs once these end."""
    while children := _children():
        for child in children:
            _signal(child, signal.SIGKILL, os.kill)
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """Return the ids of our children, on a Linux."""
    with suppress(OSError):
        return [int(child) for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]
    return []


def _signal(target: int, number: int, send: Callable[[int, int], None]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        send(target, number)


def _die_with_guard() -> None:
    """Let the system kill this process when the guard is killed."""
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_DFL)
    _control(PR_SET_PDEATHSIG, signal.SIGKILL)


def _control(option: int, value: int) -> None:
    """Set one of a process's attributes, on a Linux."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
