"""Measures how many documents of each task a suite should take: `python -m docs.allocate` writes
docs/figures/allocation.md.

The verdict's error is that of a weighted mean over tasks. For the same cost it is smallest when task t has documents in
proportion to w s / √c (Neyman 1934), with its weight w in the suite, the standard deviation s of the paired difference
of expected scores, and the tokens c that a document costs. s is the root mean square over recipes of several kinds. A
task is taken where the baseline's expected score is well above chance: without head-room it adds noise alone. Nothing
here looks at a verdict.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from docs.markdown import table
from pipelines.calibration.stage import calibrate
from pipelines.checkpoint.load import load_model
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
HEADROOM = 0.1
"""Smallest mean expected score above chance of a task that is taken."""
WHOLE = 6000
"""Number of documents of the suite, unless a task has no more."""


class Measured(NamedTuple):
    """What is known of a task."""

    task: str
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
        sum(one.baseline - one.chance for one in scored[0]) / len(scored[0]),
        math.sqrt(sum(squares) / len(squares)),
        about.tokens or 1,
        about.documents or 1,
    )


def limits(found: Sequence[Measured]) -> dict[str, int]:
    """Return the number of documents of each task that is taken: in proportion to its density, up to all it has."""
    open_ = {one.task: one for one in found if one.headroom >= HEADROOM}
    taken: dict[str, int] = {}
    left = WHOLE
    while open_:
        factor = left / sum(one.density for one in open_.values())
        full = {name: one.documents for name, one in open_.items() if factor * one.density >= one.documents}
        if not full:
            return taken | {name: round(factor * one.density) for name, one in open_.items()}
        taken |= full
        left -= sum(full.values())
        open_ = {name: one for name, one in open_.items() if name not in full}
    return taken


def told(found: Sequence[Measured], documents: int, recipes: Sequence[str]) -> str:
    """Return the table as Markdown."""
    chosen = limits(found)
    head = ["task", "head-room", "deviation of a document's difference", "tokens", "documents there are", "taken"]
    rows = [
        [
            *(one.task, f"{one.headroom:.3f}", f"{one.deviation:.4f}", str(one.tokens), f"{one.documents:,}"),
            f"{chosen[one.task]:,}" if one.task in chosen else "–",
        ]
        for one in found
    ]
    about = f"Made by `python -m docs.allocate`: the default model, {documents} documents of each task, "
    return f"{about}{', '.join(recipes)}.\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    main()
