"""The bench stage: baseline and artifacts served in turn, each under the same loads, one server at a time.

The order is there and back (A B, B A): what a machine does worse with time, it does to all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.benching.candidates import Candidate, Lineup
from pipelines.benching.load import GENERATOR, drive
from pipelines.benching.server import Host, Served, Server, free_port, serving, version
from pipelines.benching.timings import Bench, Contender, Drafting, Turn
from pipelines.benching.workload import Workload
from pipelines.core import progress
from pipelines.core.cache import cache_dir, keep, now
from pipelines.core.device import machine
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.environments import isolated
from pipelines.quantization.gguf.convert import convert
from pipelines.runtimes.probe import PROMPT

PROMPTS = (
    PROMPT,
    "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,",
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is",
    "def mean(values: list[float]) -> float:\n    return",
)
"""Texts that are continued one at a time before the load: they warm the server up, and show whether a draft model
changes what is written."""


def bench(lineup: Lineup, host: Host, workload: Workload, again: bool = False) -> Bench:
    """Serve each contender twice under the loads of `workload`, and return what was timed, or find it finished.

    What is finished was measured on such a machine with these versions; `again` measures anew, and keeps that.

    Raises:
        BadInput: the port is taken, a server does not load its model, ends, or refuses a request.
        QuantgateError: an environment cannot be made, or the load generator failed.
    """
    free_port(host.port)
    entered = lineup.contenders()
    contenders = tuple(contender for contender, _ in entered)
    runtime = version(host)
    about = {"runtime": runtime, "device": host.device, "hardware": machine(), "workload": workload}

    def make(folder: Path) -> Mapping[str, Any]:
        isolated.make(GENERATOR)
        with _alone(), progress.bar(2 * len(entered), f"serve in {host.runtime}", "turn") as bar:
            turns = []
            for number, (contender, candidate) in enumerate((*entered, *reversed(entered))):
                progress.note(contender.name)
                turns.append(_turn(contender, candidate, lineup, host, workload, _made(folder / f"turn-{number}")))
                bar.update()
        check_prompts(turns)
        return {**about, "measured": now(), "contenders": contenders, "turns": tuple(turns)}

    inputs = {
        **about,
        "workload": workload.model_dump(),
        "eager": host.eager,
        "contenders": [one.model_dump() for one in contenders],
        "generator": isolated.identity(GENERATOR),
    }
    return keep("bench", inputs, Bench, make, lambda _: not again)


def check_prompts(turns: Sequence[Turn]) -> None:
    """Raise `QuantgateError` unless every turn had the same prompts, without which no two can be compared."""
    asked = [[sorted(request.prompt for request in timed.requests) for timed in turn.timed] for turn in turns]
    if any(prompts != asked[0] for prompts in asked):
        raise QuantgateError(f"{GENERATOR} sent other prompts in one turn than in another")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the machine: no other bench starts a server meanwhile."""
    lock = FileLock(cache_dir() / "bench.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise bad_input("bench", "another one is running, and each would slow the other", "wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def _turn(
    contender: Contender, candidate: Candidate, lineup: Lineup, host: Host, workload: Workload, folder: Path
) -> Turn:
    """Start the contender's server, warm it up, send the loads, and stop it; logs go into the empty `folder`."""
    served = _served(contender, candidate, lineup)
    with serving(served, host, workload, folder / "server.log") as server:
        texts = tuple(server.write(prompt, workload.output_tokens) for prompt in PROMPTS)
        timed = drive(server, workload, lineup.tokenizer, folder)
        return Turn(
            contender=contender.name,
            ready=server.ready,
            peak_memory=server.process.peak_memory(),
            texts=texts,
            timed=timed,
            drafting=_drafting(server) if contender.draft else None,
        )


def _served(contender: Contender, candidate: Candidate, lineup: Lineup) -> Served:
    """Return what the server is told; an unquantized GGUF is made now if it is not there."""
    path = candidate.path or convert(candidate.unquantized).file
    draft = lineup.draft.path if contender.draft and lineup.draft else None
    return candidate.served(path, draft).model_copy(update={"name": contender.name})


def _drafting(server: Server) -> Drafting:
    """Return what the server counted of its draft model.

    Raises:
        BadInput: the draft model was never asked.
    """
    counted = server.counters()
    drafts, drafted, accepted = (
        int(counted.get(f"spec_decode_num_{name}_total", 0)) for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    if not drafts:
        raise bad_input(server.name, "its server loaded the draft model and never asked it", "take another draft model")
    return Drafting(drafts=drafts, drafted=drafted, accepted=accepted)
