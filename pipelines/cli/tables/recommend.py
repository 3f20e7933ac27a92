"""The recipes to begin with: a table in order, and the commands that prove the first."""

from pipelines.cli.columns import Column, console, show_table
from pipelines.core.text import percent, size
from pipelines.flow.expected import Expected
from pipelines.flow.recommend import Choice, Recommendation, Second
from pipelines.serving.second_opinion import NAME

NOTE = (
    "The order is that of a roofline, where nothing was measured; its speeds are rough (docs/serve.md says how far off "
    "they were), and the commands measure them."
)


def show_recommendation(made: Recommendation) -> None:
    """Print the recipes that fit in order, then those that are none, then what proves the first."""
    out = console()
    many = f"{made.gpus} x " if made.gpus > 1 else ""
    out.print(f"{made.model} on {many}{made.hardware} for {made.goal}", style="bold")
    out.print(f"{made.concurrency} requests at once of {made.context:,} tokens; of the baseline, {percent(made.keep)}")
    out.print(f"in 16 bits it takes {size(made.memory_16_bits)} with keys and values; there are {size(made.available)}")
    out.print(f"figures of the hardware: {made.source}")
    columns = (
        Column("recipe", text=True),
        Column("served by", text=True, spare=2),
        Column("memory"),
        Column("speed, 16 bits = 1"),
        *([Column(NAME)] if made.asked else []),
        Column("expected to keep", text=True),
        Column("why", text=True, spare=1),
    )
    show_table("", columns, [_row(choice, made.asked.get(choice.recipe)) for choice in made.choices])
    for why in dict.fromkeys(second.why for second in made.asked.values() if second.why):
        out.print(f"{NAME} on {', '.join(name for name, one in made.asked.items() if one.why == why)}: {why}")
    for why in dict.fromkeys(one.why for one in made.left_out):
        out.print(f"not {', '.join(one.recipe for one in made.left_out if one.why == why)}: {why}")
    if not made.choices:
        return out.print("nothing is recommended: nothing fits that keeps enough", style="bold")
    out.print(NOTE)
    out.print(f"to prove {made.choices[0].recipe}:", style="bold")
    for command in made.choices[0].commands:
        print(f"  {command}")


def _row(choice: Choice, second: Second | None) -> tuple[str, ...]:
    measured = "" if choice.basis == "roofline" else f" ({choice.basis})"
    return (
        choice.recipe,
        choice.runtime if choice.answer == "native" else f"{choice.runtime}, {choice.answer}",
        size(choice.memory) + (f" on {choice.gpus}" if choice.gpus > 1 else ""),
        f"{choice.speed:.1f}{measured}",
        *([f"{second.speed:.1f}" if second.speed else "–"] if second else []),
        _expected(choice.expected),
        "; ".join(choice.why),
    )


def _expected(expected: Expected) -> str:
    if expected.low is None or expected.high is None:
        return f"not known by {expected.basis}"
    low, high = percent(round(expected.low, 4)), percent(round(expected.high, 4))
    share = low if low == high else f"{low} to {high}" if expected.low else f"below {high}"
    return f"{share}, by {expected.basis}"
