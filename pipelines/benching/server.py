"""The real server of a runtime, started for one model on loopback, and stopped with all that it started."""

import contextlib
import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pipelines.benching.workload import Workload
from pipelines.core.errors import BadInput, bad_input
from pipelines.core.guarded import GuardedProcess
from pipelines.core.processes import clean_variables
from pipelines.core.strict_yaml import Frozen
from pipelines.environments import isolated, llama_build
from pipelines.runtimes.llama_cpp import ALL_LAYERS, threads
from pipelines.runtimes.vllm import process_variables

ServerRuntime = Literal["vllm", "llama.cpp"]
"""Name of a runtime whose server can be started."""
HOST = "127.0.0.1"
READY_SECONDS = 3600.0
"""Seconds in which a server has to become healthy: some compile for many minutes, or read hundreds of gigabytes."""
POLL = 0.2
ANSWER_SECONDS = 600.0
"""Seconds in which a server has to answer a single request."""
BROKEN_SECONDS = 10.0
"""Seconds in which a server has ended whose connection broke: that is seen before its end."""
DRAFT_TOKENS = 4
"""Tokens that a draft model proposes at a time."""
LOG_END = 12
SERVED = "model"
"""Name that each model is served under."""
VLLM_VARIABLES = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinned threads would share their cores with whatever else runs here
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
VLLM_KV_CACHE_GIB = "1"
"""Memory for keys and values on a CPU, unless the user's VLLM_CPU_KVCACHE_SPACE says otherwise."""


class Host(Frozen):
    """Where and how servers are started."""

    runtime: ServerRuntime
    device: str = "cpu"
    port: int | None = None
    """Port to listen at; None for any that is free."""
    python: Path | None = None
    """Interpreter of vLLM's environment; None for the one that quantgate makes."""
    eager: bool = False
    """Whether vLLM serves without compiling first."""


class Served(Frozen):
    """A model that a server loads."""

    name: str
    """Name for messages."""
    path: Path
    """Checkpoint folder, or GGUF."""
    draft: Path | None = None
    kv_cache: str | None = None
    """Type of keys and values in the cache, where it is not the model's own."""


class Server:
    """A healthy server."""

    def __init__(self, process: GuardedProcess, url: str, name: str, ready: float) -> None:
        self.process, self.url, self.name = process, url, name
        self.ready = ready
        """Seconds until it was healthy."""

    def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """Return what the server answers to a request for `path`, with `body` as JSON if there is any.

        Raises:
            BadInput: it ended, or refused.
        """
        try:
            return _ask(f"{self.url}{path}", body)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise bad_input(self.name, f"its server refused {path}: {error.code} {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self.gone(within=BROKEN_SECONDS) or bad_input(
                self.name, f"its server does not answer {path}: {error}"
            ) from None

    def write(self, prompt: str, tokens: int) -> str:
        """Return `tokens` tokens that the model writes after `prompt`, greedily, as text."""
        body = {"model": SERVED, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return str(json.loads(self.ask("/v1/completions", body))["choices"][0]["text"])

    def counters(self) -> dict[str, float]:
        """Return the server's own counters: name without its runtime's prefix → the sum over labels."""
        return read_counters(self.ask("/metrics"))

    def gone(self, while_: str = "", within: float = POLL) -> BadInput | None:
        """Return the error that the server has ended, `while_` it did something; None where it still runs after
        `within` seconds."""
        end = time.monotonic() + within
        while self.process.code is None:
            if time.monotonic() > end:
                return None
            time.sleep(POLL / 4)
        what = f"its server is gone{while_}: {self.process.ending()}; the end of its log:"
        return bad_input(self.name, what + self.process.last_words(LOG_END), "ask for less at once, or free memory")


def version(host: Host) -> str:
    """Return the runtime's name and version; its environment is made if it is not there yet.

    Raises:
        QuantgateError: it cannot be made.
    """
    if host.runtime == "llama.cpp":
        return llama_build.version()
    return f"vllm {isolated.installed(_vllm_python(host), 'vllm')}"


@contextmanager
def serving(served: Served, host: Host, workload: Workload, log: Path) -> Iterator[Server]:
    """Start a server for `served`, wait until it is healthy, and stop it at the end of the block.

    Raises:
        BadInput: the port is taken; the server does not load the model.
        QuantgateError: the runtime's environment cannot be made.
    """
    port = free_port(host.port)
    command, variables = _command(served, host, workload, port)
    started = time.monotonic()
    with GuardedProcess(command, log, {**clean_variables(), **variables}) as process:
        url = f"http://{HOST}:{port}"
        _wait_for_health(process, url, served, host)
        yield Server(process, url, served.name, time.monotonic() - started)


def free_port(asked: int | None) -> int:
    """Return the port `asked` for, or any that is free.

    Raises:
        BadInput: something else listens there, or we may not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, asked or 0))
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "no port has this number"
            raise bad_input(f"--port {asked}", f"cannot be used: {why}", "leave it out to get a free one") from None
        return int(probe.getsockname()[1])


def _command(served: Served, host: Host, workload: Workload, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the server's command, and the variables of its environment."""
    if host.runtime == "llama.cpp":
        return [str(isolated.make("llama-server") / "llama-server"), *llama_options(served, host, workload, port)], {}
    python = _vllm_python(host)
    variables = {**process_variables(host.device), **VLLM_VARIABLES}
    variables.setdefault("VLLM_CPU_KVCACHE_SPACE", VLLM_KV_CACHE_GIB)
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(served.path)]
    return [*command, *vllm_options(served, host, workload, port)], variables


