"""What `quantgate bench` prints."""

import pytest

from pipelines.benching.slo import Slo
from pipelines.benching.summary import Wanted, summarize
from pipelines.benching.timings import Contender, Drafting
from pipelines.cli.tables.bench import show_bench
from tests.helpers.benches import bench, one_at_a_time, rates, turn

BEFORE = Contender(name="F16", digest="b")
AFTER = Contender(name="q8", digest="a", over=("F16",))
DRAFTED = Contender(name="q8 with draft", digest="a", draft="d", over=("q8", "F16"))
SLOW, FAST = [(100.0, 20.0), (140.0, 24.0)], [(50.0, 10.0), (70.0, 12.0)]


def test_figures_ratios_and_costs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    counted = Drafting(drafts=10, drafted=40, accepted=30)
    turns = [
        turn("F16", one_at_a_time(SLOW)),
        turn("q8", one_at_a_time(FAST)),
        turn("q8 with draft", one_at_a_time(FAST), drafting=counted),
        turn("q8 with draft", one_at_a_time(FAST), drafting=counted),
        turn("q8", one_at_a_time(FAST)),
        turn("F16", one_at_a_time(FAST)),
    ]
    wanted = Wanted(slo=Slo(ttft=130), dollars_per_hour=2.0)
    show_bench(summarize(bench([BEFORE, AFTER, DRAFTED], turns), wanted), reused=True)
    out = capsys.readouterr().out
    for told in (
        "served by  llama.cpp of the tests",
        "of the tests, 2 cores, 2026-01-01T00:00:00+00:00 (found finished)",
        "1 at a time",
        "100.0% (≥ ",
        "0.67 (",
        "draft      q8 with draft: 75.0% accepted, 4 of 4 texts unchanged",
        "unsteady   F16 (1 at a time): its two turns differ by more than 10%",
        "cost       q8, 1 at a time: $",
        "bounds     one-sided at 95%",
    ):
        assert told in out
    assert "unsteady   q8" not in out


def test_servers_are_told_or_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    load = rates(2.0)
    for limit, told in ((130, "servers    F16: 4 for 5/s, each at 75% of 2/s"), (10, "F16: no rate was shown to keep")):
        made = bench([BEFORE], [turn("F16", one_at_a_time([(100.0, 1.0)] * 300, load[0]))], load)
        show_bench(summarize(made, Wanted(slo=Slo(ttft=limit), traffic=5)), reused=False)
        assert told in capsys.readouterr().out
