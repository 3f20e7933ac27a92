"""The bench stage: who is served when, and what is kept.

Server and load generator are stand-ins: what is tested is the order of turns and what becomes of their results. The
real ones run in tests/environments/test_bench.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipelines.benching import server, stage
from pipelines.benching.candidates import Lineup, find_lineup
from pipelines.benching.server import Host, Served, Server
from pipelines.benching.stage import bench, check_prompts
from pipelines.benching.timings import Bench, Timed
from pipelines.benching.workload import Workload, loads
from pipelines.core.cache import cache_dir
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.environments import isolated
from tests.helpers.benches import one_at_a_time, turn
from tests.unit.benching.test_candidates import write_gguf
from tests.unit.benching.test_server import STAND_IN

HOST = Host(runtime="llama.cpp")
WORK = Workload(prompt_tokens=8, output_tokens=11, requests=2, concurrency=1, loads=loads((), 1))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models in the order in which their servers were started, all stand-ins."""
    names: list[str] = []

    def command(model: Served, _host: Host, _work: Workload, port: int) -> tuple[list[str], dict[str, str]]:
        names.append(model.name)
        return [sys.executable, str(STAND_IN), "--port", str(port)], {}

    def drive(_server: Server, work: Workload, _tokenizer: Path, _folder: Path) -> Sequence[Timed]:
        return tuple(one_at_a_time([(50.0, 5.0), (60.0, 6.0)], load) for load in work.loads)

    monkeypatch.setattr(server, "_command", command)
    monkeypatch.setattr(stage, "drive", drive)
    monkeypatch.setattr(isolated, "make", lambda _: Path("/nowhere"))
    return names


def lineup(folder: Path, tiny: Path, **more: Any) -> Lineup:
    """Two artifacts, with `tiny`'s tokenizer."""
    files = [write_gguf(folder / f"{name}.gguf", value=value) for name, value in (("a", 1.0), ("b", 2.0))]
    return find_lineup(files, "llama.cpp", model=str(tiny), **more)


def test_turns_go_there_and_back_and_are_kept(served: list[str], tiny: Path, tmp_path: Path) -> None:
    two = lineup(tmp_path, tiny)
    done = bench(two, HOST, WORK)
    assert served == ["a", "b", "b", "a"]
    assert [turn.contender for turn in done.turns] == served
    assert all(turn.peak_memory > 1_000_000 and turn.ready > 0 for turn in done.turns)
    assert done.turns[0].texts == ("11 tokens",) * 4
    assert done.hardware["cores"]
    again = bench(two, HOST, WORK)
    assert (again.reused, again.measured, len(served)) == (True, done.measured, 4)
    assert not bench(two, HOST, WORK, again=True).reused
    assert len(served) == 8
    other = WORK.model_copy(update={"seed": 7})
    assert bench(two, HOST, other).key != done.key


def test_a_draft_is_a_contender_and_has_to_be_asked(
    served: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = write_gguf(tmp_path / "draft.gguf", value=3.0)
    done: Bench = bench(lineup(tmp_path, tiny, draft=str(draft)), HOST, WORK)
    there = ["a", "a with draft", "b", "b with draft"]
    assert served == [*there, *reversed(there)]
    counted = done.turns[1].drafting
    assert counted and (counted.drafts, counted.drafted, counted.accepted) == (7, 28, 21)
    assert done.turns[0].drafting is None
    monkeypatch.setattr(Server, "counters", lambda _: {})
    with pytest.raises(BadInput, match="a with draft: its server loaded the draft model and never asked it"):
        bench(lineup(tmp_path, tiny, draft=str(draft)), HOST, WORK, again=True)


@pytest.mark.usefixtures("served")
def test_two_benches_do_not_run_at_once(tiny: Path, tmp_path: Path) -> None:
    with FileLock(cache_dir() / "bench.lock"), pytest.raises(BadInput, match="another one is running"):
        bench(lineup(tmp_path, tiny), HOST, WORK.model_copy(update={"seed": 8}))


def test_other_prompts_are_not_compared() -> None:
    one, other = one_at_a_time([(1.0, 1.0)] * 2), one_at_a_time([(1.0, 1.0)] * 3)
    check_prompts([turn("a", one), turn("b", one)])
    with pytest.raises(QuantgateError, match="sent other prompts in one turn"):
        check_prompts([turn("a", one), turn("b", other)])
