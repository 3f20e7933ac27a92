"""Simulates the gate where the truth is known: `python -m docs.simulate` writes the tables and figures of
docs/figures/gate-*, in a few minutes on one core; `--runs 20` in seconds, with too few runs to quote.

What is simulated are the answers (`docs.simulation`). Verdicts are by the gate's formulas, for all runs at once; the
tests hold them against the gate itself.
"""

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from docs.markdown import table
from docs.simulation import rules, terms
from docs.simulation.answers import KINDS, TARGET, Kind, Loss, Population, both, expected, right_or_wrong
from docs.simulation.outcomes import ACCURACY, EXPECTED, Outcomes, seeded, simulate
from docs.simulation.seen import Task
from pipelines.recipe.load import load_suite, load_task
from pipelines.reporting import charts

HERE = Path(__file__).parent
CORE = load_suite("core")
SIZES: Mapping[str, Sequence[int]] = {
    "500": (500,),
    "2,000": (2000,),
    "20,000": (20_000,),
    "`core`": tuple(load_task(wanted.task).documents or 0 for wanted in CORE.tasks),
}
"""Name of a size → number of documents of each task: a single task, or the seven of `core`."""
RATES = ("certified, all at once", "certified, with looks", "FAIL, all at once", "FAIL, with looks")
LOSSES = tuple(loss for loss in get_args(Loss) if loss != "breaks of the surest")
NOISES = (0.02, 0.1, 0.4)
"""Standard deviations of what is added to the logit of each right answer."""
THREE: tuple[Kind, ...] = ("middling", "wide", "single answer")
COUNTS = (100, 300, 1000, 5000)
RETENTIONS = (0, 0.5, 0.8, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 1.0, 1.01, 1.02)
POWERFUL = RETENTIONS[3:]
"""True retentions for which the probability of a verdict is worth a row."""


class Setting(NamedTuple):
    """Tasks whose true retention is exactly the target, in words and as they are: every verdict is an error."""

    words: tuple[str, ...]
    tasks: Sequence[Task]


def accuracy_settings() -> Iterable[Setting]:
    """Yield the grid of right or wrong answers: clusters only where there are few enough documents to hold them."""
    for size, cluster in [*((size, 1) for size in SIZES), ("500", 5), ("2,000", 5)]:
        for accuracy, chance, changed in itertools.product((0.4, 0.7), (0.0, 0.25), (0.02, 0.1)):
            population = right_or_wrong(accuracy, changed, chance, cluster)
            words = (size, str(cluster), f"{accuracy:g}", f"{chance:g}", f"{changed:g}")
            yield Setting(words, [Task(population, count) for count in SIZES[size]])


def expected_settings() -> Iterable[Setting]:
    """Yield the grid of expected scores: one task, independent documents."""
    for kind, noise, loss in itertools.product(KINDS, NOISES, LOSSES):
        population: Population = {"expected": expected(kind, noise, loss)}
        for count in COUNTS:
            yield Setting((kind, f"{noise:g}", loss, f"{count:,}"), [Task(population, count)])


def clustered_settings() -> Iterable[Setting]:
    """Yield expected scores in clusters of five."""
    for kind, loss, count in itertools.product(KINDS, LOSSES, (500, 1000)):
        population: Population = {"expected": expected(kind, 0.1, loss, cluster=5)}
        yield Setting((kind, "0.1", loss, f"{count:,}, in clusters of 5"), [Task(population, count)])


UNEQUAL: tuple[tuple[Kind, int, float], ...] = (
    ("middling", 500, 1.0),
    ("wide", 300, 3.0),
    ("single answer", 1500, 1.0),
)
"""Tasks of a suite: kind, number of documents, weight."""


def suite_settings() -> Iterable[Setting]:
    """Yield three unequal tasks, the loss spread over all or in one of them."""
    for noise, loss in itertools.product((0.02, 0.1), LOSSES):
        kept = {kind: expected(kind, noise, loss, 1.0) for kind, _, _ in UNEQUAL}
        worth = {kind: weight * float(kept[kind].baseline.mean()) for kind, _, weight in UNEQUAL}
        for falling in (None, *worth):
            tasks = []
            for kind, count, weight in UNEQUAL:
                fall = 1 - TARGET if falling is None else (1 - TARGET) * sum(worth.values()) / worth[kind]
                scores = expected(kind, noise, loss, 1 - fall) if falling in (None, kind) else kept[kind]
                tasks.append(Task({"expected": scores}, count, weight))
            where = "spread" if falling is None else f"all in {falling}"
            yield Setting(("three tasks", f"{noise:g}", f"{loss}, {where}", "2,300"), tasks)


def joint_settings() -> Iterable[Setting]:
    """Yield documents of which both statistics are exactly at the target."""
    for kind, noise, count in itertools.product(THREE, NOISES, (300, 1000, 5000)):
        yield Setting(
            (kind, f"{noise:g}", "both statistics", f"{count:,}"), [Task(both(kind, noise, "a shift"), count)]
        )