def _vllm_python(host: Host) -> Path:
    return host.python or isolated.make("vllm")


def llama_options(served: Served, host: Host, workload: Workload, port: int) -> list[str]:
    """Return the options of llama-server; its context is that of all requests at once."""
    layers = "0" if host.device == "cpu" else str(ALL_LAYERS)
    options = {
        "--model": str(served.path),
        "--alias": SERVED,
        "--host": HOST,
        "--port": str(port),
        "--parallel": str(workload.concurrency),
        "--ctx-size": str(workload.context * workload.concurrency),
        "--threads": str(threads()),
        "--n-gpu-layers": layers,
    }
    if served.kv_cache:
        options |= {"--cache-type-k": served.kv_cache, "--cache-type-v": served.kv_cache}
    if served.draft:  # without a type, a draft model that is a plain one is loaded and never asked
        options |= {
            "--spec-type": "draft-simple",
            "--spec-draft-model": str(served.draft),
            "--spec-draft-n-max": str(DRAFT_TOKENS),
            "--spec-draft-ngl": layers,
        }
    return [*(word for pair in options.items() for word in pair), "--metrics", "--no-webui"]


def vllm_options(served: Served, host: Host, workload: Workload, port: int) -> list[str]:
    """Return the options of `vllm serve` after the model."""
    options = {
        "--served-model-name": SERVED,
        "--host": HOST,
        "--port": str(port),
        "--max-model-len": str(workload.context),
        "--max-num-seqs": str(workload.concurrency),
    }
    if served.kv_cache:
        options["--kv-cache-dtype"] = served.kv_cache
    if served.draft:
        draft = {"method": "draft_model", "model": str(served.draft), "num_speculative_tokens": DRAFT_TOKENS}
        options["--speculative-config"] = json.dumps(draft)
    return [*(word for pair in options.items() for word in pair), *(["--enforce-eager"] if host.eager else [])]


def _wait_for_health(process: GuardedProcess, url: str, served: Served, host: Host) -> None:
    """Wait until the server says that it is healthy.

    Raises:
        BadInput: it ended before, or took too long.
    """
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.code is not None:
            what = f"its server in {host.runtime} did not start: {process.ending()}; the end of its log:"
            remedy = "docs/serve.md says what loads where"
            raise bad_input(served.name, what + process.last_words(LOG_END), remedy)
        with contextlib.suppress(OSError, http.client.HTTPException):
            _ask(f"{url}/health", None, POLL * 10)
            return
        time.sleep(POLL)
    what = f"its server was not healthy after {READY_SECONDS:.0f} seconds; the end of its log:"
    raise bad_input(served.name, what + process.last_words(LOG_END), "look at what it waits for")


def _ask(url: str, body: dict[str, Any] | None, seconds: float = ANSWER_SECONDS) -> str:
    """Return the answer to a request, which goes to loopback whatever proxy there is."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=seconds) as response:
        return str(response.read().decode())


def read_counters(text: str) -> dict[str, float]:
    """Return the values of metrics in Prometheus's text format, by name without the part before the colon; those of
    one name and several labels are summed."""
    counters: dict[str, float] = {}
    for line in text.splitlines():
        named, _, value = line.rpartition(" ")
        if named and not line.startswith("#"):
            name = named.partition("{")[0].rpartition(":")[2]
            with contextlib.suppress(ValueError):
                counters[name] = counters.get(name, 0.0) + float(value)
    return counters


def no_proxy() -> dict[str, str]:
    """Return variables by which programs reach loopback directly, beside what our own say."""
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    hosts = ",".join(filter(None, (given, HOST, "localhost")))
    return {"NO_PROXY": hosts, "no_proxy": hosts}
