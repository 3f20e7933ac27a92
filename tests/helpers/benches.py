"""Benches made by hand: requests whose times are chosen."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.benching.timings import Bench, Contender, Drafting, Request, Timed, Turn
from pipelines.benching.workload import Arriving, AtATime, Load, Workload

ALONE = AtATime(requests=1)
TOKENS = 11


def request(number: int, ttft: float, itl: float) -> Request:
    """A request of 11 tokens with the prompt of that number."""
    last = ttft + itl * (TOKENS - 1)
    return Request(prompt=f"prompt-{number}", ttft=ttft, itl=itl, e2e=last, prompt_tokens=8, output_tokens=TOKENS)


def one_at_a_time(times: Sequence[tuple[float, float]], load: Load = ALONE) -> Timed:
    """A load with a request for each pair of times to the first token and between tokens, one after the other."""
    requests = tuple(request(number, *pair) for number, pair in enumerate(times))
    return Timed(load=load, seconds=sum(one.e2e for one in requests) / 1000, requests=requests)


def turn(contender: str, *timed: Timed, drafting: Drafting | None = None, texts: tuple[str, ...] = ("a", "b")) -> Turn:
    return Turn(contender=contender, ready=1.5, peak_memory=1000, texts=texts, timed=timed, drafting=drafting)


def bench(contenders: Sequence[Contender], turns: Sequence[Turn], loads: Sequence[Load] = (ALONE,)) -> Bench:
    """A finished bench with those turns."""
    work = Workload(prompt_tokens=8, output_tokens=TOKENS, requests=4, concurrency=4, loads=tuple(loads))
    return Bench(
        stage="bench",
        key="key",
        inputs={},
        folder=Path("/nowhere"),
        seconds=1.0,
        peak_memory=1,
        versions={},
        measured="2026-01-01T00:00:00+00:00",
        runtime="llama.cpp of the tests",
        device="cpu",
        hardware={"processor": "of the tests", "cores": "2"},
        workload=work,
        contenders=tuple(contenders),
        turns=tuple(turns),
    )


def rates(*values: float) -> tuple[Load, ...]:
    return tuple(Arriving(rate=value) for value in values)


def kept_bench(cache: Path, artifact: str) -> Bench:
    """A bench that is kept in `cache`: the artifact writes twice as many tokens as its baseline."""
    before = Contender(name="baseline", digest="b")
    after = Contender(name="artifact", digest="a", artifact=artifact, over=("baseline",))
    slow, fast = [(100.0, 20.0), (140.0, 24.0)], [(50.0, 10.0), (70.0, 12.0)]
    made = bench([before, after], [turn("baseline", one_at_a_time(slow)), turn("artifact", one_at_a_time(fast))])
    folder = cache / "stages" / "bench" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(made.model_dump_json())
    return made