def percents(values: Iterable[float], digits: int = 1) -> list[str]:
    return [f"{value:.{digits}%}" for value in values]


Rates = tuple[float, float, float, float]
Found = Mapping[tuple[str, ...], Rates]


def errors(settings: Iterable[Setting], times: int, statistic: str) -> Found:
    """Return the error rates in each setting."""
    policy = EXPECTED if statistic == "expected" else ACCURACY
    found = {}
    for words, tasks in settings:
        floored = policy.model_copy(update={"floor": policy.floor if len(tasks) > 3 else None})
        found[words] = simulate(tasks, times, floored, seed=seeded(words)).rates
    return found


def largest(found: Found, *, having: Sequence[tuple[int, str]] = ()) -> list[float]:
    """Return the largest of each rate over the settings that have these words at these places."""
    chosen = [rates for words, rates in found.items() if all(words[place] == word for place, word in having)]
    return [max(column) for column in zip(*chosen, strict=True)]


def accuracy_errors(times: int) -> tuple[dict[str, str], str]:
    """Return tables and a figure of the error rates of right or wrong answers."""
    found = errors(accuracy_settings(), times, "accuracy")
    groups = sorted({words[:2] for words in found}, key=lambda words: (words[1], list(SIZES).index(words[0])))
    summary = table(
        ["documents", "in clusters of", *RATES],
        ([*group, *percents(largest(found, having=[(0, group[0]), (1, group[1])]))] for group in groups),
    )
    head = ["documents", "in clusters of", "accuracy", "chance", "changed", *RATES]
    whole = table(head, ([*words, *percents(rates)] for words, rates in found.items()))
    single = [size for size in SIZES if len(SIZES[size]) == 1]
    drawn = {size: largest(found, having=[(0, size), (1, "1")]) for size in single}
    return {"errors of accuracy": summary, "errors of accuracy in each setting": whole}, _error_figure(
        "accuracy, the largest rate of 8 settings", {float(SIZES[size][0]): drawn[size] for size in single}
    )


def expected_errors(times: int) -> tuple[dict[str, str], str]:
    """Return tables and a figure of the error rates of expected scores."""
    found = errors(expected_settings(), times, "expected")
    grouped = errors(clustered_settings(), times, "expected")
    suites = errors(suite_settings(), times, "expected")
    joint = errors(joint_settings(), times, "expected")
    rows = [[f"{kind}", *percents(largest(found, having=[(0, kind)]))] for kind in KINDS]
    rows += [[f"loss by {loss}", *percents(largest(found, having=[(2, loss)]))] for loss in LOSSES]
    rows += [[f"{count:,} documents", *percents(largest(found, having=[(3, f"{count:,}")]))] for count in COUNTS]
    rows += [["in clusters of five", *percents(largest(grouped))], ["three unequal tasks", *percents(largest(suites))]]
    rows += [["both statistics at the target", *percents(largest(joint))]]
    whole = {**found, **grouped, **suites, **joint}
    head = ["kind", "noise", "loss", "documents", *RATES]
    tables = {
        "errors of the expected score": table(["the largest of all settings", *RATES], rows),
        "errors of the expected score in each setting": table(
            head, ([*words, *percents(rates)] for words, rates in whole.items())
        ),
        "errors that are known": known_errors(times),
    }
    by_count = {float(count): largest(found, having=[(3, f"{count:,}")]) for count in COUNTS}
    return tables, _error_figure(
        f"the expected score, the largest rate of {len(found) // len(COUNTS)} settings", by_count
    )


def known_errors(times: int) -> str:
    """Return the table of what the bound does not cover: breaks of the documents that the baseline is surest of."""
    rows = []
    for kind, count in itertools.product(THREE, (450, 600, 800, 1600)):
        population: Population = {"expected": expected(kind, 0.02, "breaks of the surest")}
        rates = simulate([Task(population, count)], times, EXPECTED, seed=seeded(kind, count)).rates
        rows.append([kind, f"{count:,}", *percents(rates)])
    return table(["kind", "documents", *RATES], rows)


def _error_figure(what: str, by_count: Mapping[float, Sequence[float]]) -> str:
    return charts.lines(
        f"False verdicts at a true retention of exactly {TARGET:.0%}: {what}",
        "documents",
        "share of runs",
        {name: [(count, rates[i]) for count, rates in by_count.items()] for i, name in enumerate(RATES)},
        reference={"allowed": 0.05},
        log_x=True,
        percent_y=True,
        standalone=True,
    )


class Artifact(NamedTuple):
    """An artifact that is judged on all of `core`, by its noise."""

    name: str
    noise: float


ARTIFACTS = (Artifact("8 bits, weights only", 0.03), Artifact("FP8", 0.08), Artifact("INT4", 0.25))


