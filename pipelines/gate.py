"""The gate: does the artifact keep the share of its baseline's score that the recipe asks for? (docs/gate.md)

A pure function over per-document scores. For document i, b_i is the baseline's score, c_i the artifact's and g_i the
chance level. Retention R = mean(c - g) / mean(b - g) reaches the target r exactly when the mean of

    d_i = (c_i - g_i) - r (b_i - g_i)

is not negative, so the test is on that mean and nothing is divided or rounded. Means are taken within each task and
weighted over tasks; variances are those of sums over clusters (documents that share a passage).

Sources: Miller 2411.00640 (paired and clustered errors of evaluations), Fieller 1954 (bounds of a ratio by inverting
the test of the difference), Wilson 1927 and Tango 1998 (bounds that account for the variance at the boundary), Holm
1979 (several floors).
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Literal

from pipelines.errors import Problem, refuse
from pipelines.recipe import Gate, Policy, Suite
from pipelines.schema import Frozen
from pipelines.scores import Document, Evaluation, Scores


class TaskVerdict(Frozen):
    """One task, as the gate sees it."""

    task: str
    documents: int
    clusters: int
    weight: float
    chance: float
    baseline: float
    candidate: float
    """Mean scores, in [0, 1]."""
    retention: float | None
    """None when the baseline does not score above chance."""
    lower_bound: float | None
    upper_bound: float | None
    lost: int
    """Documents whose score fell."""
    gained: int
    """Documents whose score rose."""
    below_floor: bool


class Verdict(Frozen):
    """What the gate says, and on what grounds."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    certified: bool
    """Whether the verdict is PASS because retention is shown, at the stated confidence, to be above the target."""
    reasons: tuple[str, ...]
    target: float
    retention: float | None
    """Point estimate over the suite."""
    lower_bound: float | None
    upper_bound: float | None
    """One-sided bounds of the retention at `policy.confidence`; None where there is none."""
    more_documents: int | None
    """How many more documents of this kind would decide, if the point estimate is right; None when decided."""
    tasks: tuple[TaskVerdict, ...]
    policy: Policy
    suite: str
    baseline_digest: str = ""
    candidate_digest: str = ""
    """Digests of the two models' files: a verdict belongs to exactly these bytes."""
    evaluations: tuple[Evaluation, ...] = ()
    """Baseline and candidate, when the scores came from evaluations."""


class _Moments(Frozen):
    """A task's paired scores, reduced to what any retention target needs."""

    documents: int
    clusters: int
    baseline: float
    candidate: float
    """Means above chance."""
    vbb: float
    vbc: float
    vcc: float
    """Cluster-robust variances and covariance of those two means."""
    leverage: float
    """The share of the mean that the largest cluster holds."""


class Statistic(Frozen):
    """The weighted mean of d at a target, as a function of the target."""

    baseline: float
    candidate: float
    vbb: float
    vbc: float
    vcc: float
    leverage: float

    def mean(self, target: float) -> float:
        """Of d; a tie is zero, though sums of floats miss it by 1e-16."""
        mean = self.candidate - target * self.baseline
        return 0.0 if abs(mean) < 1e-12 else mean

    def margin(self, target: float, confidence: float) -> float:
        """Distance from `mean` to its one-sided bound.

        The bound x solves x² = z²V + k A x, with k = max(-ln α, z²), V the variance of the mean and A the leverage:
        the most that one independent document can move the mean. The second term is the variance of the extra losses
        that the boundary supposes (as in Wilson's interval, the variance is the one under the hypothesis, not the
        observed).
        Without it, 50 documents of which none changed would "certify" 99%; with it, no observed loss bounds the rate
        of losses by 3/n at 95%, which is what the exact binomial test says.
        """
        return self._reach(self.variance(target), confidence)

    def variance(self, target: float) -> float:
        """Of the mean of d."""
        return max(0.0, self.vcc - 2 * target * self.vbc + target * target * self.vbb)

    def _reach(self, variance: float, confidence: float) -> float:
        z = quantile(confidence)
        sparse = _sparse(confidence) * self.leverage
        return (sparse + math.sqrt(sparse * sparse + 4 * z * z * variance)) / 2

    def above_chance(self, confidence: float) -> bool:
        """Whether the baseline is shown to score above chance; where it is not, no ratio to it means anything."""
        return self.baseline > self._reach(self.vbb, confidence)

    def lower(self, target: float, confidence: float) -> float:
        return self.mean(target) - self.margin(target, confidence)

    def upper(self, target: float, confidence: float) -> float:
        return self.mean(target) + self.margin(target, confidence)

    def retention(self) -> float | None:
        return self.candidate / self.baseline if self.baseline > 0 else None

    def retention_bound(self, bound: Callable[[float, float], float], confidence: float) -> float | None:
        """The target at which `bound` (of the mean) is zero: the bound of the ratio (Fieller)."""
        low, high = 0.0, 10.0
        if not self.above_chance(confidence) or bound(high, confidence) > 0:
            return None
        if bound(low, confidence) <= 0:
            return 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if bound(middle, confidence) > 0 else (low, middle)
        return low


