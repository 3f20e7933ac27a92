"""The decision: what both statistics, the tasks' floor and the policy's limits together say of an artifact."""

from collections.abc import Mapping, Sequence

from pipelines.core.bounds import level
from pipelines.gating.measures import LABELS, Measure
from pipelines.gating.spending import shared
from pipelines.gating.statistic import Statistic, documents_to_decide
from pipelines.gating.verdict import Decision, Side, TaskVerdict
from pipelines.recipe.suite import Policy, ScoreKind

AT_CHANCE = "the baseline is not shown to score above chance: this suite cannot judge this model"
"""Reason of a verdict that no artifact could change."""
SCORES: dict[ScoreKind, str] = {"expected": "the expected score", "accuracy": "accuracy"}
"""Names of the statistics, for people."""
CHOSEN_SHARE = 0.8
"""Share of α that the statistic which must be shown may use up to refuse an artifact; the other has the rest."""


def sides(overall: Mapping[ScoreKind, Statistic], policy: Policy, target: float) -> dict[ScoreKind, Side]:
    """Return the side of the target on which the retention is shown to be, by each statistic.

    An artifact is refused when either is shown to be below. Two tests err up to twice as often as one, so the one that
    the policy asks for has `CHOSEN_SHARE` of α for that, and the other the rest (Bonferroni).
    """
    return {
        kind: _side(one, policy.confidence, refusing(kind, overall, policy), target) for kind, one in overall.items()
    }


def refusing(kind: ScoreKind, overall: Mapping[ScoreKind, Statistic], policy: Policy) -> float:
    """Return the confidence that it takes to show that a statistic is below the target."""
    share = CHOSEN_SHARE if kind == policy.statistic else 1 - CHOSEN_SHARE
    return shared(policy.confidence, share if len(overall) > 1 else 1.0)


def _side(statistic: Statistic, confidence: float, refusing: float, target: float) -> Side:
    if not statistic.above_chance(confidence):
        return None
    if statistic.upper(target, refusing) < 0:
        return "below"
    return "above" if statistic.lower(target, confidence) > 0 else None


def decide(
    overall: Mapping[ScoreKind, Statistic],
    tasks: tuple[TaskVerdict, ...],
    measures: tuple[Measure, ...],
    policy: Policy,
    target: float,
    documents: int,
) -> Decision:
    """Return what `documents` paired documents show of the retention by both statistics (or the one that there is),
    the tasks' floor and the policy's limits."""
    percent = level(policy.confidence)
    if not overall[policy.statistic].above_chance(policy.confidence):
        return Decision(verdict="INCONCLUSIVE", reasons=(AT_CHANCE,))
    shown = sides(overall, policy, target)
    broken = [f"task {task.task} is shown to keep less than {policy.floor:.0%}" for task in tasks if task.below_floor]
    broken += [f"{LABELS[m.name]} is shown to be beyond {m.limit:g}" for m in measures if m.says == "beyond"]
    if "below" in shown.values():
        broken.append(f"retention is shown to be below {target:.2%}{_shown(shown, 'below')} ({percent} confidence)")
    if broken:
        return Decision(verdict="FAIL", shown=True, reasons=tuple(broken))
    open_ = [measure for measure in measures if measure.says == "undecided"]
    is_kept = shown[policy.statistic] == "above"
    if is_kept and not open_:
        limits = ", and every limit to be kept" if any(m.says for m in measures) else ""
        reason = f"retention is shown to be above {target:.2%}{_shown(shown, 'above')}{limits} ({percent} confidence)"
        return Decision(verdict="PASS", shown=True, reasons=(reason,))
    return _undecided(overall, open_, is_kept, policy, target, documents)


def _shown(shown: Mapping[ScoreKind, Side], side: Side) -> str:
    """Return which statistics are shown to be on that side of the target; nothing where there is one only."""
    names = [SCORES[kind] for kind in SCORES if shown.get(kind) == side]
    return f" on {' and on '.join(names)}" if len(shown) > 1 else ""


def _undecided(
    overall: Mapping[ScoreKind, Statistic],
    open_: Sequence[Measure],
    is_kept: bool,
    policy: Policy,
    target: float,
    documents: int,
) -> Decision:
    """Return the decision where the data shows none: by the policy, the point estimates rule, or nobody."""
    chosen = overall[policy.statistic]
    more = None if is_kept else documents_to_decide(chosen, target, policy.confidence, documents)
    what = [] if is_kept else ["retention"]
    what += [LABELS[measure.name] for measure in open_]
    undecided = f"the data does not decide at {level(policy.confidence)} confidence"
    undecided += f" on {', '.join(what)}" if open_ else ""
    if policy.decide == "certified":
        reason = f"{undecided}, and the policy asks for that"
        return Decision(verdict="INCONCLUSIVE", reasons=(reason,), more=more)
    beyond = [f"{LABELS[measure.name]} is beyond {measure.limit:g}" for measure in open_ if not measure.within]
    surer = min((kind for kind in SCORES if kind in overall), key=lambda kind: overall[kind].error(target))
    estimate = "the point estimate" + (f" of {SCORES[surer]}" if len(overall) > 1 else "")
    if overall[surer].mean(target) < 0:
        beyond.insert(0, f"{estimate} is below {target:.2%}")
    if beyond:
        return Decision(verdict="FAIL", reasons=(f"{undecided}; {', and '.join(beyond)}",), more=more)
    return Decision(verdict="PASS", reasons=(f"{undecided}; {estimate} is not below {target:.2%}",), more=more)
