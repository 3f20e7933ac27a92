"""Whether a runtime takes its config: vLLM's own parser reads it, llama-server is started with it, where these are on
the machine. Of other runtimes only the names are known, and that is said."""

import json
import socket
import tempfile
import time
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

PATIENCE = 600.0
"""Seconds that a model may take to load."""


def check(config: Config, served: Served) -> str:
    """Return how `config` was checked on this machine.

    Raises:
        QuantgateError: its runtime refuses it, or reads something else than it was told.
    """
    if config.runtime == "vllm" and (python := isolated.find("vllm")):
        return parsed_by_vllm(config, served, python)
    if config.runtime == "llama.cpp" and (programs := isolated.find("llama-server")):
        return started_in_llama_server(config, served, programs)
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


def started_in_llama_server(config: Config, served: Served, programs: Path) -> str:
    """Start llama-server with the config, hold what it says of itself against it, and return that it does."""
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        file = Path(scratch) / "llama-server.ini"
        file.write_text(config.text, encoding="utf-8")
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        command = [str(programs / "llama-server"), "--models-preset", str(file), "--host", "127.0.0.1", "--port", port]
        with GuardedProcess(command, Path(scratch) / "log", clean_variables()) as server:
            props = _props(server, f"http://127.0.0.1:{port}/props?model={urllib.parse.quote(served.name)}")
    slots, each = props["total_slots"], props["default_generation_settings"]["n_ctx"]
    return f"started in llama-server: {slots} requests at once, each of at most {each} tokens"


def _props(server: GuardedProcess, address: str) -> Any:
    """Return what the server says of its model, once that is loaded.

    Raises:
        QuantgateError: it ends, or does not answer in time.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.code is None:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except (OSError, ValueError):  # it does not listen yet, or the model is not loaded
            time.sleep(0.2)
    how = server.ending() if server.code is not None else f"it did not load the model in {PATIENCE:.0f} seconds"
    raise QuantgateError(f"llama-server does not take this config: {how}{server.last_words()}")