def gate(baseline: Evaluation, candidate: Evaluation, wanted: Gate | float = 0.99) -> Verdict:
    """Judge `candidate` against `baseline`, two evaluations on the same suite, by that suite's policy.

    Raises:
        BadInput: the evaluations are not of the same suite, runtime and device, or their documents do not pair.
    """
    problems = [
        Problem("gate", f"baseline and candidate differ in their {name}: {ours} and {theirs}", "evaluate both alike")
        for name, ours, theirs in (
            ("suite", baseline.suite, candidate.suite),
            ("metrics", [task.metric for task in baseline.tasks], [task.metric for task in candidate.tasks]),
            ("runtime", baseline.runtime, candidate.runtime),
            ("device", baseline.device, candidate.device),
        )
        if ours != theirs
    ]
    refuse(problems)
    target = wanted.retention if isinstance(wanted, Gate) else wanted
    verdict = judge(baseline.scores(), candidate.scores(), baseline.suite, target)
    return verdict.model_copy(
        update={
            "baseline_digest": baseline.model_digest,
            "candidate_digest": candidate.model_digest,
            "evaluations": (baseline, candidate),
        }
    )


def judge(baseline: Scores, candidate: Scores, suite: Suite, target: float) -> Verdict:
    """The verdict over per-document scores: pure, and the only place that decides.

    Raises:
        BadInput: documents that are missing, doubled or different on one side. None is ever dropped.
    """
    policy = suite.policy
    names = [task.task for task in suite.tasks]
    missing = [name for name in names if not candidate.get(name)]
    broken = [name for name in names if any(not math.isfinite(d.score) for d in candidate.get(name, ()))]
    if missing or broken:
        reasons = [f"the artifact has no score for task {name}" for name in missing]
        reasons += [f"the artifact has scores that are not numbers on task {name}" for name in broken]
        return _verdict(suite, target, "FAIL", False, reasons)
    problems: list[Problem] = []
    pairs = {name: _paired(name, baseline.get(name, ()), candidate[name], problems) for name in names}
    refuse(problems)
    moments = {name: _moments(documents, policy) for name, documents in pairs.items()}
    weights = suite.shares
    overall = _combined(moments, weights)
    below = below_floor(moments, policy)
    tasks = tuple(
        _task_verdict(name, pairs[name], moments[name], weights[name], policy, name in below) for name in pairs
    )
    documents = sum(task.documents for task in tasks)
    name, certified, reasons, more = _decide(overall, tasks, policy, target, documents)
    return _verdict(suite, target, name, certified, reasons, overall, tasks, more)


