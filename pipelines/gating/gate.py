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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pipelines.core.bounds import level, quantile, reach, sparse
from pipelines.core.errors import Problem, refuse
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.scores import Document, Evaluation, Scores
from pipelines.gating.measures import LABELS, Measure, measure
from pipelines.recipe.recipe import Gate
from pipelines.recipe.suite import Policy, Suite
from pipelines.runtimes.distance import Distance

FEWEST_INDEPENDENT = 2
"""Documents of a task: a variance takes two."""
TOO_FEW = "has fewer than two independent documents"
MORE = "raise its limit, or use another suite"


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
    """Whether the verdict is PASS because the data shows, at the stated confidence, that retention is above the target
    and every limit is kept."""
    shown: bool
    """Whether the data shows the verdict at the stated confidence: no further document is needed."""
    confidence: float
    """Of each one-sided bound: the policy's, less what earlier looks at the data used up."""
    reasons: tuple[str, ...]
    target: float
    retention: float | None
    """Point estimate over the suite."""
    lower_bound: float | None
    upper_bound: float | None
    """One-sided bounds of the retention; None where there is none."""
    more_documents: int | None
    """How many more documents of this kind would decide, if the point estimate is right; None when decided."""
    spared: int = 0
    """Documents of the suite that were not evaluated, because the verdict was shown without them."""
    tasks: tuple[TaskVerdict, ...]
    measures: tuple[Measure, ...] = ()
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
        """Distance from `mean` to its one-sided bound (`bounds.reach`)."""
        return reach(self.variance(target), self.leverage, confidence)

    def variance(self, target: float) -> float:
        """Of the mean of d."""
        return max(0.0, self.vcc - 2 * target * self.vbc + target * target * self.vbb)

    def above_chance(self, confidence: float) -> bool:
        """Whether the baseline is shown to score above chance; where it is not, no ratio to it means anything."""
        return self.baseline > reach(self.vbb, self.leverage, confidence)

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


def gate(
    baseline: Evaluation,
    candidate: Evaluation,
    wanted: Gate | float = 0.99,
    distance: Distance | None = None,
    confidence: float | None = None,
) -> Verdict:
    """Judge `candidate` against `baseline`, two evaluations on the same suite, by that suite's policy.

    A candidate whose evaluation was stopped is judged on the documents that it answered. `distance` is what the verify
    stage measured on held-out text. `confidence` is the policy's unless given.

    Raises:
        BadInput: the evaluations are not of the same suite, runtime, device and dtype, their documents do not pair, or
            the policy limits what was not measured.
    """
    problems = [
        Problem("gate", f"baseline and candidate differ in their {name}: {ours} and {theirs}", "evaluate both alike")
        for name, ours, theirs in (
            ("suite", baseline.suite, candidate.suite),
            ("metrics", [t.about.metric for t in baseline.tasks], [t.about.metric for t in candidate.tasks]),
            ("runtime", baseline.runtime, candidate.runtime),
            ("device", baseline.device, candidate.device),
            ("dtype", baseline.dtype, candidate.dtype),
        )
        if ours != theirs
    ]
    refuse(problems)
    target = wanted.retention if isinstance(wanted, Gate) else wanted
    theirs = candidate.scores()
    ours = _answered(baseline.scores(), theirs) if candidate.documents < candidate.of else baseline.scores()
    verdict = judge(ours, theirs, baseline.suite, target, distance, confidence)
    return verdict.model_copy(
        update={
            "spared": candidate.of - candidate.documents,
            "baseline_digest": baseline.model_digest,
            "candidate_digest": candidate.model_digest,
            "evaluations": (baseline, candidate),
        }
    )


def _answered(baseline: Scores, candidate: Scores) -> Scores:
    """The baseline's documents that a stopped candidate came to: by their place, so that they must still pair."""
    seen = {task: {document.id for document in documents} for task, documents in candidate.items()}
    return {
        task: tuple(document for document in documents if document.id in seen.get(task, ()))
        for task, documents in baseline.items()
    }


def judge(
    baseline: Scores,
    candidate: Scores,
    suite: Suite,
    target: float,
    distance: Distance | None = None,
    confidence: float | None = None,
) -> Verdict:
    """The verdict over per-document scores: pure, and the only place that decides.

    Raises:
        BadInput: documents that are missing, doubled or different on one side. None is ever dropped. A limit of the
            policy for what was not measured.
    """
    policy = suite.policy if confidence is None else suite.policy.model_copy(update={"confidence": confidence})
    names = [task.task for task in suite.tasks]
    missing = [name for name in names if not candidate.get(name)]
    broken = [name for name in names if any(not math.isfinite(d.score) for d in candidate.get(name, ()))]
    if missing or broken:
        reasons = [f"the artifact has no score for task {name}" for name in missing]
        reasons += [f"the artifact has scores that are not numbers on task {name}" for name in broken]
        return _verdict(suite, policy, target, _Decision(verdict="FAIL", shown=True, reasons=tuple(reasons)))
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
    measures = measure(pairs, distance, policy.limits, policy.confidence)
    documents = sum(task.documents for task in tasks)
    decision = _decide(overall, tasks, measures, policy, target, documents)
    return _verdict(suite, policy, target, decision, overall, tasks, measures)


