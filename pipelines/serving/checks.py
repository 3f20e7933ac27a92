"""Whether a runtime takes its config: vLLM's own parser reads it, llama-server is started with it, where these are on
the machine. Of other runtimes only the names are known, and that is said."""

import json
import socket
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from pipelines.core.errors import QuantgateError
from pipelines.core.guarded import GuardedProcess
from pipelines.core.processes import WorkerProcess, clean_variables
from pipelines.environments import isolated
from pipelines.serving.configs import Config
from pipelines.serving.loads import TITLES, VERSIONS
from pipelines.serving.served import Served
from pipelines.serving.serving import Serving

PATIENCE = 600.0
"""Seconds that a model may take to load."""
LOADING = 503
"""Status of an answer that is to be asked for again."""


def check(config: Config, served: Served, serving: Serving) -> str:
    """Return how the `config` for `serving` an artifact was checked on this machine.

    Raises:
        QuantgateError: its runtime refuses it, or reads something else than it was told.
    """
    if config.runtime == "vllm" and (python := isolated.find("vllm")):
        return parsed_by_vllm(config, served, python)
    if config.runtime == "llama.cpp" and (programs := isolated.find("llama-server")):
        return started_in_llama_server(config, served, serving, programs)
    return f"names checked against {TITLES[config.runtime]} {VERSIONS[config.runtime]}, not run"


def parsed_by_vllm(config: Config, served: Served, python: Path) -> str:
    """Let the vLLM of `python` parse the config, hold what it reads against it, and return that it does."""
    told = dict(_as_parsed(key, value) for key, value in yaml.safe_load(config.text).items())
    variables = clean_variables()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vllm.yaml"
        file.write_text(config.text, encoding="utf-8")
        words = ["serve", str(served.model), "--config", str(file)]
        with WorkerProcess("vLLM", [str(python), *isolated.serve("vllm_arguments")], variables) as worker:
            read = worker.ask("parse", words=words, names=[*told])
    if wrong := [key for key, value in told.items() if read["values"][key] != value]:
        key = wrong[0]
        raise QuantgateError(f"vLLM reads {read['values'][key]!r} for {key}, and was told {told[key]!r}")
    return f"read by the argument parser of vLLM {read['version']}, not run"


def _as_parsed(key: str, value: Any) -> tuple[str, Any]:
    """Return the name and value that an option has once it is parsed: `no-x: true` is x, and false."""
    name = key.replace("-", "_")
    return (name.removeprefix("no_"), False) if name.startswith("no_") else (name, value)


def started_in_llama_server(config: Config, served: Served, serving: Serving, programs: Path) -> str:
    """Start llama-server with the config, hold what it says of itself against `serving`, and return what it is."""
    with tempfile.TemporaryDirectory() as scratch:
        file, port = Path(scratch) / "llama-server.ini", _free_port()
        file.write_text(config.text, encoding="utf-8")
        place = ["--host", "127.0.0.1", "--port", str(port)]
        command = [str(programs / "llama-server"), "--models-preset", str(file), *place]
        with GuardedProcess(command, Path(scratch) / "log", clean_variables()) as server:
            props = _props(server, f"http://127.0.0.1:{port}/props?model={urllib.parse.quote(served.name)}")
    requests, tokens = props["total_slots"], props["default_generation_settings"]["n_ctx"]
    found = f"{requests} requests at once, each of at most {tokens} tokens"
    if tokens < (serving.context or 0) or requests != (serving.concurrency or requests):
        asked = f"{serving.concurrency} of at most {serving.context}"
        raise QuantgateError(f"llama-server takes {found} with this config, and was asked for {asked}")
    return f"started in llama-server: {found}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _props(server: GuardedProcess, address: str) -> Any:
    """Return what the server says of its model, once that is loaded.

    Raises:
        QuantgateError: it ends, refuses to load it, or does not load it in time.
    """
    loopback = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end, how = time.monotonic() + PATIENCE, f"it did not load the model in {PATIENCE:.0f} seconds"
    while time.monotonic() < end and server.code is None:
        try:
            with loopback.open(address, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != LOADING:
                how = f"it answered {error.code}: {error.read(500).decode(errors='replace')}"
                break
        except OSError:  # it does not listen yet, or is still loading
            pass
        time.sleep(0.2)
    how = server.ending() if server.code is not None else how
    raise QuantgateError(f"llama-server does not take this config: {how}{server.last_words()}")
