"""Power analysis: how large a loss a suite can show, before anything is evaluated (docs/gate.md)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.looks import LOOKS, documents_at_look
from pipelines.evaluation.scores import Evaluation, Scores
from pipelines.formats.description import Changes
from pipelines.formats.gguf_types import CHANGES
from pipelines.formats.schemes import SCHEMES
from pipelines.gating.decision import SCORES, refusing
from pipelines.gating.pairs import FEWEST_INDEPENDENT, RAISE_LIMIT, TOO_FEW
from pipelines.gating.spending import look_confidence
from pipelines.gating.statistic import RIGHT_OR_WRONG, Sizes, Statistic
from pipelines.gating.weighed import weigh_both
from pipelines.recipe.load import load_task, task_documents
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import ScoreKind, Suite, SuiteTask

if TYPE_CHECKING:
    import numpy as np

POWER = 0.8
"""Probability with which a loss is to be shown."""
DRAWS = 10_000
"""Number of simulated evaluations that a probability is counted on: its standard error is 0.4 points at 80%."""
LARGEST = 3.5
"""Typical size of the largest changes of expected scores (`Sizes`), in standard deviations of a change. On the default
model 2.6 to 5.3 by task (docs/gate.md#what-a-suite-can-see)."""


class Headroom(Frozen):
    """A baseline's mean scores above chance, over a suite."""

    accuracy: float
    expected: float | None
    """None where a task has no expected score."""
    unseen: Mapping[str, float] | None = None
    """Task → size of a break of expected scores that no document has shown (`Sizes`); None before it is known."""


class Sight(Frozen):
    """What a suite can show by one statistic."""

    headroom: float
    """Mean score of the baseline above chance."""
    fails_below: float
    """True retention below which an artifact is refused with 80% probability."""
    certifies_above: float
    """True retention above which an artifact is certified with 80% probability."""
    certifies_equal: float
    """Probability that an artifact that keeps exactly 100% is certified."""
    median_documents: int | None
    """Number of documents after which such an artifact is certified, in the median; None where fewer than half are."""
    documents_to_certify: int | None
    """Number of documents of this kind that would make the probability 80%; None where the target is 100%."""


class PowerAnalysis(Frozen):
    """What a suite can show of an artifact, by both statistics."""

    documents: int
    statistic: ScoreKind
    """Statistic whose retention must be shown."""
    changes: Changes
    accuracy: Sight
    expected: Sight | None
    """None where a task has no expected score."""

    def sentence(self, suite: str) -> str:
        """Return the analysis of the suite of that name, for people."""
        found = {"accuracy": self.accuracy} | ({"expected": self.expected} if self.expected else {})
        chosen = found.get(self.statistic, self.accuracy)
        kind: ScoreKind = "accuracy" if chosen is self.accuracy else "expected"
        others = "".join(
            f"; {self._aside(other, found[other])}" for other in SCORES if other in found and other != kind
        )
        return (
            f"suite {suite}, {self.documents} documents, on {SCORES[kind]} ({self._assumed(kind, chosen)}): a true "
            f"retention below {chosen.fails_below:.1%} is refused, and one above {chosen.certifies_above:.1%} "
            f"certified, with 80% probability; one of exactly 100% is certified with {_equal(chosen)}{others}"
        )

    def _assumed(self, kind: ScoreKind, sight: Sight) -> str:
        """Return what is assumed of the changes and of the baseline."""
        runs = self.changes.runs
        seen = f"as in {runs} earlier run{'s' if runs > 1 else ''}" if runs else "typical of such recipes"
        changes = f"{self.changes.discordance:.1%} of the answers change"
        if kind == "expected":
            changes = f"a document's changes by a standard deviation of {self.changes.deviation:.3f}"
        return f"if {changes}, {seen}, and the baseline is {sight.headroom:.2f} above chance"

    def _aside(self, kind: ScoreKind, sight: Sight) -> str:
        """Return in a clause what the statistic that is not asked for can show."""
        return (
            f"on {SCORES[kind]} ({self._assumed(kind, sight)}): refused below {sight.fails_below:.1%}, shown to be "
            f"kept above {sight.certifies_above:.1%}, exactly 100% with {_equal(sight)}"
        )


def _equal(sight: Sight) -> str:
    """Return with what probability and after how many documents an artifact of exactly 100% is certified."""
    median = f", in the median after {sight.median_documents} documents" if sight.median_documents else ""
    more = sight.documents_to_certify if sight.certifies_equal < POWER else None
    return f"{sight.certifies_equal:.0%}{median}" + (f" (80% on {more} documents)" if more else "")


TYPICAL_CHANGES: dict[str, Changes] = {
    **{name: scheme.changes for name, scheme in SCHEMES.items()},
    **{str(name): changes for name, changes in CHANGES.items()},
}
"""What changes, by a recipe's `loss_class`: as seen on SmolLM2-135M-Instruct in float32 (torch 2.13.0, transformers
5.17.0, lm_eval 0.4.13, compressed-tensors 0.19.0). Deviations were measured with `fp8` (FP8_DYNAMIC: 0.060, and 3.9% of
the answers changed; sciq 1,000 documents, lambada_openai 1,024, piqa 1,024, arc_easy 570, copa 100) and with
`int8-weight-only` (W8A16: 0.019 and 1.3%; hellaswag 512 as well). The others are 1.5 times the discordance, as both of
these are: both grow in proportion to the noise while it is small."""
TYPICAL_HEADROOM = Headroom(accuracy=0.3, expected=0.22)
"""That of a baseline before it is known: the mean over the default model's four tasks of suite `smoke` (float32: sciq
0.51 by accuracy and 0.47 by expected score, arc_easy 0.27 and 0.24, hellaswag 0.15 and 0.05, lambada_openai 0.29 and
0.13)."""


def typical_changes(loss_class: str) -> Changes:
    """Return what is typical of a recipe's `loss_class`."""
    return TYPICAL_CHANGES[loss_class]


LARGER_SUITE = "use a suite with more documents, for example --set gate.suite=smoke"
"""Remedy against too few documents of tasks that have no limit."""


def power_problems(suite: Suite, independent: Mapping[str, int]) -> list[Problem]:
    """Return why the gate could tell nothing, whatever a model scores, on so many `independent` documents by task."""
    few = [task for task, count in independent.items() if count < FEWEST_INDEPENDENT]
    if few or not independent:
        limits = {task.task: task.limit for task in suite.tasks}
        remedies = {task: RAISE_LIMIT if limits.get(task) else LARGER_SUITE for task in few}
        return [Problem(f"suite {suite.name}, task {task}", TOO_FEW, remedy) for task, remedy in remedies.items()]
    perfect = _overall(_Kind(1.0, dict.fromkeys(independent, _Changes(0.0, RIGHT_OR_WRONG))), independent, suite.shares)
    if perfect.above_chance(suite.policy.confidence):
        return []
    what = f"on its {sum(independent.values())} documents not even a perfect model could be shown to be above chance"
    limited = any(task.limit for task in suite.tasks)
    return [Problem(f"suite {suite.name}", what, "raise the limits of its tasks" if limited else LARGER_SUITE)]


def analyze_power(
    documents: Mapping[str, int],
    suite: Suite,
    target: float,
    changes: Changes,
    headroom: Headroom = TYPICAL_HEADROOM,
) -> PowerAnalysis:
    """Return what `suite` would show on so many `documents` by task, looked at as they grow."""
    flips = _Changes(changes.discordance, RIGHT_OR_WRONG)
    kinds: dict[ScoreKind, _Kind] = {
        "accuracy": _Kind(max(headroom.accuracy, LEAST_HEADROOM), dict.fromkeys(documents, flips))
    }
    if headroom.expected is not None:
        moves = {task: _moves(task, changes, headroom) for task in documents}
        kinds["expected"] = _Kind(max(headroom.expected, LEAST_HEADROOM), moves)
    sights = {kind: _sight(kind, kinds, documents, suite, target) for kind in kinds}
    return PowerAnalysis(
        documents=sum(documents.values()),
        statistic=suite.policy.statistic,
        changes=changes,
        accuracy=sights["accuracy"],
        expected=sights.get("expected"),
    )


UNSEEN = 0.6
"""Size of a break of expected scores that no document has shown, before it is known: on the default model 0.42 to 0.63
by task, and 0.14 on HellaSwag."""
LEAST_HEADROOM = 0.01
"""Mean score above chance that is assumed of a baseline that has less."""


class _Changes(NamedTuple):
    """How the documents of a task change."""

    variance: float
    """Variance of a document's change."""
    sizes: Sizes


class _Kind(NamedTuple):
    """What a statistic's documents are like."""

    headroom: float
    changes: Mapping[str, _Changes]
    """Task → how its documents change."""


def _moves(task: str, changes: Changes, headroom: Headroom) -> _Changes:
    """Return how the expected scores of a task change. What a break costs is not known before the baseline is; where
    scores hardly move at all, it is taken to be as much less than usual."""
    noise = load_task(task).noise
    largest = min(1.0, LARGEST * changes.deviation * noise)
    unseen = headroom.unseen[task] if headroom.unseen else UNSEEN * min(1.0, noise)
    return _Changes((changes.deviation * noise) ** 2, Sizes(largest, largest, unseen))


class _Look(NamedTuple):
    """What it takes at a look to show something."""

    documents: int
    variance: float
    """Variance of the mean of d (see `pipelines.gating.gate`)."""
    above: float
    """Mean of d above which the retention is shown to be above the target."""
    below: float
    """Mean of d below which it is shown to be below."""


def _sight(
    kind: ScoreKind, kinds: Mapping[ScoreKind, _Kind], documents: Mapping[str, int], suite: Suite, target: float
) -> Sight:
    """Return what a statistic shows of `documents`, by simulation of the looks."""
    headroom = kinds[kind].headroom
    equal = headroom * (1 - target)

    def simulated(factor: float = 1.0) -> _Course:
        """Return the course of an evaluation of `factor` times the documents."""
        counts = {task: math.ceil(count * factor) for task, count in documents.items()}
        return _Course([_look(look, kind, kinds, counts, suite, target) for look in range(len(LOOKS))])

    here = simulated()
    loss = _least(lambda mean: here.refused(-mean) >= POWER, 0.0, FARTHEST)
    gain = _least(lambda mean: here.certified(mean) >= POWER, 0.0, FARTHEST)
    factor = _least(lambda exponent: simulated(10**exponent).certified(equal) >= POWER, *FACTORS)
    return Sight(
        headroom=headroom,
        fails_below=max(0.0, target - loss / headroom),
        certifies_above=target + gain / headroom,
        certifies_equal=here.certified(equal),
        median_documents=here.median(equal),
        documents_to_certify=None if factor == math.inf else simulated(10**factor).looks[-1].documents,
    )


FARTHEST = 10.0
"""Distance of a mean of d from 0 at which everything is shown, whatever the documents."""
FACTORS = -3.0, 10.0
"""Decimal logarithms of the smallest and the largest factor by which there could be more documents."""


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the smallest number from `low` to `high` for which `holds`, as it does for all above; else infinity."""
    if not holds(high):
        return math.inf
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _look(
    look: int,
    kind: ScoreKind,
    kinds: Mapping[ScoreKind, _Kind],
    documents: Mapping[str, int],
    suite: Suite,
    target: float,
) -> _Look:
    """Return what it takes at the look with this index, of `documents` by task in all."""
    counts = {task: documents_at_look(look, count) for task, count in documents.items()}
    policy = suite.policy.model_copy(update={"confidence": look_confidence(look, suite.policy.confidence)})
    overall = {name: _overall(one, counts, suite.shares) for name, one in kinds.items()}
    one = overall[kind]
    return _Look(
        documents=sum(counts.values()),
        variance=one.variance(target),
        above=one.margin(target, policy.confidence, one.loss),
        below=-one.margin(target, refusing(kind, overall, policy), one.gain),
    )


def _overall(kind: _Kind, counts: Mapping[str, int], shares: Mapping[str, float]) -> Statistic:
    """Return what the gate would compute of an artifact that keeps all, on so many documents by task."""
    leverage = {task: shares[task] / count for task, count in counts.items()}
    sizes = {task: changes.sizes for task, changes in kind.changes.items()}
    return Statistic(
        baseline=kind.headroom,
        candidate=kind.headroom,
        baseline_variance=0.0,
        covariance=0.0,
        candidate_variance=math.fsum(shares[task] * leverage[task] * kind.changes[task].variance for task in counts),
        leverage=max(leverage.values()),
        loss=max(leverage[task] * sizes[task].loss for task in counts),
        gain=max(leverage[task] * sizes[task].gain for task in counts),
        unseen=max(leverage[task] * sizes[task].unseen for task in counts),
    )


class _Course:
    """Simulated courses of an evaluation: the mean of d wanders as a Brownian motion of its information does."""

    def __init__(self, looks: Sequence[_Look]) -> None:
        import numpy as np

        self.looks = looks
        information = 1 / np.array([look.variance for look in looks])
        steps = np.sqrt(np.diff(information, prepend=0.0))
        self._errors = (_normal() * steps).cumsum(axis=1) / information

    def certified(self, mean: float) -> float:
        """Return the probability that the retention is shown to be above the target, where d has this mean."""
        above, below = self._first(mean)
        return float((above < below).mean())

    def refused(self, mean: float) -> float:
        """Return the probability that it is shown to be below."""
        above, below = self._first(mean)
        return float((below < above).mean())

    def median(self, mean: float) -> int | None:
        """Return the number of documents after which half of the courses are certified; None where fewer are."""
        import numpy as np

        above, below = self._first(mean)
        look = int(np.sort(np.where(above < below, above, len(self.looks)))[DRAWS // 2])
        return self.looks[look].documents if look < len(self.looks) else None

    def _first(self, mean: float) -> "tuple[np.ndarray, np.ndarray]":
        """Return the index of the first look that shows the retention to be above the target, and of the first that
        shows it to be below, of each course; the number of looks where none does."""
        import numpy as np

        means, never = self._errors + mean, np.ones((DRAWS, 1), dtype=bool)
        above = means > np.array([look.above for look in self.looks])
        below = means < np.array([look.below for look in self.looks])
        return np.hstack([above, never]).argmax(axis=1), np.hstack([below, never]).argmax(axis=1)


@functools.cache
def _normal() -> "np.ndarray":
    """Return (draws, looks): independent standard normal numbers, always the same."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((DRAWS, len(LOOKS)))


def analyze_recipe_power(
    recipe: Recipe, suite: Suite, changes: Changes, baseline: Evaluation | None = None
) -> PowerAnalysis | None:
    """Return the power of all of `suite` for a recipe's target: by the documents and the scores above chance of the
    baseline when it is there, however far it is evaluated, else by what the tasks' definitions say. None where nothing
    says how many documents a task has.
    """
    if baseline is not None:
        asked = {task.about.task: task.of for task in baseline.tasks}
        return analyze_power(asked, suite, recipe.gate.retention, changes, headroom_of(baseline.scores(), suite))
    counts = {wanted.task: task_documents(wanted) for wanted in suite.tasks}
    known = {name: count for name, count in counts.items() if count}
    if len(known) < len(counts):
        return None
    without = {} if all(map(_has_expected, suite.tasks)) else {"expected": None}
    return analyze_power(known, suite, recipe.gate.retention, changes, TYPICAL_HEADROOM.model_copy(update=without))


def headroom_of(scores: Scores, suite: Suite) -> Headroom:
    """Return the scores above chance of a baseline, or what is typical where a task has too few documents as yet."""
    if any(len({document.cluster for document in scored}) < FEWEST_INDEPENDENT for scored in scores.values()):
        return TYPICAL_HEADROOM
    same = {task: [(document, document) for document in scored] for task, scored in scores.items()}
    both = weigh_both(same, suite, suite.policy)
    if not both.expected:
        return Headroom(accuracy=both.accuracy.overall.baseline, expected=None)
    return Headroom(
        accuracy=both.accuracy.overall.baseline,
        expected=both.expected.overall.baseline,
        unseen={name: moments.unseen / moments.leverage for name, moments in both.expected.moments.items()},
    )


def _has_expected(wanted: SuiteTask) -> bool:
    """Tell whether a task is going to have an expected score, as far as its files say: answers that are written once
    are matched, those that are offered are right or wrong by accuracy."""
    return wanted.seeds > 1 or (wanted.metric or load_task(wanted.task).metric).startswith("acc")
