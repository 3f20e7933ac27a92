"""Servers: their commands, and their ends.

The server is a stand-in (helpers/stand_in_server.py): a real one neither dies nor refuses on demand. llama-server
itself is served in tests/environments/test_bench.py.
"""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipelines.benching import server as module
from pipelines.benching.load import drive
from pipelines.benching.server import (
    Host,
    Served,
    Server,
    free_port,
    llama_options,
    read_counters,
    serving,
    vllm_options,
)
from pipelines.benching.workload import Workload, loads
from pipelines.core.errors import BadInput
from pipelines.environments import isolated

STAND_IN = Path(__file__).parents[2] / "helpers" / "stand_in_server.py"
HOST = Host(runtime="llama.cpp")
MODEL = Served(name="q8", path=Path("/models/q8.gguf"))
WORK = Workload(prompt_tokens=100, output_tokens=20, requests=4, concurrency=3, loads=loads((), 3))


@contextmanager
def served(patch: pytest.MonkeyPatch, folder: Path, how: str) -> Iterator[Server]:
    """The stand-in, in the way of `how`, as `serving` starts a server."""

    def command(_served: Served, _host: Host, _work: Workload, port: int) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, str(STAND_IN), "--port", str(port), "--how", how], {}

    patch.setattr(module, "_command", command)
    with serving(MODEL, HOST, WORK, folder / "server.log") as server:
        yield server


def all_gone(folder: Path) -> bool:
    """Whether no process is left of those whose ids the stand-in printed."""
    ids = map(int, (folder / "server.log").read_text().split("\n")[0].split())
    return not any(psutil.pid_exists(one) for one in ids)


def test_a_server_is_asked_and_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with served(monkeypatch, tmp_path, "fine") as server:
        assert server.write("Once", 5) == "5 tokens"
        assert server.counters()["spec_decode_num_drafts_total"] == 7
        assert server.gone() is None
        assert server.ready > 0
        assert len(server.process.processes) == 2
    assert all_gone(tmp_path)


def test_a_server_that_dies_is_one_error_with_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught, served(monkeypatch, tmp_path, "dies") as server:
        server.write("Once", 5)
    said = str(caught.value)
    assert said.startswith(
        "q8: its server is gone: it was killed (SIGKILL), as the system does when memory is exhausted"
    )
    assert "\n    out of memory, says the server\n" in said
    assert all_gone(tmp_path)


def test_a_server_that_refuses_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="q8: its server refused /v1/completions: 400 the prompt is too long"),
        served(monkeypatch, tmp_path, "refuses") as server,
    ):
        server.write("Once", 5)
    assert all_gone(tmp_path)


def test_a_server_that_does_not_load_the_model_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught, served(monkeypatch, tmp_path, "never-starts"):
        pass
    said = str(caught.value)
    assert "q8: its server in llama.cpp did not start: it ended with code 1; the end of its log:" in said
    assert "unknown model architecture" in said
    assert all_gone(tmp_path)


def test_a_server_that_is_never_healthy_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 3.0)
    with (
        pytest.raises(BadInput, match="was not healthy after 3 seconds"),
        served(monkeypatch, tmp_path, "never-healthy"),
    ):
        pass
    assert all_gone(tmp_path)


def test_a_server_killed_in_the_middle_of_a_load_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The load generator is a stand-in as well: it would go on for ten minutes."""
    (tmp_path / "guidellm.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    monkeypatch.setattr(isolated, "make", lambda _: Path(sys.executable))
    with pytest.raises(BadInput) as caught, served(monkeypatch, tmp_path, "fine") as server:
        log = tmp_path / "generator.log"

        def kill_when_loaded(while_: str = "", within: float = 0.2) -> BadInput | None:
            if log.exists() and log.read_text().strip() and server.process.processes:
                server.process.processes[0].kill()
            return Server.gone(server, while_, within)

        monkeypatch.setattr(server, "gone", kill_when_loaded)
        started = time.monotonic()
        drive(server, WORK, tmp_path, tmp_path)
    assert time.monotonic() - started < 120
    assert "q8: its server is gone in the middle of the load: it was killed (SIGKILL)" in str(caught.value)
    assert not psutil.pid_exists(int(log.read_text()))
    assert all_gone(tmp_path)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port {port}: cannot be used: Address already in use"):
            free_port(port)
    assert free_port(port) == port
    assert free_port(None) > 1023


def test_llama_server_gets_the_context_of_all_requests_and_a_type_for_its_draft() -> None:
    options = llama_options(MODEL.model_copy(update={"draft": Path("/models/small.gguf")}), HOST, WORK, 8080)
    told = dict(zip(options[::2], options[1::2], strict=False))
    assert told["--ctx-size"] == str(3 * (100 + 20 + 64))
    assert (told["--parallel"], told["--n-gpu-layers"], told["--host"]) == ("3", "0", "127.0.0.1")
    assert (told["--spec-type"], told["--spec-draft-model"]) == ("draft-simple", "/models/small.gguf")
    assert "--spec-type" not in llama_options(MODEL, HOST, WORK, 8080)
    assert "999" in llama_options(MODEL, HOST.model_copy(update={"device": "cuda"}), WORK, 8080)


def test_vllm_gets_its_options() -> None:
    host = Host(runtime="vllm", eager=True)
    model = Served(name="fp8", path=Path("/fp8"), draft=Path("/small"), kv_cache="fp8")
    options = vllm_options(model, host, WORK, 8000)
    told = dict(zip(options[::2], options[1::2], strict=False))
    assert (told["--max-model-len"], told["--max-num-seqs"], told["--kv-cache-dtype"]) == ("184", "3", "fp8")
    assert '"method": "draft_model", "model": "/small"' in told["--speculative-config"]
    assert options[-1] == "--enforce-eager"
    assert "--enforce-eager" not in vllm_options(model, Host(runtime="vllm"), WORK, 8000)


def test_counters_are_read_whatever_the_runtime() -> None:
    text = '# TYPE a:b counter\na:b{c="d e"} 1.5\na:b{c="f"} 2\nplain 3\nbad nothing\n'
    assert read_counters(text) == {"b": 3.5, "plain": 3.0}
