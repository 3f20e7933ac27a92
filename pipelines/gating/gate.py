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
from collections.abc import Sequence

from pipelines.core.bounds import level
from pipelines.core.errors import Problem, refuse
from pipelines.evaluation.scores import Evaluation, Scores
from pipelines.gating.measures import LABELS, Measure, measure
from pipelines.gating.pairs import Pairs, pair_documents, pairing_problems
from pipelines.gating.statistic import (
    PairedMoments,
    Statistic,
    combine,
    documents_to_decide,
    paired_moments,
    tasks_below_floor,
)
from pipelines.gating.verdict import Decision, TaskVerdict, Verdict
from pipelines.recipe.recipe import Gate, check_retention
from pipelines.recipe.suite import Policy, Suite
from pipelines.runtimes.distance import Distance

AT_CHANCE = "the baseline is not shown to score above chance: this suite cannot judge this model"
"""Reason of a verdict that no artifact could change."""


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
            the policy limits what was not measured, or `wanted` is no share that a recipe may ask for.
    """
    target = wanted.retention if isinstance(wanted, Gate) else wanted
    check_retention(target, f"retention {target:g}")
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
    """Return the baseline's documents that a stopped candidate came to: by place, so that they must still pair."""
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
    """Return the verdict over per-document scores. Nothing else decides, and nothing is read or run for it.

    Raises:
        BadInput: documents are missing, doubled or different on one side (none is ever dropped), or the policy limits
            what was not measured.
    """
    policy = suite.policy if confidence is None else suite.policy.model_copy(update={"confidence": confidence})
    names = [task.task for task in suite.tasks]
    missing = [name for name in names if not candidate.get(name)]
    broken = [name for name in names if any(not math.isfinite(d.score) for d in candidate.get(name, ()))]
    if missing or broken:
        reasons = [f"the artifact has no score for task {name}" for name in missing]
        reasons += [f"the artifact has scores that are not numbers on task {name}" for name in broken]
        return _verdict(suite, policy, target, Decision(verdict="FAIL", shown=True, reasons=tuple(reasons)))
    refuse(problem for name in names for problem in pairing_problems(name, baseline.get(name, ()), candidate[name]))
    pairs = {name: pair_documents(baseline[name], candidate[name]) for name in names}
    moments = {name: paired_moments(documents, policy) for name, documents in pairs.items()}
    weights = suite.shares
    overall = combine(moments, weights)
    below = tasks_below_floor(moments, policy)
    tasks = tuple(
        _task_verdict(name, pairs[name], moments[name], weights[name], policy, name in below) for name in pairs
    )
    measures = measure(pairs, distance, policy.limits, policy.confidence)
    documents = sum(task.documents for task in tasks)
    decision = decide(overall, tasks, measures, policy, target, documents)
    return _verdict(suite, policy, target, decision, overall, tasks, measures)


def decide(
    overall: Statistic,
    tasks: tuple[TaskVerdict, ...],
    measures: tuple[Measure, ...],
    policy: Policy,
    target: float,
    documents: int,
) -> Decision:
    """Return what `documents` paired documents show of the retention, the tasks' floor and the policy's limits."""
    percent = level(policy.confidence)
    if not overall.above_chance(policy.confidence):
        return Decision(verdict="INCONCLUSIVE", reasons=(AT_CHANCE,))
    broken = [f"task {task.task} is shown to keep less than {policy.floor:.0%}" for task in tasks if task.below_floor]
    broken += [f"{LABELS[m.name]} is shown to be beyond {m.limit:g}" for m in measures if m.says == "beyond"]
    if overall.upper(target, policy.confidence) < 0:
        broken.append(f"retention is shown to be below {target:.2%} ({percent} confidence)")
    if broken:
        return Decision(verdict="FAIL", shown=True, reasons=tuple(broken))
    open_ = [measure for measure in measures if measure.says == "undecided"]
    kept = overall.lower(target, policy.confidence) > 0
    if kept and not open_:
        limits = ", and every limit to be kept" if any(m.says for m in measures) else ""
        reason = f"retention is shown to be above {target:.2%}{limits} ({percent} confidence)"
        return Decision(verdict="PASS", shown=True, reasons=(reason,))
    return _undecided(overall, open_, kept, policy, target, documents, percent)


def _undecided(
    overall: Statistic,
    open_: Sequence[Measure],
    kept: bool,
    policy: Policy,
    target: float,
    documents: int,
    percent: str,
) -> Decision:
    """Return the decision where the data shows none: by the policy, the point estimates rule, or nobody."""
    more = None if kept else documents_to_decide(overall, target, policy.confidence, documents)
    what = [] if kept else ["retention"]
    what += [LABELS[measure.name] for measure in open_]
    undecided = f"the data does not decide at {percent} confidence" + (f" on {', '.join(what)}" if open_ else "")
    if policy.decide == "certified":
        reason = f"{undecided}, and the policy asks for that"
        return Decision(verdict="INCONCLUSIVE", reasons=(reason,), more=more)
    beyond = [f"{LABELS[measure.name]} is beyond {measure.limit:g}" for measure in open_ if not measure.within]
    if overall.mean(target) < 0:
        beyond.insert(0, f"the point estimate is below {target:.2%}")
    if beyond:
        return Decision(verdict="FAIL", reasons=(f"{undecided}; {', and '.join(beyond)}",), more=more)
    return Decision(verdict="PASS", reasons=(f"{undecided}; the point estimate is not below {target:.2%}",), more=more)


def _verdict(
    suite: Suite,
    policy: Policy,
    target: float,
    decision: Decision,
    overall: Statistic | None = None,
    tasks: tuple[TaskVerdict, ...] = (),
    measures: tuple[Measure, ...] = (),
) -> Verdict:
    """Return the verdict of a decision, with the numbers that it rests on."""
    confidence = policy.confidence
    return Verdict(
        verdict=decision.verdict,
        certified=decision.verdict == "PASS" and decision.shown,
        shown=decision.shown,
        confidence=confidence,
        reasons=decision.reasons,
        target=target,
        retention=overall.retention() if overall and overall.above_chance(confidence) else None,
        lower_bound=overall.retention_bound(overall.lower, confidence) if overall else None,
        upper_bound=overall.retention_bound(overall.upper, confidence) if overall else None,
        more_documents=decision.more,
        tasks=tasks,
        measures=measures,
        policy=suite.policy,
        suite=suite.name,
    )


def _task_verdict(
    name: str,
    pairs: Pairs,
    moments: PairedMoments,
    weight: float,
    policy: Policy,
    below: bool,
) -> TaskVerdict:
    """Return what the gate sees of one task alone."""
    alone = combine({name: moments}, {name: 1.0})
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
