"""The load generator: guidellm, in an environment of its own, asked by a config file and read from its JSON.

Its times of each request are taken as they are, and everything over requests is computed here: what it calls time per
output token holds the first token in one place and not in another. Every prompt is random text of its own, so that no
cached prefix helps.
"""

import json
import os
from pathlib import Path
from typing import Any

from pipelines.benching.server import ANSWER_SECONDS, BROKEN_SECONDS, SERVED, Server, no_proxy
from pipelines.benching.timings import Request, Timed
from pipelines.benching.workload import Arriving, AtATime, Load, Workload
from pipelines.core.cache import digest, write_json
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.core.guarded import GuardedProcess
from pipelines.core.processes import clean_variables
from pipelines.environments import isolated

GENERATOR = "guidellm"
CORES_PER_SENDER = 4
"""Cores of a machine for each process that sends requests: they must not take those that the server needs."""
MOST_SENDERS = 10
LAST_WORD_SECONDS = 2.0
"""Seconds that the generator waits for its senders' last messages. After its own 0.1 it was seen to leave out a request
on a busy machine: it ends at the first silence after all are processed, whether it has heard of all or not.
"""


def config(url: str, workload: Workload, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Return guidellm's config: `workload` for the server at `url`, the figures into the file `out`.

    `tokenizer` is a folder with the tokenizer by which prompts are made as long as they have to be.
    """
    asked: dict[str, Any] = {"kind": "openai_http", "target": url, "model": SERVED, "request_format": "/v1/completions"}
    body = {"temperature": 0, "ignore_eos": True}
    lengths = {"prompt_tokens": workload.prompt_tokens, "output_tokens": workload.output_tokens}
    spec = {
        "backend": {**asked, "timeout": ANSWER_SECONDS, "http2": False, "extras": {"body": body}},
        "profile": _profile(workload.loads),
        "constraints": [{"kind": "max_requests", "count": workload.requests}, {"kind": "max_errors", "count": 1}],
        "tokenizer": {"kind": "huggingface_auto", "model": str(tokenizer)},
        "data": [{"kind": "synthetic_text", **lengths}],
        "seed": {"kind": "static", "value": workload.seed},
        "outputs": [{"kind": "json", "path": str(out)}],
    }
    return {"spec": spec}


def _profile(loads: tuple[Load, ...]) -> dict[str, Any]:
    """Return guidellm's description of loads, which are all of one kind."""
    streams = [load.requests for load in loads if isinstance(load, AtATime)]
    rates = [load.rate for load in loads if isinstance(load, Arriving)]
    assert not (streams and rates)
    return {"kind": "concurrent", "streams": streams} if streams else {"kind": "poisson", "rate": rates}


def drive(server: Server, workload: Workload, tokenizer: Path, folder: Path) -> tuple[Timed, ...]:
    """Send every load to `server`, with guidellm's files in the empty `folder`; return what was timed.

    Raises:
        BadInput: the server ended, refused a request, or answered with another number of tokens.
        QuantgateError: guidellm failed, or its environment cannot be made.
    """
    python, out = isolated.make(GENERATOR), folder / "out.json"
    write_json(folder / "config.json", config(server.url, workload, tokenizer, out))
    command = [str(python), "-m", GENERATOR, "run", "--config", str(folder / "config.json"), "--disable-console"]
    with GuardedProcess(command, folder / "generator.log", _variables(), folder) as generator:
        ended = None
        while generator.code is None and ended is None:
            ended = server.gone(" in the middle of the load")
        if ended := ended or server.gone(" in the middle of the load", BROKEN_SECONDS if generator.code else 0):
            raise ended
        if generator.code != 0 or not out.is_file():
            raise QuantgateError(f"guidellm failed: {generator.ending()}{generator.last_words()}")
    return read_timings(json.loads(out.read_text(encoding="utf-8")), server.name, workload)


def _variables() -> dict[str, str]:
    senders = max(1, min(MOST_SENDERS, (os.cpu_count() or 1) // CORES_PER_SENDER))
    settings = {
        "HF_HUB_OFFLINE": "1",
        "GUIDELLM__MAX_WORKER_PROCESSES": str(senders),
        "GUIDELLM__MP_POLL_INTERVAL": str(LAST_WORD_SECONDS),
    }
    return {**clean_variables(), **no_proxy(), **settings}


def read_timings(report: dict[str, Any], name: str, workload: Workload) -> tuple[Timed, ...]:
    """Return what guidellm's `report` says of each load on the server of `name`.

    Raises:
        BadInput: a request failed, or was answered with another number of tokens.
        QuantgateError: the report is not of this workload, or not of all its requests.
    """
    parts = report["benchmarks"]
    if len(parts) != len(workload.loads):
        raise QuantgateError(f"guidellm reports {len(parts)} loads of {len(workload.loads)}")
    return tuple(_timed(part, load, name, workload) for part, load in zip(parts, workload.loads, strict=True))


def _timed(part: dict[str, Any], load: Load, name: str, workload: Workload) -> Timed:
    found = part["requests"]
    if failed := found["errored"]:
        raise bad_input(name, f"its server failed a request of '{load.name}': {_reason(failed[0])}")
    if len(found["successful"]) != workload.requests:
        told = f"{len(found['successful'])} of {workload.requests} requests of '{load.name}' to {name}"
        why = "none of which failed: the machine has too much else to do; ask again"
        raise QuantgateError(f"{GENERATOR} tells of {told}, {why}")
    requests = tuple(map(_request, found["successful"]))
    if short := next((one for one in requests if one.output_tokens != workload.output_tokens), None):
        what = f"its server wrote {short.output_tokens} tokens where {workload.output_tokens} were asked for"
        raise bad_input(name, what, "figures of answers of other lengths cannot be compared")
    began = min(one["request_start_time"] for one in found["successful"])
    ended = max(one["request_end_time"] for one in found["successful"])
    return Timed(load=load, seconds=ended - began, requests=requests)


def _request(found: dict[str, Any]) -> Request:
    return Request(
        prompt=digest(json.loads(found["request_args"])["body"]["prompt"])[:16],
        ttft=found["time_to_first_token_ms"],
        itl=found["inter_token_latency_ms"],
        e2e=1000 * found["request_latency"],
        prompt_tokens=found["prompt_tokens"],
        output_tokens=found["output_tokens"],
    )


def _reason(found: dict[str, Any]) -> str:
    return str((found.get("info") or {}).get("error") or "no reason given").strip()[:300]
