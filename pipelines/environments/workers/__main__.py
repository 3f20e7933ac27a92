"""Serves the commands of one module of this folder through pipes, in whatever environment runs it.

Reads requests as JSON lines from standard input and answers each on what was standard output when it started, with
lines `{"progress": [done, total, what]}` while it works and at last `{"result": …}`, or `{"error": …, "trace": …}` and
ends, for after an error an engine may spin forever on what it had begun. Ends, too, when its input does, in the middle
of an answer if need be: no worker survives whoever started it.
"""

import importlib
import json
import os
import queue
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

TRACE_LINES = 6


def main(module: str) -> None:
    """Answer requests until there are no more, or one fails."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # engines and their libraries print to standard output

        def report(done: int, total: int, what: str) -> None:
            _send(replies, {"progress": [done, total, what]})

        commands = importlib.import_module(module).commands(report)
        for request in _requests():
            reply = _answer(commands[request.pop("command")], request)
            _send(replies, reply)
            if "error" in reply:
                break
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an engine may have threads that would keep the process, and need no farewell


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _requests() -> Iterator[dict[str, Any]]:
    """Yield the requests, read by a thread of its own, which ends the process when whoever asks is gone."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def _answer(command: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        result = command(**arguments)
        return {"result": result, "peak_memory": _peak_memory()}
    except Exception as error:
        trace = traceback.format_tb(error.__traceback__)[-TRACE_LINES:]
        return {"error": "".join(traceback.format_exception_only(error)).strip(), "trace": "".join(trace)}


def _peak_memory() -> int:
    """Return this process's largest resident set in bytes. `getrusage` would tell its parent's, if that is larger."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1])
