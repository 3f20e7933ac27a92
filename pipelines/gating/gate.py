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

import statistics
from collections.abc import Mapping, Sequence

from pipelines.core.errors import Problem, refuse
from pipelines.evaluation.scores import Evaluation, Scores
from pipelines.gating.decision import decide, sides
from pipelines.gating.expected import EXPECTED_REMEDY, NO_EXPECTED
from pipelines.gating.measures import Measure, measure
from pipelines.gating.pairs import Pairs, pair_documents, pairing_problems
from pipelines.gating.statistic import Scored, tasks_below_floor
from pipelines.gating.verdict import Decision, Kept, TaskVerdict, Verdict
from pipelines.gating.weighed import Both, weigh_both
from pipelines.recipe.recipe import Gate, check_retention
from pipelines.recipe.suite import Policy, ScoreKind, Suite
from pipelines.runtimes.distance import Distance


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
    broken = [name for name in names if not all(d.is_finite for d in candidate.get(name, ()))]
    if missing or broken:
        reasons = [f"the artifact has no score for task {name}" for name in missing]
        reasons += [f"the artifact has scores that are not numbers on task {name}" for name in broken]
        return _verdict(suite, policy, target, Decision(verdict="FAIL", shown=True, reasons=tuple(reasons)))
    refuse(problem for name in names for problem in pairing_problems(name, baseline.get(name, ()), candidate[name]))
    pairs = {name: pair_documents(baseline[name], candidate[name]) for name in names}
    both = weigh_both(pairs, suite, policy)
    refuse(_without_expected(both, pairs) if policy.statistic == "expected" else [])
    found = both.found
    overall = {kind: weighed.overall for kind, weighed in found.items()}
    below = tasks_below_floor(found[policy.statistic].moments, policy)
    tasks = tuple(_task_verdict(name, pairs[name], both, suite.shares[name], policy, name in below) for name in pairs)
    measures = measure(pairs, distance, policy.limits, policy.confidence)
    documents = sum(task.documents for task in tasks)
    decision = decide(overall, tasks, measures, policy, target, documents)
    shown = sides(overall, policy, target)
    kept = {
        kind: weighed.kept(suite.shares, policy.confidence).model_copy(update={"says": shown[kind]})
        for kind, weighed in found.items()
    }
    return _verdict(suite, policy, target, decision, kept, tasks, measures)


def _without_expected(both: Both, pairs: Mapping[str, Pairs]) -> list[Problem]:
    """Return the problem of each task that has no expected score, which the policy asks for."""
    return [Problem(f"task {name}", NO_EXPECTED, EXPECTED_REMEDY) for name in pairs if name not in both.temperatures]


def _verdict(
    suite: Suite,
    policy: Policy,
    target: float,
    decision: Decision,
    kept: Mapping[ScoreKind, Kept] | None = None,
    tasks: tuple[TaskVerdict, ...] = (),
    measures: tuple[Measure, ...] = (),
) -> Verdict:
    """Return the verdict of a decision, with the numbers that it rests on."""
    kept = kept or {}
    chosen = kept.get(policy.statistic)
    return Verdict(
        verdict=decision.verdict,
        certified=decision.verdict == "PASS" and decision.shown,
        shown=decision.shown,
        confidence=policy.confidence,
        reasons=decision.reasons,
        target=target,
        statistic=policy.statistic,
        retention=chosen.retention if chosen else None,
        lower_bound=chosen.lower_bound if chosen else None,
        upper_bound=chosen.upper_bound if chosen else None,
        accuracy=kept.get("accuracy"),
        expected=kept.get("expected"),
        more_documents=decision.more,
        tasks=tasks,
        measures=measures,
        policy=suite.policy,
        suite=suite.name,
    )


def _task_verdict(name: str, pairs: Pairs, both: Both, weight: float, policy: Policy, below: bool) -> TaskVerdict:
    """Return what the gate sees of one task alone."""
    moments = both.accuracy.moments[name]
    accuracy = both.accuracy.kept_of(name, policy.confidence)
    offered = both.offered if name in both.temperatures else None
    return TaskVerdict(
        task=name,
        documents=moments.documents,
        clusters=moments.clusters,
        weight=weight,
        chance=statistics.fmean(ours.chance for ours, _ in pairs),
        baseline=accuracy.baseline,
        candidate=accuracy.candidate,
        retention=accuracy.retention,
        lower_bound=accuracy.lower_bound,
        upper_bound=accuracy.upper_bound,
        lost=sum(theirs.score < ours.score for ours, theirs in pairs),
        gained=sum(theirs.score > ours.score for ours, theirs in pairs),
        below_floor=below,
        expected=offered.kept_of(name, policy.confidence) if offered else None,
        deviation=_deviation(offered.scored[name]) if offered else None,
        temperature=both.temperatures.get(name),
    )


def _deviation(scored: Sequence[Scored]) -> float:
    """Return the standard deviation of the change of a document's score."""
    return statistics.pstdev(one.candidate - one.baseline for one in scored)