def _decide(
    overall: Statistic, tasks: tuple[TaskVerdict, ...], policy: Policy, target: float, documents: int
) -> tuple[Literal["PASS", "FAIL", "INCONCLUSIVE"], bool, list[str], int | None]:
    """The verdict's name, whether it is a certified pass, its reasons, and the documents that would decide."""
    percent = f"{policy.confidence:.0%}"
    if not overall.above_chance(policy.confidence):
        reason = "the baseline is not shown to score above chance: this suite cannot judge this model"
        return "INCONCLUSIVE", False, [reason], None
    below = [task.task for task in tasks if task.below_floor]
    if below:
        assert policy.floor is not None
        return "FAIL", False, [f"task {name} is shown to keep less than {policy.floor:.0%}" for name in below], None
    if overall.upper(target, policy.confidence) < 0:
        return "FAIL", False, [f"retention is shown to be below {target:.2%} ({percent} confidence)"], None
    if overall.lower(target, policy.confidence) > 0:
        return "PASS", True, [f"retention is shown to be above {target:.2%} ({percent} confidence)"], None
    more = _more_documents(overall, target, policy.confidence, documents)
    undecided = f"the data does not decide at {percent} confidence"
    if policy.decide == "certified":
        return "INCONCLUSIVE", False, [f"{undecided}, and the policy asks for that"], more
    if overall.mean(target) >= 0:
        return "PASS", False, [f"{undecided}; the point estimate is not below {target:.2%}"], more
    return "FAIL", False, [f"{undecided}; the point estimate is below {target:.2%}"], more


def _verdict(
    suite: Suite,
    target: float,
    name: Literal["PASS", "FAIL", "INCONCLUSIVE"],
    certified: bool,
    reasons: list[str],
    overall: Statistic | None = None,
    tasks: tuple[TaskVerdict, ...] = (),
    more: int | None = None,
) -> Verdict:
    confidence = suite.policy.confidence
    return Verdict(
        verdict=name,
        certified=certified,
        reasons=tuple(reasons),
        target=target,
        retention=overall.retention() if overall else None,
        lower_bound=overall.retention_bound(overall.lower, confidence) if overall else None,
        upper_bound=overall.retention_bound(overall.upper, confidence) if overall else None,
        more_documents=more,
        tasks=tasks,
        policy=suite.policy,
        suite=suite.name,
    )


def _paired(
    task: str, baseline: tuple[Document, ...], candidate: tuple[Document, ...], problems: list[Problem]
) -> list[tuple[Document, Document]]:
    """The documents of both sides, paired by position and content; any difference is an error.

    A data set may hold the same document twice: its position tells the two apart, and their common cluster keeps
    them from counting as independent.
    """
    sides = {"baseline": baseline, "candidate": candidate}
    keyed: dict[str, dict[tuple[int, str, str, str], Document]] = {}
    for side, documents in sides.items():
        keyed[side] = {(d.id, d.doc_hash, d.prompt_hash, d.target_hash): d for d in documents}
        if len({d.id for d in documents}) < len(documents):
            problems.append(Problem(f"task {task}", f"the {side} has documents twice"))
        if any(not 0 <= d.score <= 1 for d in documents):
            problems.append(Problem(f"task {task}", f"the {side} has scores outside [0, 1]", "choose another metric"))
    ours, theirs = keyed["baseline"], keyed["candidate"]
    if unmatched := len(ours.keys() ^ theirs.keys()):
        what = f"{unmatched} documents or prompts are on one side only"
        problems.append(Problem(f"task {task}", what, "evaluate both models on the same documents"))
    elif len({d.cluster for d in baseline}) < 2:
        problems.append(Problem(f"task {task}", "has fewer than two independent documents", "raise its limit"))
    return [(document, theirs[key]) for key, document in ours.items() if key in theirs]


