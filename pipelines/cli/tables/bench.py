"""What was measured of served models: a table for each load, ratios, costs, and where they hold."""

from pipelines.benching.measured import CONFIDENCE, Latency, LoadFigures, Measured, Ratio
from pipelines.benching.summary import Cost, Summary
from pipelines.benching.workload import Load
from pipelines.cli.columns import Column, console, show_table
from pipelines.core.bounds import level
from pipelines.core.text import size
from pipelines.reporting.speeds import bounded

UNSTEADY = 1.1
"""Ratio of the throughputs of a model's own turns above which the machine was not quiet."""


def show_bench(summary: Summary, reused: bool) -> None:
    """Print the figures of each load, the ratios, and what they cost."""
    out, work = console(), summary.workload
    hardware = summary.hardware.get("gpu") or f"{summary.hardware['processor']}, {summary.hardware['cores']} cores"
    out.print(f"served by  {summary.runtime}")
    out.print(f"on         {hardware}, {summary.measured}{' (found finished)' if reused else ''}")
    out.print(
        f"each turn  {work.requests} requests of each load, {work.prompt_tokens} tokens in and {work.output_tokens} out"
    )
    for number, load in enumerate(work.loads):
        show_table(load.name, _FIGURES, [_figures(one, one.figures[number]) for one in summary.contenders])
    rows = [_ratio(one.name, ratio) for one in summary.contenders for ratio in one.ratios]
    if rows:
        show_table("ratios", _RATIOS, rows)
    out.print(f"bounds     one-sided at {level(CONFIDENCE)}, over prompts; not over what else the machine does")
    for one in summary.contenders:
        _show_notes(one)
    for cost in summary.costs:
        _show_cost(cost, summary)


_FIGURES = (
    Column("model", text=True),
    Column("first token ms"),
    Column("between tokens ms"),
    Column("last token ms", spare=2),
    Column("tokens/s"),
    Column("each turn", spare=1),
    Column("SLO kept"),
    Column("goodput /s"),
    Column("memory", spare=3),
)
_RATIOS = (
    Column("model", text=True),
    Column("over", text=True),
    Column("load", left=True),
    Column("first token"),
    Column("between tokens"),
    Column("tokens/s"),
)


def _figures(one: Measured, figures: LoadFigures) -> tuple[str, ...]:
    kept = figures.kept
    return (
        one.name,
        _latency(figures.ttft),
        _latency(figures.itl),
        _latency(figures.e2e),
        f"{figures.tokens_per_second:.1f}",
        ", ".join(f"{turn:.1f}" for turn in figures.turns),
        f"{kept.share:.1%} (≥ {kept.shown:.1%})" if kept else "–",
        f"{kept.goodput:.2f}" if kept else "–",
        size(one.peak_memory),
    )


def _latency(latency: Latency) -> str:
    """Return the median, and below it the time that 95% do not exceed."""
    return f"{latency.median.value:.1f}, {latency.slow:.1f}"


def _ratio(name: str, ratio: Ratio) -> tuple[str, ...]:
    tokens = bounded(ratio.tokens_per_second) if ratio.tokens_per_second else "–"
    return (name, ratio.over, ratio.load.name, bounded(ratio.ttft), bounded(ratio.itl), tokens)


def _show_notes(one: Measured) -> None:
    """Print what the figures of one model do not show."""
    out = console()
    if one.same_texts:
        same, texts = one.same_texts
        out.print(f"draft      {one.name}: {one.acceptance or 0:.1%} accepted, {same} of {texts} texts unchanged")
    unsteady = [figures.load for figures in one.figures if max(figures.turns) > UNSTEADY * min(figures.turns)]
    if unsteady:
        out.print(f"unsteady   {one.name} ({_names(unsteady)}): its two turns differ by more than 10%", style="yellow")


def _names(loads: list[Load]) -> str:
    return ", ".join(load.name for load in loads)


def _show_cost(cost: Cost, summary: Summary) -> None:
    """Print what one model costs, and how many servers it needs."""
    out, loads = console(), summary.workload.loads
    for load, dollars in zip(loads, cost.dollars_per_million, strict=False):
        out.print(f"cost       {cost.name}, {load.name}: ${dollars:.2f} for a million output tokens")
    if cost.capacity is None:
        return
    if cost.capacity.rate is None:
        out.print(f"servers    {cost.name}: no rate was shown to keep the SLO", style="yellow")
        return
    rate, headroom = f"{cost.capacity.rate:g}/s", f"{summary.wanted.headroom:.0%}"
    traffic = f"{summary.wanted.traffic:g}/s"
    out.print(f"servers    {cost.name}: {cost.capacity.replicas} for {traffic}, each at {headroom} of {rate}")
