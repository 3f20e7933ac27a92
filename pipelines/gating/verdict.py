"""The verdict, as data: what the gate says, of the suite and of each task, and on what grounds."""

from typing import Literal

from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.scores import Evaluation
from pipelines.gating.measures import Measure
from pipelines.recipe.suite import Policy, ScoreKind

Side = Literal["above", "below"] | None
"""Side of the target on which a retention is shown to be; None where neither is shown."""


class Kept(Frozen):
    """What an artifact keeps of its baseline by one statistic, over one task or the suite."""

    baseline: float
    """Mean score of the baseline, in [0, 1]."""
    candidate: float
    """Mean score of the artifact, in [0, 1]."""
    retention: float | None
    """Point estimate; None where the baseline does not score above chance."""
    lower_bound: float | None
    """Lower one-sided bound of the retention; None where there is none."""
    upper_bound: float | None
    """Upper one-sided bound of the retention; None where there is none."""
    says: Side = None
    """Side of the target on which the retention is shown to be."""


class TaskVerdict(Frozen):
    """One task, as the gate sees it. Scores, retention and bounds are those of the accuracy."""

    task: str
    documents: int
    clusters: int
    """Number of groups of documents that share nothing."""
    weight: float
    """Share of the task in the suite."""
    chance: float
    """Mean score of guessing, in [0, 1]."""
    baseline: float
    """Mean score of the baseline, in [0, 1]."""
    candidate: float
    """Mean score of the artifact, in [0, 1]."""
    retention: float | None
    """Point estimate on this task; None where the baseline does not score above chance."""
    lower_bound: float | None
    """Lower one-sided bound of the retention; None where there is none."""
    upper_bound: float | None
    """Upper one-sided bound of the retention; None where there is none."""
    lost: int
    """Number of documents whose score fell."""
    gained: int
    """Number of documents whose score rose."""
    below_floor: bool
    """Whether the task is shown to keep less than the policy's floor."""
    expected: Kept | None = None
    """What is kept of the expected score; None where the task has none."""
    deviation: float | None = None
    """Standard deviation of the change of a document's expected score; None where the task has none."""
    temperature: float | None = None
    """Temperature of the expected score's softmax, fitted on the baseline; None where it is 1."""


class Verdict(Frozen):
    """What the gate says, and on what grounds."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    certified: bool
    """Whether the verdict is PASS because the data shows, at the stated confidence, that retention is above the target
    and every limit is kept."""
    shown: bool
    """Whether the data shows the verdict at the stated confidence: no further document is needed."""
    confidence: float
    """Confidence of each one-sided bound: the policy's, less what earlier looks at the data used up."""
    reasons: tuple[str, ...]
    target: float
    """Retention that the recipe asks for."""
    statistic: ScoreKind = "accuracy"
    """ScoreKind whose retention must be shown."""
    retention: float | None
    """Point estimate over the suite, of that statistic; None where the baseline is not shown to score above chance."""
    lower_bound: float | None
    """Lower one-sided bound of the retention; None where there is none."""
    upper_bound: float | None
    """Upper one-sided bound of the retention; None where there is none."""
    accuracy: Kept | None = None
    """What is kept of the accuracy."""
    expected: Kept | None = None
    """What is kept of the expected score; None where a task has none."""
    more_documents: int | None
    """Number of further documents of this kind that would decide, if the point estimate is right; None when decided."""
    spared: int = 0
    """Number of the suite's documents that were not evaluated, because the verdict was shown without them."""
    tasks: tuple[TaskVerdict, ...]
    measures: tuple[Measure, ...] = ()
    policy: Policy
    suite: str
    baseline_digest: str = ""
    """Digest of the baseline's files: a verdict belongs to exactly these bytes."""
    candidate_digest: str = ""
    """Digest of the artifact's files."""
    evaluations: tuple[Evaluation, ...] = ()
    """Baseline and candidate, when the scores came from evaluations."""


class Decision(Frozen):
    """The word of a verdict, and its reasons."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    shown: bool = False
    reasons: tuple[str, ...]
    more: int | None = None
    """Number of further documents that would decide."""