class _Decision(Frozen):
    """What the verdict says, and why."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    shown: bool = False
    reasons: tuple[str, ...]
    more: int | None = None
    """Documents that would decide."""


def _decide(
    overall: Statistic,
    tasks: tuple[TaskVerdict, ...],
    measures: tuple[Measure, ...],
    policy: Policy,
    target: float,
    documents: int,
) -> _Decision:
    percent = level(policy.confidence)
    if not overall.above_chance(policy.confidence):
        reason = "the baseline is not shown to score above chance: this suite cannot judge this model"
        return _Decision(verdict="INCONCLUSIVE", reasons=(reason,))
    broken = [f"task {task.task} is shown to keep less than {policy.floor:.0%}" for task in tasks if task.below_floor]
    broken += [f"{LABELS[m.name]} is shown to be beyond {m.limit:g}" for m in measures if m.says == "beyond"]
    if overall.upper(target, policy.confidence) < 0:
        broken.append(f"retention is shown to be below {target:.2%} ({percent} confidence)")
    if broken:
        return _Decision(verdict="FAIL", shown=True, reasons=tuple(broken))
    open_ = [measure for measure in measures if measure.says == "undecided"]
    kept = overall.lower(target, policy.confidence) > 0
    if kept and not open_:
        limits = ", and every limit to be kept" if any(m.says for m in measures) else ""
        reason = f"retention is shown to be above {target:.2%}{limits} ({percent} confidence)"
        return _Decision(verdict="PASS", shown=True, reasons=(reason,))
    return _undecided(overall, open_, kept, policy, target, documents, percent)


def _undecided(
    overall: Statistic,
    open_: Sequence[Measure],
    kept: bool,
    policy: Policy,
    target: float,
    documents: int,
    percent: str,
) -> _Decision:
    """When the data does not decide: by the policy, the point estimates rule, or nobody."""
    more = None if kept else _more_documents(overall, target, policy.confidence, documents)
    what = [] if kept else ["retention"]
    what += [LABELS[measure.name] for measure in open_]
    undecided = f"the data does not decide at {percent} confidence" + (f" on {', '.join(what)}" if open_ else "")
    if policy.decide == "certified":
        reason = f"{undecided}, and the policy asks for that"
        return _Decision(verdict="INCONCLUSIVE", reasons=(reason,), more=more)
    beyond = [f"{LABELS[measure.name]} is beyond {measure.limit:g}" for measure in open_ if not measure.within]
    if overall.mean(target) < 0:
        beyond.insert(0, f"the point estimate is below {target:.2%}")
    if beyond:
        return _Decision(verdict="FAIL", reasons=(f"{undecided}; {', and '.join(beyond)}",), more=more)
    return _Decision(verdict="PASS", reasons=(f"{undecided}; the point estimate is not below {target:.2%}",), more=more)


def _verdict(
    suite: Suite,
    policy: Policy,
    target: float,
    decision: _Decision,
    overall: Statistic | None = None,
    tasks: tuple[TaskVerdict, ...] = (),
    measures: tuple[Measure, ...] = (),
) -> Verdict:
    confidence = policy.confidence
    return Verdict(
        verdict=decision.verdict,
        certified=decision.verdict == "PASS" and decision.shown,
        shown=decision.shown,
        confidence=confidence,
        reasons=decision.reasons,
        target=target,
        retention=overall.retention() if overall else None,
        lower_bound=overall.retention_bound(overall.lower, confidence) if overall else None,
        upper_bound=overall.retention_bound(overall.upper, confidence) if overall else None,
        more_documents=decision.more,
        tasks=tasks,
        measures=measures,
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
            problems.append(Problem(f"task {task}", f"the {side} has documents twice", "evaluate it again"))
        if any(not 0 <= d.score <= 1 for d in documents):
            problems.append(Problem(f"task {task}", f"the {side} has scores outside [0, 1]", "choose another metric"))
    ours, theirs = keyed["baseline"], keyed["candidate"]
    if unmatched := len(ours.keys() ^ theirs.keys()):
        what = f"{unmatched} documents or prompts are on one side only"
        problems.append(Problem(f"task {task}", what, "evaluate both models on the same documents"))
    elif len({d.cluster for d in baseline}) < FEWEST_INDEPENDENT:
        problems.append(Problem(f"task {task}", TOO_FEW, MORE))
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
    needed = quantile(confidence) ** 2 * overall.variance(target) + sparse(confidence) * overall.leverage * distance
    factor = needed / distance**2
    return max(1, math.ceil((factor - 1) * documents))
