"""What was timed, as figures with bounds over prompts, and artifacts over their baselines as ratios.

Every prompt is asked once in each turn; a contender's turns are averaged for each prompt, and bounds are over prompts.
They say how far other prompts could move a figure, and nothing of what else the machine did meanwhile: for that, each
turn's own throughput stands beside it.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipelines.benching.slo import Slo, shown_share
from pipelines.benching.timings import Bench, Contender, Request, Timed, Turn
from pipelines.benching.workload import AtATime, Load
from pipelines.core.bounds import clustered_mean, quantile
from pipelines.core.strict_yaml import Frozen

CONFIDENCE = 0.95
"""Confidence of each one-sided bound."""
SLOW = 0.95
"""Quantile that is told beside the median."""


class Figure(Frozen):
    """An estimate with its two one-sided bounds."""

    value: float
    lower: float
    upper: float


class Latency(Frozen):
    """A time over requests, in milliseconds."""

    median: Figure
    slow: float
    """Time that 95% of all requests did not exceed."""


class Kept(Frozen):
    """How often a service level objective was kept."""

    share: float
    shown: float
    """Lower bound of the share."""
    goodput: float
    """Requests a second that kept it."""


class LoadFigures(Frozen):
    """What one contender did under one load, over all of its turns."""

    load: Load
    requests: int
    ttft: Latency
    itl: Latency
    e2e: Latency
    tokens_per_second: float
    """Output tokens a second, of all requests together."""
    requests_per_second: float
    turns: tuple[float, ...]
    """`tokens_per_second` of each turn by itself."""
    kept: Kept | None = None


class Ratio(Frozen):
    """One contender's figures under one load, divided by another's: times below 1 are shorter, tokens above 1 more."""

    over: str
    load: Load
    ttft: Figure
    itl: Figure
    e2e: Figure
    tokens_per_second: Figure | None
    """None where the load decides how many tokens are asked for, and not the server."""


class Measured(Frozen):
    """One contender."""

    name: str
    digest: str
    ready: float
    """Seconds until the server was healthy, the longest of its turns."""
    peak_memory: int
    """Bytes of the machine's memory that the server's processes held at most, the most of its turns."""
    figures: tuple[LoadFigures, ...]
    ratios: tuple[Ratio, ...] = ()
    acceptance: float | None = None
    """Share of the draft model's tokens that the model accepted."""
    same_texts: tuple[int, int] | None = None
    """Answers to fixed prompts that were the same with the draft model as without, and of how many."""


def measure(bench: Bench, slo: Slo | None = None) -> tuple[Measured, ...]:
    """Return the figures of each contender, in the order in which they were served first."""
    return tuple(_measured(bench, contender, slo) for contender in bench.contenders)


def _measured(bench: Bench, contender: Contender, slo: Slo | None) -> Measured:
    turns = _turns(bench, contender.name)
    ratios = [
        _ratio(name, load, _timed(_turns(bench, name), load), _timed(turns, load))
        for name in contender.over
        for load in bench.workload.loads
    ]
    return Measured(
        name=contender.name,
        digest=contender.digest,
        ready=max(turn.ready for turn in turns),
        peak_memory=max(turn.peak_memory for turn in turns),
        figures=tuple(_figures(load, _timed(turns, load), slo) for load in bench.workload.loads),
        ratios=tuple(ratios),
        acceptance=_acceptance(turns),
        same_texts=_same_texts(turns, _turns(bench, contender.over[0])) if contender.draft else None,
    )


def _turns(bench: Bench, name: str) -> list[Turn]:
    return [turn for turn in bench.turns if turn.contender == name]


def _timed(turns: Iterable[Turn], load: Load) -> list[Timed]:
    return [timed for turn in turns for timed in turn.timed if timed.load == load]


def _figures(load: Load, timed: Sequence[Timed], slo: Slo | None) -> LoadFigures:
    requests = [request for one in timed for request in one.requests]
    seconds = math.fsum(one.seconds for one in timed)
    return LoadFigures(
        load=load,
        requests=len(requests),
        ttft=_latency(requests, lambda request: request.ttft),
        itl=_latency(requests, lambda request: request.itl),
        e2e=_latency(requests, lambda request: request.e2e),
        tokens_per_second=sum(request.output_tokens for request in requests) / seconds,
        requests_per_second=len(requests) / seconds,
        turns=tuple(sum(request.output_tokens for request in one.requests) / one.seconds for one in timed),
        kept=_kept(requests, seconds, slo) if slo else None,
    )


