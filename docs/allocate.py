"""Measures how many documents of each task a suite should take: `python -m docs.allocate` writes
docs/figures/allocation.md.

The error of the retention is that of a weighted mean over tasks, over the mean head-room h: the baseline's expected
score above chance. For the same cost that error is smallest when a task has documents in proportion to s / √c (Neyman
1934), with the standard deviation s of the paired difference of expected scores (root mean square over recipes of
several kinds) and the tokens c that a document costs. It is then in proportion to the sum of s √c over tasks, so
that h / (s √c) says what a task tells for its cost. Tasks of equal weight are taken in that order, as long as one tells
at least half of what those taken tell together, has enough documents, and its accuracy is well above chance: a task
that tells less would make the verdict of all the others worse. Nothing here looks at a verdict.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from docs.markdown import table
from pipelines.calibration.stage import calibrate
from pipelines.checkpoint.load import load_model
from pipelines.evaluation.looks import BLOCK
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.stage import evaluate
from pipelines.gating.expected import expected_scores
from pipelines.gating.pairs import pair_documents
from pipelines.planning.stage import make_plan
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe, load_task
from pipelines.recipe.suite import Suite, SuiteTask

FIGURES = Path(__file__).parent / "figures"
TASKS = ("sciq", "arc_easy", "piqa", "lambada_openai", "hellaswag", "copa", "winogrande", "arc_challenge", "openbookqa")
RECIPES = ("fp8", "int8-weight-only", "nvfp4-weight-only")
DOCUMENTS = 256
ABOVE_CHANCE = 0.1
"""Smallest accuracy of the baseline above chance of a task that is taken."""
FEWEST = 256
"""Smallest number of documents of a task that is taken."""
BUDGET = 250_000
"""Number of tokens of all documents: what two cores without AVX-512 read in 18 minutes, in float32."""


class Measured(NamedTuple):
    """What is known of a task."""

    task: str
    accuracy: float
    """Mean accuracy of the baseline above chance."""
    headroom: float
    """Mean expected score of the baseline above chance."""
    deviation: float
    """Standard deviation of the paired difference of expected scores, root mean square over recipes."""
    tokens: int
    """Tokens that a document costs."""
    documents: int
    """Number of documents that there are."""

    @property
    def density(self) -> float:
        """Number of documents to take, up to a factor that is the same for all tasks."""
        return self.deviation / math.sqrt(self.tokens)

    @property
    def error(self) -> float:
        """Share of the task in the error of all, up to a factor that is the same for all tasks."""
        return self.deviation * math.sqrt(self.tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="documents of each task that are evaluated")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    options = parser.parse_args(arguments)
    suite = Suite(
        version=1,
        name="allocation",
        summary="Candidates.",
        tasks=tuple(SuiteTask(task=task, limit=options.documents) for task in TASKS),
    )
    baseline = evaluate(load_model(None), suite, "cpu").scores()
    artifacts = [evaluate(artifact(recipe), suite, "cpu").scores() for recipe in options.recipes]
    found = [measured(task, baseline, artifacts) for task in TASKS]
    (FIGURES / "allocation.md").write_text(told(found, options.documents, options.recipes), encoding="utf-8")


def artifact(recipe: str) -> Artifact:
    """Return the default model, quantized by `recipe`."""
    wanted = load_recipe(recipe)
    plan = make_plan(wanted, load_model(None))
    return quantize(plan, calibrate(plan) if wanted.calibrate else None)


def measured(task: str, baseline: Scores, artifacts: Sequence[Scores]) -> Measured:
    """Return what the scores of a baseline and of artifacts tell of a task."""
    found = [expected_scores(pair_documents(baseline[task], scores[task])) for scores in artifacts]
    scored = [one.scored for one in found if one]
    squares = [
        (one.candidate - one.baseline - sum(x.candidate - x.baseline for x in documents) / len(documents)) ** 2
        for documents in scored
        for one in documents
    ]
    about = load_task(task)
    return Measured(
        task,
        sum(document.score - document.chance for document in baseline[task]) / len(baseline[task]),
        sum(one.baseline - one.chance for one in scored[0]) / len(scored[0]),
        math.sqrt(sum(squares) / len(squares)),
        about.tokens or 1,
        about.documents or 1,
    )


def taken(found: Sequence[Measured]) -> list[Measured]:
    """Return the tasks that are taken, those that tell most for their cost first."""
    fit = [one for one in found if one.accuracy >= ABOVE_CHANCE and one.documents >= FEWEST]
    chosen: list[Measured] = []
    for one in sorted(fit, key=lambda one: -one.headroom / one.error):
        together = sum(task.headroom for task in chosen) / (sum(task.error for task in chosen) or math.inf)
        if one.headroom / one.error >= together / 2:
            chosen.append(one)
    return chosen


def limits(chosen: Sequence[Measured]) -> dict[str, int]:
    """Return the number of documents of each task: whole blocks, in proportion to its density, up to all it has."""
    open_, left = list(chosen), float(BUDGET)
    given: dict[str, int] = {}
    while open_:
        factor = left / sum(one.density * one.tokens for one in open_)
        full = [one for one in open_ if factor * one.density >= one.documents]
        if not full:
            return given | {one.task: max(1, round(factor * one.density / BLOCK)) * BLOCK for one in open_}
        given |= {one.task: one.documents for one in full}
        left -= sum(one.documents * one.tokens for one in full)
        open_ = [one for one in open_ if one not in full]
    return given


def told(found: Sequence[Measured], documents: int, recipes: Sequence[str]) -> str:
    """Return the table as Markdown."""
    chosen = limits(taken(found))
    head = ["task", "accuracy above chance", "head-room", "deviation", "tokens", "tells", "documents", "taken"]
    rows = [
        [
            *(one.task, f"{one.accuracy:.3f}", f"{one.headroom:.3f}", f"{one.deviation:.4f}", str(one.tokens)),
            *(f"{one.headroom / one.error:.2f}", f"{one.documents:,}"),
            f"{chosen[one.task]:,}" if one.task in chosen else "–",
        ]
        for one in found
    ]
    about = f"Made by `python -m docs.allocate`: the default model, {documents} documents of each task, "
    return f"{about}{', '.join(recipes)}.\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    main()