def core_runs(noise: float, retention: float, times: int) -> Outcomes:
    """Return the outcomes of runs on `core` at a true retention, by the expected score."""
    scores = expected("middling", noise, "a shift", retention)
    tasks = [Task({"expected": scores}, count) for count in SIZES["`core`"]]
    return simulate(tasks, times, EXPECTED, seed=seeded(noise, retention))


def power_and_stopping(times: int) -> tuple[dict[str, str], str, str]:
    """Return tables and figures of verdicts, and of the documents that they take, against the true retention."""
    found = {(made, true): core_runs(made.noise, true, times) for made in ARTIFACTS for true in RETENTIONS}
    used = {key: (float(runs.share.mean()), float(np.quantile(runs.share, 0.95))) for key, runs in found.items()}
    power = table(
        ["artifact", "true retention", *RATES],
        ([made.name, f"{true:.1%}", *percents(found[made, true].rates, 0)] for made in ARTIFACTS for true in POWERFUL),
    )
    stopping = table(
        ["true retention", *(f"{made.name}: {what}" for made in ARTIFACTS for what in ("mean", "95%"))],
        ([f"{true:.1%}", *percents((x for made in ARTIFACTS for x in used[made, true]), 0)] for true in RETENTIONS),
    )
    middle = ARTIFACTS[1]
    drawn_power = {
        name: [(100 * true, found[middle, true].rates[i]) for true in POWERFUL] for i, name in enumerate(RATES)
    }
    drawn_stopping = {
        f"{made.name}, {what}": [(100 * true, used[made, true][i]) for true in RETENTIONS[2:]]
        for made in (ARTIFACTS[0], middle)
        for i, what in enumerate(("mean", "95% of runs"))
    }
    return (
        {"power": power, "stopping": stopping},
        charts.lines(
            f"What the gate says of suite core by the expected score, {middle.name}",
            "true retention, %",
            "share of runs",
            drawn_power,
            percent_y=True,
            standalone=True,
        ),
        charts.lines(
            "Documents of suite core used until the verdict is shown; below 80% as at 80%",
            "true retention, %",
            "share of documents",
            drawn_stopping,
            percent_y=True,
            standalone=True,
        ),
    )


def looking_rules(times: int) -> tuple[dict[str, str], str]:
    """Return the table and the figure of the documents that each rule for looking needs."""
    found = rules.compared(times)
    cells = [f"{recipe}, {kept:.1%}" for recipe in rules.ERRORS for kept in rules.RETENTIONS]
    whole = table(
        ["rule", *cells, "sum, of 8"],
        ([name, *percents(shares[:-1], 0), f"{shares[-1]:.2f}"] for name, shares in found.items()),
    )
    chosen = ("Haybittle–Peto, six looks", "Lan–DeMets, Pocock-like", "Lan–DeMets, O'Brien–Fleming-like")
    figure = charts.lines(
        "Documents that rules for looking need, with the noise of fp8",
        "true retention, %",
        "share of documents",
        {name: rules.against_retention(name, times) for name in chosen},
        percent_y=True,
        standalone=True,
    )
    return {"rules for looking": whole}, figure


def second_terms(times: int) -> dict[str, str]:
    """Return the table of the documents that each second term needs to certify what lost nothing."""
    rows = (
        [name, *(f"{count:,}" if count else f"more than {terms.COUNTS[-1]:,}" for count in counts)]
        for name, counts in terms.compared(times).items()
    )
    return {"second terms": table(["statistic of an artifact that keeps 100%", *terms.NAMES], rows)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all simulations, and write what they give."""
    parser = argparse.ArgumentParser(description="Simulate the gate; write its tables and figures.")
    parser.add_argument("--runs", type=int, default=2000, help="runs of each setting, for errors; a tenth for power")
    parser.add_argument("--to", type=Path, default=HERE / "figures", help="folder for what is written")
    wanted = parser.parse_args(arguments)
    times, fewer = wanted.runs, max(2, wanted.runs // 10)
    tables, accuracy = accuracy_errors(times)
    more, expected_figure = expected_errors(times)
    seen, power, stopping = power_and_stopping(fewer)
    looked, needed = looking_rules(10 * times)
    figures = {
        "errors-accuracy": accuracy,
        "errors-expected": expected_figure,
        "power": power,
        "stopping": stopping,
        "looks": needed,
    }
    wanted.to.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        (wanted.to / f"gate-{name}.svg").write_text(figure, encoding="utf-8")
    written = {**tables, **more, **seen, **looked, **second_terms(fewer // 2)}
    parts = [f"<!-- {name} -->\n{text}\n<!-- end of {name} -->\n" for name, text in written.items()]
    head = f"Made by `python -m docs.simulate`: {times:,} runs a setting for errors, {fewer:,} for power.\n"
    (wanted.to / "gate-simulation.md").write_text("\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
