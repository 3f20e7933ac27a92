"""Figures and ratios of benches: what is chosen goes in, what follows from it comes out."""

import random
import statistics

import pytest

from pipelines.benching.capacity import Capacity, capacity, dollars_per_million, requests_needed
from pipelines.benching.measured import CONFIDENCE, measure, median, ratio_of_means
from pipelines.benching.slo import Slo, shown_share
from pipelines.benching.summary import Wanted, check_wanted, summarize
from pipelines.benching.timings import Contender, Drafting
from pipelines.benching.workload import AtATime, Workload, loads
from pipelines.core.errors import BadInput
from tests.helpers.benches import TOKENS, bench, one_at_a_time, rates, turn

BEFORE = Contender(name="F16", digest="b")
AFTER = Contender(name="q8", digest="a", over=("F16",))
SLOW = [(100.0, 20.0), (140.0, 24.0), (120.0, 22.0), (160.0, 26.0)]
FAST = [(ttft / 2, itl / 2) for ttft, itl in SLOW]


def test_half_the_time_is_twice_the_tokens() -> None:
    turns = [
        turn(name, one_at_a_time(times)) for name, times in (("F16", SLOW), ("q8", FAST), ("q8", FAST), ("F16", SLOW))
    ]
    before, after = measure(bench([BEFORE, AFTER], turns))
    (figures,), (ratio,) = before.figures, after.ratios
    assert figures.requests == 8
    assert figures.ttft.median.value == 130
    assert figures.ttft.slow == 160
    assert figures.tokens_per_second == pytest.approx(4 * TOKENS / 1.44)
    assert figures.turns == pytest.approx((figures.tokens_per_second,) * 2)
    assert before.ratios == ()
    assert ratio.over == "F16"
    for part in (ratio.ttft, ratio.itl, ratio.e2e):
        assert (part.value, part.lower, part.upper) == pytest.approx((0.5, 0.5, 0.5))
    assert ratio.tokens_per_second
    assert ratio.tokens_per_second.value == pytest.approx(2)


def test_bounds_of_ratios_are_over_paired_prompts() -> None:
    chance = random.Random(0)
    theirs = {f"p{n}": chance.lognormvariate(4, 0.5) for n in range(200)}
    paired = {prompt: 0.8 * value * chance.lognormvariate(0, 0.05) for prompt, value in theirs.items()}
    shuffled = dict(zip(paired, chance.sample(list(paired.values()), len(paired)), strict=True))
    near, far = ratio_of_means(paired, theirs), ratio_of_means(shuffled, theirs)
    assert near.value == far.value == pytest.approx(0.8, abs=0.02)
    assert near.lower < 0.8 < near.upper
    assert far.upper - far.lower > 4 * (near.upper - near.lower)


def test_bounds_of_ratios_hold_as_often_as_they_say() -> None:
    chance = random.Random(1)
    below = 0
    for _ in range(400):
        theirs = {str(n): chance.gauss(100, 20) for n in range(40)}
        ours = {prompt: 0.7 * value + chance.gauss(0, 5) for prompt, value in theirs.items()}
        below += ratio_of_means(ours, theirs).lower > 0.7
    assert below / 400 == pytest.approx(0.05, abs=0.035)


def test_bounds_of_medians_hold_as_often_as_they_say() -> None:
    chance = random.Random(2)
    figures = [median(chance.expovariate(1) for _ in range(30)) for _ in range(1000)]
    true = 0.6931
    assert statistics.fmean(figure.lower > true for figure in figures) <= 0.06
    assert statistics.fmean(figure.upper < true for figure in figures) <= 0.06
    assert statistics.fmean(figure.lower > true for figure in figures) >= 0.02
    few = median([3.0, 1.0, 2.0])
    assert (few.lower, few.value, few.upper) == (1, 2, 3)


def test_goodput_counts_what_kept_the_limits_and_prompts_count_once() -> None:
    load = rates(2.0)
    turns = [turn("F16", one_at_a_time(SLOW, load[0])), turn("F16", one_at_a_time(FAST, load[0]))]
    (one,) = measure(bench([BEFORE], turns, load), Slo(ttft=130))
    kept = one.figures[0].kept
    assert kept
    assert kept.share == 6 / 8
    seconds = 1.44 + 0.72
    assert kept.goodput == pytest.approx(6 / seconds)
    assert kept.shown == shown_share(3, 4, CONFIDENCE) < shown_share(6, 8, CONFIDENCE)


