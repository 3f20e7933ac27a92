"""Power analysis: how large a loss a suite can show, before anything is evaluated (docs/gate.md)."""

import math
import statistics
from collections.abc import Callable, Mapping

from pipelines.core.bounds import quantile
from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.scores import Document, Evaluation
from pipelines.formats.gguf_types import DISCORDANCE
from pipelines.formats.schemes import FAMILIES
from pipelines.gating.pairs import FEWEST_INDEPENDENT, RAISE_LIMIT, TOO_FEW
from pipelines.gating.statistic import Statistic
from pipelines.recipe.load import task_documents
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite

POWER = 0.8
"""Probability with which a loss is to be shown."""


class Discordance(Frozen):
    """How often an answer changes between a model and its artifact."""

    share: float
    """Share of all documents whose answer changes."""
    runs: int = 0
    """Number of earlier runs it was seen in; 0 for what is typical."""


class PowerAnalysis(Frozen):
    """The smallest loss that a suite can show, and the smallest gain that it can certify."""

    documents: int
    fails_below: float
    """True retention below which an artifact is refused with 80% probability."""
    certifies_above: float
    """True retention above which an artifact is certified with 80% probability."""
    certifies_equal: float
    """Probability that an artifact that keeps exactly 100% is certified."""
    documents_to_certify: int | None
    """Number of documents of this kind that would make that 80%; None where the target is 100%."""
    discordance: Discordance
    headroom: float
    """Mean score of the baseline above chance, over the suite."""

    def sentence(self, suite: str) -> str:
        """Return the analysis of the suite of that name, for people."""
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


TYPICAL_DISCORDANCE = {name: family.discordance for name, family in FAMILIES.items()} | DISCORDANCE
"""Share of documents whose answer changes, by a recipe's `loss_class`."""
TYPICAL_HEADROOM = 0.3
"""Mean score of a baseline above chance, before it is known."""


def typical_discordance(loss_class: str) -> Discordance:
    """Return what is typical of a recipe's `loss_class`."""
    return Discordance(share=TYPICAL_DISCORDANCE[loss_class])


LARGER_SUITE = "use a suite with more documents, for example --set gate.suite=smoke"
"""Remedy against too few documents of tasks that have no limit."""


def power_problems(suite: Suite, independent: Mapping[str, int]) -> list[Problem]:
    """Return why the gate could tell nothing, whatever a model scores, on so many `independent` documents by task."""
    few = [task for task, count in independent.items() if count < FEWEST_INDEPENDENT]
    if few or not independent:
        limits = {task.task: task.limit for task in suite.tasks}
        remedies = {task: RAISE_LIMIT if limits.get(task) else LARGER_SUITE for task in few}
        return [Problem(f"suite {suite.name}, task {task}", TOO_FEW, remedy) for task, remedy in remedies.items()]
    leverage = max(share / independent[task] for task, share in suite.shares.items())
    perfect = Statistic(
        baseline=1.0, candidate=1.0, baseline_variance=0.0, covariance=0.0, candidate_variance=0.0, leverage=leverage
    )
    if perfect.above_chance(suite.policy.confidence):
        return []
    what = f"on its {sum(independent.values())} documents not even a perfect model could be shown to be above chance"
    limited = any(task.limit for task in suite.tasks)
    return [Problem(f"suite {suite.name}", what, "raise the limits of its tasks" if limited else LARGER_SUITE)]


def analyze_power(
    documents: Mapping[str, int],
    suite: Suite,
    target: float,
    discordance: Discordance,
    headroom: float | None = None,
) -> PowerAnalysis:
    """Return the smallest loss that `suite` would show with 80% power, on so many `documents` by task.

    `headroom` is the baseline's mean score above chance over the suite, once it is known.
    """
    above = headroom if headroom is not None else TYPICAL_HEADROOM
    weights = suite.shares
    confidence = suite.policy.confidence

    def with_times(factor: float) -> Statistic:
        """Return what the gate would compute from `factor` times the documents, of an artifact that keeps all."""
        return Statistic(
            baseline=above,
            candidate=above,
            baseline_variance=0.0,
            covariance=0.0,
            candidate_variance=sum(weights[name] ** 2 * discordance.share / count for name, count in documents.items())
            / factor,
            leverage=max(weights[name] / count for name, count in documents.items()) / factor,
        )

    def detectable(statistic: Statistic) -> float:
        """Return the smallest mean of d, away from 0, that is shown with 80% power."""
        return statistic.margin(target, confidence) + quantile(POWER) * math.sqrt(statistic.candidate_variance)

    here = with_times(1)
    certifies = (above * (1 - target) - here.margin(target, confidence)) / math.sqrt(here.candidate_variance)
    return PowerAnalysis(
        documents=sum(documents.values()),
        fails_below=max(0.0, target - detectable(here) / above),
        certifies_above=target + detectable(here) / above,
        certifies_equal=statistics.NormalDist().cdf(certifies),
        documents_to_certify=_needed(lambda factor: detectable(with_times(factor)) / above - (1 - target), documents),
        discordance=discordance,
        headroom=above,
    )


def _needed(lacking: Callable[[float], float], documents: Mapping[str, int]) -> int | None:
    """Return the number of documents with which `lacking` is not above 0: a falling function of the factor by which
    there are more than `documents`. None where that takes more than 10^10 times as many."""
    low, high = -10.0, 10.0  # decimal logarithms
    if lacking(10**high) > 0:
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if lacking(10**middle) > 0 else (low, middle)
    return math.ceil(10**high * sum(documents.values()))


def analyze_recipe_power(
    recipe: Recipe, suite: Suite, discordance: Discordance, baseline: Evaluation | None = None
) -> PowerAnalysis | None:
    """Return the power of all of `suite` for a recipe's target: by the documents and the score above chance of the
    baseline when it is there, however far it is evaluated, else by what the tasks' definitions say. None where nothing
    says how many documents a task has.
    """
    if baseline is None:
        counts = {wanted.task: task_documents(wanted) for wanted in suite.tasks}
        known = {name: count for name, count in counts.items() if count}
        return analyze_power(known, suite, recipe.gate.retention, discordance) if len(known) == len(counts) else None
    scores = baseline.scores()
    above = sum(share * _above_chance(suite, scores[task]) for task, share in suite.shares.items())
    asked = {task.about.task: task.of for task in baseline.tasks}
    return analyze_power(asked, suite, recipe.gate.retention, discordance, max(above, 0.01))


def _above_chance(suite: Suite, documents: tuple[Document, ...]) -> float:
    """Return the mean score above chance, or the mean score where the policy does not correct for chance."""
    chance = sum(document.chance for document in documents) if suite.policy.chance_correction else 0.0
    return (sum(document.score for document in documents) - chance) / len(documents)
