"""Simulates the gate where the truth is known: `python docs/simulate.py` writes the tables and figures of
docs/figures/gate-*, in about five minutes on one core; `--quick` in seconds, with too few runs to quote.

What is simulated are the answers. Every verdict is the gate's own: once over all documents, and once look by look
(`pipelines.evaluation.looks`) until one is shown.
"""

import argparse
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.evaluation.looks import LOOKS, blocks_by_look, look_confidence
from pipelines.gating.gate import decide
from pipelines.gating.statistic import PairedMoments, combine, tasks_below_floor
from pipelines.gating.verdict import TaskVerdict
from pipelines.recipe.load import load_suite, load_task
from pipelines.recipe.suite import Policy, Suite, SuiteTask
from pipelines.reporting import charts

HERE = Path(__file__).parent
TARGET = 0.99
TOGETHER = 0.7
"""Probability that a document goes as its cluster does, rather than its own way."""
BATCH = 4_000_000
"""Number of documents held in memory at a time."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class Task(NamedTuple):
    """A task of right-or-wrong documents whose true retention is known."""

    documents: int
    baseline: float
    """Share of right answers."""
    discordance: float
    """Share of answers that change, unless the loss takes more."""
    chance: float = 0.0
    cluster: int = 1
    """Number of documents in a row that share a passage."""
    retention: float = TARGET


class Outcome(NamedTuple):
    """The verdicts of the gate in one simulated run: certified, FAIL or INCONCLUSIVE."""

    fixed: str
    """Verdict once over all documents."""
    sequential: str
    """Verdict at the first look that shows one, else at the last."""
    share: float
    """Share of the documents that were used until the sequential verdict."""


def shares(task: Task) -> tuple[float, float, float, float]:
    """Return the probabilities that a document is right in both, lost, gained, or wrong in both."""
    fall = (1 - task.retention) * (task.baseline - task.chance)
    changed = max(task.discordance, abs(fall))
    lost, gained = (changed + fall) / 2, (changed - fall) / 2
    return task.baseline - lost, lost, gained, 1 - task.baseline - gained


def answers(task: Task, random: np.random.Generator, times: int) -> tuple[Bools, Bools]:
    """Return which answers of baseline and candidate are right: each bool (runs, documents)."""
    drawn = random.random((times, task.documents), dtype=np.float32)
    if task.cluster > 1:
        passages = random.random((times, math.ceil(task.documents / task.cluster)), dtype=np.float32)
        alike = random.random((times, task.documents), dtype=np.float32) < TOGETHER
        drawn = np.where(alike, np.repeat(passages, task.cluster, axis=1)[:, : task.documents], drawn)
    both, lost, gained = np.cumsum(shares(task)[:3])
    return drawn < lost, (drawn < both) | ((drawn >= lost) & (drawn < gained))


def moments(name: str, task: Task, baseline: Bools, candidate: Bools) -> Iterator[list[PairedMoments]]:
    """Yield, for each look, what the gate's `_moments` gives for the documents seen by then, of each run."""
    passage = np.arange(task.documents) // task.cluster
    size = np.zeros(passage[-1] + 1)
    right = np.zeros((2, len(baseline), len(size)))
    for added in blocks_by_look(name, task.documents):
        places = np.sort([place for block in added for place in block])
        if len(places):
            hit, first, count = np.unique(passage[places], return_index=True, return_counts=True)
            size[hit] += count
            for side, answered in enumerate((baseline, candidate)):
                right[side][:, hit] += np.add.reduceat(answered[:, places], first, axis=1, dtype=np.int64)
        yield _reduced(size, right, task.chance)


def _reduced(size: Floats, right: Floats, chance: float) -> list[PairedMoments]:
    """Return each run's means above chance and their variances, from clusters' sizes (clusters) and their numbers of
    right answers (sides, runs, clusters)."""
    count, clusters = size.sum(), int((size > 0).sum())
    b, c = (side.sum(axis=1) / count for side in right)
    rest_b, rest_c = (side - np.outer(mean, size) for side, mean in zip(right, (b, c), strict=True))
    scale = clusters / (clusters - 1) / count**2
    sums = [np.einsum("ij,ij->i", x, y) * scale for x, y in ((rest_b, rest_b), (rest_b, rest_c), (rest_c, rest_c))]
    return [
        PairedMoments.model_construct(
            documents=int(count),
            clusters=clusters,
            baseline=row[0],
            candidate=row[1],
            baseline_variance=row[2],
            covariance=row[3],
            candidate_variance=row[4],
            leverage=float(size.max() / count),
        )
        for row in np.stack([b - chance, c - chance, *sums], axis=1).tolist()
    ]