def _latency(requests: Sequence[Request], time: Callable[[Request], float]) -> Latency:
    times = sorted(map(time, requests))
    return Latency(median=median(by_prompt(requests, time).values()), slow=times[math.ceil(SLOW * len(times)) - 1])


def by_prompt(requests: Iterable[Request], value: Callable[[Request], float]) -> dict[str, float]:
    """Return the mean `value` of the requests with each prompt."""
    values: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        values[request.prompt].append(value(request))
    return {prompt: statistics.fmean(found) for prompt, found in values.items()}


def median(values: Iterable[float]) -> Figure:
    """Return the median with bounds that hold whatever the distribution is: order statistics, of which each is beyond
    the median as often as so many coins fall on one side. Of few values, the bounds are the least and the largest."""
    ordered = sorted(values)
    n, beyond, tail = len(ordered), 0, 1 / 2 ** len(ordered)
    while tail + math.comb(n, beyond + 1) / 2**n <= 1 - CONFIDENCE:
        beyond += 1
        tail += math.comb(n, beyond) / 2**n
    return Figure(value=statistics.median(ordered), lower=ordered[beyond], upper=ordered[-1 - beyond])


def _kept(requests: Sequence[Request], seconds: float, slo: Slo) -> Kept:
    """Return how often `slo` was kept. Each prompt counts once, however many turns it was asked in."""
    kept = by_prompt(requests, lambda request: slo.is_kept(request.ttft, request.itl, request.e2e))
    share = statistics.fmean(kept.values())
    shown = shown_share(math.fsum(kept.values()), len(kept), CONFIDENCE)
    return Kept(share=share, shown=shown, goodput=share * len(requests) / seconds)


def _ratio(over: str, load: Load, before: Sequence[Timed], after: Sequence[Timed]) -> Ratio:
    def times(value: Callable[[Request], float]) -> tuple[dict[str, float], dict[str, float]]:
        of = (by_prompt([request for one in timed for request in one.requests], value) for timed in (after, before))
        ours, theirs = of
        return ours, theirs

    e2e = ratio_of_means(*times(lambda request: request.e2e))
    return Ratio(
        over=over,
        load=load,
        ttft=ratio_of_means(*times(lambda request: request.ttft)),
        itl=ratio_of_means(*times(lambda request: request.itl)),
        e2e=e2e,
        tokens_per_second=_faster(_rate(after) / _rate(before), e2e) if isinstance(load, AtATime) else None,
    )


def _rate(timed: Sequence[Timed]) -> float:
    """Return output tokens a second."""
    tokens = sum(request.output_tokens for one in timed for request in one.requests)
    return tokens / math.fsum(one.seconds for one in timed)


def _faster(ratio: float, e2e: Figure) -> Figure:
    """Return a ratio of throughputs with bounds as wide as those of the time that a request takes: where the next one
    is sent when one is answered, the one is the inverse of the other."""
    return Figure(value=ratio, lower=ratio * e2e.value / e2e.upper, upper=ratio * e2e.value / e2e.lower)


def ratio_of_means(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Figure:
    """Return mean(ours) / mean(theirs) over the same prompts, with bounds.

    The variance of its logarithm is that of the mean of x/mean(x) - y/mean(y) over prompts (the delta method, paired):
    that some prompts take longer in both cancels out.
    """
    ours_mean, theirs_mean = statistics.fmean(ours.values()), statistics.fmean(theirs.values())
    differences = [ours[prompt] / ours_mean - theirs[prompt] / theirs_mean for prompt in ours]
    spread = quantile(CONFIDENCE) * math.sqrt(clustered_mean(differences, list(ours)).variance)
    value = ours_mean / theirs_mean
    return Figure(value=value, lower=value * math.exp(-spread), upper=value * math.exp(spread))


def _acceptance(turns: Iterable[Turn]) -> float | None:
    counted = [turn.drafting for turn in turns if turn.drafting]
    drafted = sum(one.drafted for one in counted)
    return sum(one.accepted for one in counted) / drafted if drafted else None


def _same_texts(turns: Sequence[Turn], without: Sequence[Turn]) -> tuple[int, int]:
    ours, theirs = ([text for turn in side for text in turn.texts] for side in (turns, without))
    return sum(one == other for one, other in zip(ours, theirs, strict=True)), len(ours)