def test_a_rate_decides_how_many_tokens_are_asked_for() -> None:
    load = rates(2.0)
    turns = [turn("F16", one_at_a_time(SLOW, load[0])), turn("q8", one_at_a_time(FAST, load[0]))]
    _, after = measure(bench([BEFORE, AFTER], turns, load))
    assert after.ratios[0].tokens_per_second is None
    assert after.ratios[0].ttft.value == pytest.approx(0.5)


def test_a_draft_tells_what_was_accepted_and_what_changed() -> None:
    draft = Contender(name="q8 with draft", digest="a", draft="d", over=("q8",))
    plain = Contender(name="q8", digest="a")
    counted = Drafting(drafts=10, drafted=40, accepted=30)
    turns = [
        turn("q8", one_at_a_time(SLOW)),
        turn("q8 with draft", one_at_a_time(FAST), drafting=counted, texts=("a", "c")),
    ]
    without, with_draft = measure(bench([plain, draft], turns))
    assert (without.acceptance, without.same_texts) == (None, None)
    assert with_draft.acceptance == 0.75
    assert with_draft.same_texts == (1, 2)
    assert with_draft.ratios[0].over == "q8"


def test_dollars_follow_from_tokens() -> None:
    assert dollars_per_million(1000, 3.6) == pytest.approx(1.0)
    turns = [turn("F16", one_at_a_time(SLOW))]
    summary = summarize(bench([BEFORE], turns), Wanted(dollars_per_hour=1.0))
    speed = summary.contenders[0].figures[0].tokens_per_second
    assert summary.costs[0].dollars_per_million == pytest.approx([1e6 / 3600 / speed])
    assert summary.costs[0].capacity is None


def test_servers_are_counted_by_the_largest_rate_that_was_shown() -> None:
    slo = Slo(ttft=130, share=0.9)
    times = [(100.0, 1.0)] * 300
    late = [(100.0, 1.0)] * 260 + [(500.0, 1.0)] * 40
    three = rates(1.0, 2.0, 4.0)
    timed = [one_at_a_time(some, load) for some, load in zip((times, times, late), three, strict=True)]
    (one,) = measure(bench([BEFORE], [turn("F16", *timed)], three), slo)
    assert capacity(one, slo, traffic=9, headroom=0.75) == Capacity(rate=2.0, replicas=6)
    assert capacity(one, slo, traffic=9, headroom=1.0) == Capacity(rate=2.0, replicas=5)
    assert capacity(one, Slo(ttft=130, share=0.995), traffic=9) == Capacity(rate=None, replicas=None)


def test_a_rate_above_one_that_failed_does_not_count() -> None:
    slo = Slo(ttft=130, share=0.9)
    late, good = [(500.0, 1.0)] * 300, [(100.0, 1.0)] * 300
    two = rates(1.0, 2.0)
    timed = [one_at_a_time(some, load) for some, load in zip((late, good), two, strict=True)]
    (one,) = measure(bench([BEFORE], [turn("F16", *timed)], two), slo)
    assert capacity(one, slo, traffic=1).rate is None


def work(requests: int, *tried: float) -> Workload:
    return Workload(prompt_tokens=8, output_tokens=8, requests=requests, concurrency=4, loads=loads(tried, 4))


def test_a_traffic_is_refused_where_nothing_can_be_shown() -> None:
    with pytest.raises(BadInput) as caught:
        check_wanted(Wanted(traffic=5), work(64))
    assert [problem.remedy for problem in caught.value.problems] == ["add --slo ttft=500,itl=50", "add --rates 1,2,4"]
    with pytest.raises(BadInput, match="give --requests 268 or more"):
        check_wanted(Wanted(traffic=5, slo=Slo(ttft=1)), work(267, 1.0))
    check_wanted(Wanted(traffic=5, slo=Slo(ttft=1)), work(268, 1.0))
    check_wanted(Wanted(slo=Slo(ttft=1)), work(2))
    assert requests_needed(Slo(ttft=1, share=0.9)) == 25


def test_loads_are_rates_or_one_and_many_at_a_time() -> None:
    assert [load.name for load in loads((), 4)] == ["1 at a time", "4 at a time"]
    assert loads((), 1) == (AtATime(requests=1),)
    assert [load.name for load in loads((4.0, 0.5, 4.0), 8)] == ["0.5/s", "4/s"]