def said(seen: Mapping[str, PairedMoments], suite: Suite, confidence: float) -> str:
    """Return the gate's verdict on these moments: `certified` for a PASS that is shown."""
    policy = suite.policy.model_copy(update={"confidence": confidence})
    below = tasks_below_floor(seen, policy)
    tasks = tuple(TaskVerdict.model_construct(task=name, below_floor=name in below) for name in seen)
    count = sum(task.documents for task in seen.values())
    decision = decide(combine(seen, suite.shares), tasks, (), policy, TARGET, count)
    return "certified" if decision.verdict == "PASS" and decision.shown else decision.verdict


def outcome(looks: Sequence[Mapping[str, PairedMoments]], suite: Suite) -> Outcome:
    """Return the outcome of one run, whose moments at each look are given."""
    confidence = suite.policy.confidence
    for look, seen in enumerate(looks):
        verdict = said(seen, suite, look_confidence(look, confidence))
        if verdict != "INCONCLUSIVE":
            break
    used, of = (sum(task.documents for task in at.values()) for at in (seen, looks[-1]))
    return Outcome(said(looks[-1], suite, confidence), verdict, used / of)


def drawn(tasks: Mapping[str, Task], times: int, seed: int = 1) -> Iterator[list[dict[str, PairedMoments]]]:
    """Yield `times` simulated runs, each as the moments of every task at each look."""
    random = np.random.default_rng(seed)
    batch = max(1, BATCH // sum(task.documents for task in tasks.values()))
    for start in range(0, times, batch):
        count = min(batch, times - start)
        seen = {name: list(moments(name, task, *answers(task, random, count))) for name, task in tasks.items()}
        for run in range(count):
            yield [{name: looks[look][run] for name, looks in seen.items()} for look in range(len(LOOKS))]


def simulate(tasks: Mapping[str, Task], suite: Suite, times: int, seed: int = 1) -> list[Outcome]:
    """Return the outcomes of `times` runs, by a policy that decides only what is shown."""
    shown = suite.model_copy(update={"policy": suite.policy.model_copy(update={"decide": "certified"})})
    return [outcome(looks, shown) for looks in drawn(tasks, times, seed)]


def plain_suite(names: Iterable[str], policy: Policy | None = None) -> Suite:
    """Return a suite of tasks with equal weights."""
    tasks = tuple(SuiteTask(task=name) for name in names)
    return Suite(version=1, name="simulated", summary="", tasks=tasks, policy=policy or Policy())


CORE = load_suite("core")
SIZES: Mapping[str, Mapping[str, int]] = {
    "500": {"task": 500},
    "2,000": {"task": 2000},
    "20,000": {"task": 20_000},
    "`core`": {wanted.task: load_task(wanted.task).documents or 0 for wanted in CORE.tasks},
}
"""Name of a size → number of documents of each task: a single task, or the seven of `core`."""
ACCURACIES, DISCORDANCES, CLUSTERS, CHANCES = (0.4, 0.7), (0.02, 0.1), (1, 5), (0.0, 0.25)
RETENTIONS = (0, 0.5, 0.8, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 1.0, 1.01, 1.02)
POWERFUL = RETENTIONS[3:]
"""True retentions for which the probability of a verdict is worth a row."""

Cell = tuple[str, int, float, float, float]
"""Setting of a simulation: size, documents in a cluster, accuracy, chance and discordance."""


def runs(cell: Cell, retention: float, times: int) -> list[Outcome]:
    """Return the outcomes of `times` runs in a cell of the grid, at a true `retention`."""
    size, cluster, accuracy, chance, discordance = cell
    tasks = {
        name: Task(count, accuracy, discordance, chance, cluster, retention) for name, count in SIZES[size].items()
    }
    return simulate(tasks, plain_suite(tasks, CORE.policy), times, seed=zlib.crc32(f"{cell} {retention}".encode()))


def rate(verdicts: Iterable[str], which: str) -> float:
    return float(np.mean([verdict == which for verdict in verdicts]))


def rates(found: Sequence[Outcome]) -> tuple[float, float, float, float]:
    """Return the shares of runs certified by the fixed test and sequentially, and of FAIL by both."""
    fixed, sequential = [run.fixed for run in found], [run.sequential for run in found]
    return (
        rate(fixed, "certified"),
        rate(sequential, "certified"),
        rate(fixed, "FAIL"),
        rate(sequential, "FAIL"),
    )


RATES = ("certified, all at once", "certified, with looks", "FAIL, all at once", "FAIL, with looks")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    ruled = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def percents(values: Iterable[float], digits: int = 1) -> list[str]:
    return [f"{value:.{digits}%}" for value in values]


def errors(times: int) -> tuple[dict[str, str], str]:
    """Return tables and a figure of the error rates at a true retention of exactly the target."""
    grid = list(itertools.product(SIZES, CLUSTERS, ACCURACIES, CHANCES, DISCORDANCES))
    found = {cell: rates(runs(cell, TARGET, times)) for cell in grid}

    def largest(size: str, *clusters: int) -> list[float]:
        """Return the largest of each rate over the settings of a size and cluster sizes."""
        chosen = [rate for cell, rate in found.items() if cell[0] == size and cell[1] in clusters]
        return [max(column) for column in zip(*chosen, strict=True)]

    summary = table(
        ["documents", "in clusters of", *RATES],
        ([size, str(cluster), *percents(largest(size, cluster))] for size in SIZES for cluster in CLUSTERS),
    )
    whole = table(
        ["documents", "in clusters of", "accuracy", "chance", "changed", *RATES],
        ([cell[0], str(cell[1]), *(f"{value:g}" for value in cell[2:]), *percents(found[cell])] for cell in grid),
    )
    single = [size for size in SIZES if len(SIZES[size]) == 1]
    largest_rates = {
        name: [(float(SIZES[size]["task"]), largest(size, *CLUSTERS)[i]) for size in single]
        for i, name in enumerate(RATES)
    }
    figure = charts.lines(
        f"False verdicts at a true retention of exactly {TARGET:.0%}, the largest rate of 16 settings",
        "documents",
        "share of runs",
        largest_rates,
        reference={"allowed": 0.05},
        log_x=True,
        percent_y=True,
        standalone=True,
    )
    return {"errors": summary, "errors in each setting": whole}, figure


def power_and_stopping(times: int) -> tuple[dict[str, str], str, str]:
    """Return tables and figures of verdicts, and of the documents that they take, against the true retention."""
    cells: list[Cell] = [
        (size, 1, 0.7, 0.25, discordance) for size in ("2,000", "20,000", "`core`") for discordance in DISCORDANCES
    ]
    found = {(cell, true): runs(cell, true, times) for cell in cells for true in RETENTIONS}
    used = {
        key: (float(np.mean([run.share for run in some])), float(np.quantile([run.share for run in some], 0.95)))
        for key, some in found.items()
    }
    power = table(
        ["documents", "changed", "true retention", *RATES],
        (
            [cell[0], f"{cell[4]:.0%}", f"{true:.1%}", *percents(rates(found[cell, true]), 0)]
            for cell in cells
            for true in POWERFUL
        ),
    )
    stopping = table(
        [
            "true retention",
            *(f"{cell[0]}, {cell[4]:.0%} changed: {what}" for cell in cells for what in ("mean", "95%")),
        ],
        ([f"{true:.1%}", *percents((x for cell in cells for x in used[cell, true]), 0)] for true in RETENTIONS),
    )
    core = cells[-2:]
    drawn_power = {
        name: [(100 * true, rates(found[core[1], true])[i]) for true in POWERFUL] for i, name in enumerate(RATES)
    }
    drawn_stopping = {
        f"{cell[4]:.0%} changed, {name}": [(100 * true, used[cell, true][i]) for true in RETENTIONS[2:]]
        for cell in core
        for i, name in enumerate(("mean", "95% of runs"))
    }
    return (
        {"power": power, "stopping": stopping},
        charts.lines(
            "What the gate says of suite core, 10% of the answers changed",
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both simulations, and write what they give."""
    parser = argparse.ArgumentParser(description="Simulate the gate; write its tables and figures.")
    parser.add_argument("--quick", action="store_true", help="few runs: to see that it works")
    parser.add_argument("--to", type=Path, default=HERE / "figures", help="folder for what is written")
    wanted = parser.parse_args(arguments)
    times = (10, 5) if wanted.quick else (2000, 1000)
    tables, drawn_errors = errors(times[0])
    more, drawn_power, drawn_stopping = power_and_stopping(times[1])
    wanted.to.mkdir(parents=True, exist_ok=True)
    for name, figure in (("errors", drawn_errors), ("power", drawn_power), ("stopping", drawn_stopping)):
        (wanted.to / f"gate-{name}.svg").write_text(figure, encoding="utf-8")
    parts = [f"<!-- {name} -->\n{text}\n<!-- end of {name} -->\n" for name, text in {**tables, **more}.items()]
    head = f"Made by `python docs/simulate.py`: {times[0]:,} runs a setting for errors, {times[1]:,} for the rest.\n"
    (wanted.to / "gate-simulation.md").write_text("\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
