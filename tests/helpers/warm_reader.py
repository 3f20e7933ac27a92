"""The reader of `pipelines.verification.reader` in a process of its own that need not import transformers anew.

It is forked from one that has it, and nothing of ours, which is started when the first reader is asked for.

Run as a program, this is that process: `python -I warm_reader.py` with the listening socket as standard input.
"""

import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTED = (
    "torch",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.integrations.compressed_tensors",
    "compressed_tensors.offload",
    "compressed_tensors.modeling.kvcache",
)
CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [b"-"], [0, 1, 2])
    server.recv(1)
"""
"""Lends its standard streams to a fork and stays until that has ended."""


@contextmanager
def serving() -> Iterator[list[str]]:
    """Yield the command that starts a reader."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/readers")
        listener.listen()
        over, ours = os.pipe()
        threading.Thread(target=_begin, args=(listener, over), daemon=True).start()
        try:
            yield [sys.executable, "-I", "-S", "-c", CLIENT, f"{folder}/readers"]
        finally:
            os.close(ours)


def _begin(listener: socket.socket, over: int) -> None:
    """Start the process when somebody wants to connect; it ends when the other end of the pipe `over` is closed."""
    if over not in select.select([listener.fileno(), over], [], [])[0]:
        variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", __file__, str(over)]
        subprocess.Popen(command, stdin=listener.fileno(), pass_fds=[over], env=variables)


def _serve(over: int) -> None:
    workers = Path(__file__).parents[2] / "pipelines" / "environments" / "workers"
    sys.path.insert(0, str(workers))  # as Python does it for the folder that it runs
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=0) as listener:
        while over not in select.select([listener.fileno(), over], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                _become(connection, str(workers / "__main__.py"))
            connection.close()


def _become(connection: socket.socket, program: str) -> None:
    """Be a reader whose standard streams are those that come through `connection`, which stays open until it ends."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = [program, "transformers_reader"]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