def _moments(pairs: list[tuple[Document, Document]], policy: Policy) -> _Moments:
    """Means above chance and their cluster-robust covariance (sums over clusters, G/(G-1) corrected)."""
    count = len(pairs)
    chance = 1.0 if policy.chance_correction else 0.0
    b = [ours.score - chance * ours.chance for ours, _ in pairs]
    c = [theirs.score - chance * ours.chance for ours, theirs in pairs]
    mean_b, mean_c = math.fsum(b) / count, math.fsum(c) / count
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (ours, _), b_i, c_i in zip(pairs, b, c, strict=True):
        total = sums[ours.cluster]
        total[0] += b_i - mean_b
        total[1] += c_i - mean_c
        total[2] += 1
    clusters = len(sums)
    scale = clusters / (clusters - 1) / count**2
    return _Moments(
        documents=count,
        clusters=clusters,
        baseline=mean_b,
        candidate=mean_c,
        vbb=scale * math.fsum(x * x for x, _, _ in sums.values()),
        vbc=scale * math.fsum(x * y for x, y, _ in sums.values()),
        vcc=scale * math.fsum(y * y for _, y, _ in sums.values()),
        leverage=max(size for _, _, size in sums.values()) / count,
    )


def _combined(moments: Mapping[str, _Moments], weights: Mapping[str, float]) -> Statistic:
    """The statistic over strata: weighted means, independent between tasks."""
    return Statistic(
        baseline=math.fsum(weights[name] * m.baseline for name, m in moments.items()),
        candidate=math.fsum(weights[name] * m.candidate for name, m in moments.items()),
        vbb=math.fsum(weights[name] ** 2 * m.vbb for name, m in moments.items()),
        vbc=math.fsum(weights[name] ** 2 * m.vbc for name, m in moments.items()),
        vcc=math.fsum(weights[name] ** 2 * m.vcc for name, m in moments.items()),
        leverage=max(weights[name] * m.leverage for name, m in moments.items()),
    )


def _task_verdict(
    name: str,
    pairs: list[tuple[Document, Document]],
    moments: _Moments,
    weight: float,
    policy: Policy,
    below: bool,
) -> TaskVerdict:
    alone = _combined({name: moments}, {name: 1.0})
    return TaskVerdict(
        task=name,
        documents=moments.documents,
        clusters=moments.clusters,
        weight=weight,
        chance=statistics.fmean(ours.chance for ours, _ in pairs),
        baseline=statistics.fmean(ours.score for ours, _ in pairs),
        candidate=statistics.fmean(theirs.score for _, theirs in pairs),
        retention=alone.retention(),
        lower_bound=alone.retention_bound(alone.lower, policy.confidence),
        upper_bound=alone.retention_bound(alone.upper, policy.confidence),
        lost=sum(theirs.score < ours.score for ours, theirs in pairs),
        gained=sum(theirs.score > ours.score for ours, theirs in pairs),
        below_floor=below,
    )


def below_floor(moments: Mapping[str, _Moments], policy: Policy) -> set[str]:
    """The tasks that are shown to be below the policy's floor, so that the chance of naming any task that is not stays
    within α (Holm 1979): of k tasks each is tested at α/k, and what is left of them after each finding anew.
    """
    if policy.floor is None:
        return set()
    alone = {name: _combined({name: task}, {name: 1.0}) for name, task in moments.items()}
    open_ = {name for name, task in alone.items() if task.above_chance(policy.confidence)}
    found: set[str] = set()
    while left := len(moments) - len(found):
        confidence = 1 - (1 - policy.confidence) / left
        new = {name for name in open_ - found if alone[name].upper(policy.floor, confidence) < 0}
        if not new:
            break
        found |= new
    return found


def _more_documents(overall: Statistic, target: float, confidence: float, documents: int) -> int | None:
    """Documents to add so that the margin shrinks to the distance seen; None when that distance is zero."""
    distance = abs(overall.mean(target))
    if distance == 0:
        return None
    needed = quantile(confidence) ** 2 * overall.variance(target) + _sparse(confidence) * overall.leverage * distance
    factor = needed / distance**2
    return max(1, math.ceil((factor - 1) * documents))


def quantile(confidence: float) -> float:
    """Of the standard normal distribution."""
    return statistics.NormalDist().inv_cdf(confidence)


def _sparse(confidence: float) -> float:
    """Weight of the leverage in the margin: at least the -ln α of the exact test with no observed loss."""
    return max(-math.log(1 - confidence), quantile(confidence) ** 2)
