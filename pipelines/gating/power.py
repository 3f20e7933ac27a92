"""What a suite can see, before anything is evaluated: its power (docs/gate.md)."""

import math
import statistics
from collections.abc import Callable, Mapping

from pydantic import Field

from pipelines.core.bounds import quantile
from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.scores import Document, Evaluation
from pipelines.gating.gate import FEWEST_INDEPENDENT, MORE, TOO_FEW, Statistic
from pipelines.recipe.load import task_documents
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite

POWER = 0.8


class Discordance(Frozen):
    """How often an answer changes between a model and its artifact."""

    share: float
    """Of all documents."""
    runs: int = 0
    """Earlier runs it was seen in; 0 for what is typical."""


class Sight(Frozen):
    """What a suite can see before anything is evaluated."""

    documents: int
    fails_below: float
    """A true retention below this is refused with 80% probability …"""
    certifies_above: float = Field(description="… and one above this is certified with 80% probability.")
    certifies_equal: float = Field(description="The probability that an artifact that keeps exactly 100% is certified.")
    documents_to_certify: int | None = Field(
        description="How many documents of this kind would make that 80%; null when the target is 100%."
    )
    discordance: Discordance
    headroom: float

    def sentence(self, suite: str) -> str:
        """For people."""
        runs = self.discordance.runs
        seen = f"as in {runs} earlier run{'s' if runs > 1 else ''}" if runs else "typical of such recipes"
        more = self.documents_to_certify
        return (
            f"suite {suite}, {self.documents} documents, if {self.discordance.share:.1%} of the answers change "
            f"({seen}) and the baseline is {self.headroom:.2f} above chance: a true retention below "
            f"{self.fails_below:.1%} is refused, and one above {self.certifies_above:.1%} certified, with 80% "
            f"probability; one of exactly 100% is certified with {self.certifies_equal:.0%}"
            + (f", with 80% on {more} documents" if more else "")
        )


TYPICAL_DISCORDANCE = {
    "FP8": 0.045, "INT8": 0.045, "INT4": 0.10, "FP4": 0.12, "NF4": 0.12,
    "Q8_0": 0.02, "Q6_K": 0.025, "Q5_K_M": 0.025, "Q4_K_M": 0.05, "Q4_0": 0.10, "IQ4_XS": 0.08, "IQ3_M": 0.085,
    "IQ2_M": 0.15,
}  # fmt: skip
"""Share of documents whose answer changes: about what was seen on the default model (docs/gate.md)."""
TYPICAL_HEADROOM = 0.3


def typical(loss_class: str) -> Discordance:
    """Of a recipe's `loss_class`."""
    return Discordance(share=TYPICAL_DISCORDANCE[loss_class])


OTHER = "use a suite with more documents, for example --set gate.suite=smoke"
"""Against too few documents of tasks that have no limit."""


def blindness(suite: Suite, independent: Mapping[str, int]) -> list[Problem]:
    """Return why the gate could tell nothing, whatever a model scores, on so many `independent` documents by task."""
    few = [task for task, count in independent.items() if count < FEWEST_INDEPENDENT]
    if few or not independent:
        limits = {task.task: task.limit for task in suite.tasks}
        return [
            Problem(f"suite {suite.name}, task {task}", TOO_FEW, MORE if limits.get(task) else OTHER) for task in few
        ]
    leverage = max(share / independent[task] for task, share in suite.shares.items())
    perfect = Statistic(baseline=1.0, candidate=1.0, vbb=0.0, vbc=0.0, vcc=0.0, leverage=leverage)
    if perfect.above_chance(suite.policy.confidence):
        return []
    what = f"on its {sum(independent.values())} documents not even a perfect model could be shown to be above chance"
    limited = any(task.limit for task in suite.tasks)
    return [Problem(f"suite {suite.name}", what, "raise the limits of its tasks" if limited else OTHER)]


def sight(
    documents: Mapping[str, int],
    suite: Suite,
    target: float,
    discordance: Discordance,
    headroom: float | None = None,
) -> Sight:
    """The smallest drop that `suite` would detect with 80% power, for a task → documents count.

    `headroom` is the baseline's mean score above chance over the suite, once it is known.
    """
    above = headroom if headroom is not None else TYPICAL_HEADROOM
    weights = suite.shares
    confidence = suite.policy.confidence

    def with_times(factor: float) -> Statistic:
        """What the gate would see in `factor` times the documents."""
        return Statistic(
            baseline=above,
            candidate=above,
            vbb=0.0,
            vbc=0.0,
            vcc=sum(weights[name] ** 2 * discordance.share / count for name, count in documents.items()) / factor,
            leverage=max(weights[name] / count for name, count in documents.items()) / factor,
        )

    def reach(statistic: Statistic) -> float:
        return statistic.margin(target, confidence) + quantile(POWER) * math.sqrt(statistic.vcc)

    here = with_times(1)
    certifies = (above * (1 - target) - here.margin(target, confidence)) / math.sqrt(here.vcc)
    return Sight(
        documents=sum(documents.values()),
        fails_below=max(0.0, target - reach(here) / above),
        certifies_above=target + reach(here) / above,
        certifies_equal=statistics.NormalDist().cdf(certifies),
        documents_to_certify=_needed(lambda factor: reach(with_times(factor)) / above - (1 - target), documents),
        discordance=discordance,
        headroom=above,
    )


def _needed(lacking: Callable[[float], float], documents: Mapping[str, int]) -> int | None:
    """The documents with which `lacking`, a falling function of how many times as many there are, is not above 0."""
    low, high = -10.0, 10.0  # decimal logarithms
    if lacking(10**high) > 0:
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if lacking(10**middle) > 0 else (low, middle)
    return math.ceil(10**high * sum(documents.values()))


def foresee(recipe: Recipe, suite: Suite, discordance: Discordance, baseline: Evaluation | None = None) -> Sight | None:
    """What the gate will be able to see with all of `suite`: by the documents and the score above chance of the
    baseline when it is there, however far it is evaluated, else by what the tasks' definitions say. None where nothing
    says how many documents a task has.
    """
    if baseline is None:
        counts = {wanted.task: task_documents(wanted) for wanted in suite.tasks}
        known = {name: count for name, count in counts.items() if count}
        return sight(known, suite, recipe.gate.retention, discordance) if len(known) == len(counts) else None
    scores = baseline.scores()
    above = sum(share * _above_chance(suite, scores[task]) for task, share in suite.shares.items())
    asked = {task.about.task: task.of for task in baseline.tasks}
    return sight(asked, suite, recipe.gate.retention, discordance, max(above, 0.01))


def _above_chance(suite: Suite, documents: tuple[Document, ...]) -> float:
    chance = sum(document.chance for document in documents) if suite.policy.chance_correction else 0.0
    return (sum(document.score for document in documents) - chance) / len(documents)
