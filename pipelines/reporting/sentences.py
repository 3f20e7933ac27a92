"""Sentences that card, report and console all say about a run, each made in one place."""

from typing import NamedTuple

from pipelines.core.bounds import level
from pipelines.gating.decision import SCORES
from pipelines.gating.measures import AT_LEAST, LABELS, Measure
from pipelines.gating.verdict import Kept, TaskVerdict, Verdict
from pipelines.recipe.suite import ScoreKind
from pipelines.reporting.record import GateRecord
from pipelines.runtimes.distance import Distance
from pipelines.verification.reader import Reader

NO_LICENCE = "The base model declares no licence that is known: find out what you may do with this before you use it."

SHORT: dict[ScoreKind, str] = {"accuracy": "accuracy", "expected": "expected score"}
"""Names of the statistics as headings."""
Retained = Kept | TaskVerdict | Verdict | GateRecord
"""What has a retention and its bounds."""


class DistanceWords(NamedTuple):
    """A distance's estimates, each with its standard error."""

    perplexity_ratio: str
    divergence: str
    """Divergence in nats per token."""
    same_top: str


def distance_words(distance: Distance) -> DistanceWords:
    """Return the estimates of `distance` as people read them."""
    return DistanceWords(
        perplexity_ratio=f"{distance.perplexity_ratio:.4f} ± {distance.perplexity_ratio_error:.4f}",
        divergence=f"{distance.divergence:.4f} ± {distance.divergence_error:.4f} nats per token",
        same_top=f"{distance.same_top:.1%} ± {distance.same_top_error:.1%}",
    )


def distance_line(distance: Distance) -> str:
    """Return perplexity ratio, divergence and agreement, each with its standard error."""
    said = distance_words(distance)
    measured = f"perplexity x {said.perplexity_ratio}, KL divergence {said.divergence}"
    return f"{measured}, same likeliest token {said.same_top} ({distance.tokens} held-out tokens)"


def reader_line(reader: Reader) -> str:
    """Return a line on which program loaded the artifact, and how far its logits are from those evaluated."""
    if reader.not_loaded:
        return f"not loaded here: {reader.not_loaded}"
    loaded = f"loaded by {reader.program} {reader.version or ''}".strip()
    if reader.median_error is None:
        return f"{loaded}, which evaluated it"
    far = f"its logits in {reader.dtype} are {reader.median_error:.2%} of their size from those evaluated"
    equal = "" if reader.weights_error is None else f", {reader.weights_error:.4%} with the same type and no rounding"
    return f"{loaded}: {far} (median over tokens{equal})"


def measure_line(measure: Measure) -> str:
    """Return a measure with its bounds, and what the policy's limit makes of it."""
    limit = ""
    if measure.limit is not None:
        asked = "at least" if measure.name in AT_LEAST else "at most"
        limit = f"; {asked} {measure.limit:g}: {measure.says}"
    return f"{LABELS[measure.name]} {measure.value:.4g} ({measure.lower:.4g} … {measure.upper:.4g}){limit}"


def verdict_name(gate: Verdict | GateRecord) -> str:
    """Return `PASS, certified`, `PASS, not certified`, `FAIL` or `INCONCLUSIVE`."""
    return gate.verdict + ((", certified" if gate.certified else ", not certified") if gate.verdict == "PASS" else "")


def verdict_line(gate: Verdict | GateRecord) -> str:
    """Return the verdict as a sentence, the statistic that must be shown first.

    `PASS, certified on the expected score: 99.80% of the expected score kept, at least 99.40%; 99.60% of accuracy kept,
    at least 98.10% (bounds at 97.99%, which is 95% over all looks; target 99.00%).`
    """
    ordered = sorted(both(gate).items(), key=lambda one: one[0] != gate.statistic)
    lines = [_kept_line(kept, SCORES[kind]) for kind, kept in ordered if kept]
    told = "; ".join(filter(None, [*lines, no_expected_line(gate)])) if any(lines) else "no retention measured"
    over_all = gate.policy.confidence
    looks = "," if gate.confidence == over_all else f", which is {level(over_all)} over all looks;"
    return f"{certified_name(gate)}: {told} (bounds at {level(gate.confidence)}{looks} target {gate.target:.2%})."


def tasks_below_line(gate: Verdict | GateRecord) -> str:
    """Return which tasks alone are shown to keep less than the target, which a good mean hides; else nothing."""
    found: dict[str, list[str]] = {}
    for task in gate.tasks:
        sides: dict[ScoreKind, Retained | None] = {"expected": task.expected, "accuracy": task}
        for kind, kept in sides.items():
            if kept and kept.upper_bound is not None and kept.upper_bound < gate.target:
                found.setdefault(task.task, []).append(f"{retained(kept.retention)} of {SCORES[kind]}")
    named = [f"{task} ({', '.join(kept)})" for task, kept in found.items()]
    return f"by itself shown to be below the target: {'; '.join(named)}" if named else ""


def certified_name(gate: Verdict | GateRecord) -> str:
    """Return the verdict's name, and on which scores a certified one is shown: `PASS, certified on accuracy`."""
    if not gate.certified:
        return verdict_name(gate)
    above = {kind for kind, kept in both(gate).items() if isinstance(kept, Kept) and kept.says == "above"}
    shown = [name for kind, name in SCORES.items() if kind in {gate.statistic, *above}]
    return f"{verdict_name(gate)} on {' and on '.join(shown)}"


def both(gate: Verdict | GateRecord) -> dict[ScoreKind, Retained | None]:
    """Return what is kept by each statistic; a record of version 1 itself says what is kept of the accuracy."""
    return {"accuracy": gate.accuracy or gate, "expected": gate.expected}


def _kept_line(kept: Retained, name: str) -> str:
    bound = "" if kept.lower_bound is None else f", at least {kept.lower_bound:.2%}"
    return "" if kept.retention is None else f"{retained(kept.retention)} of {name} kept{bound}"


def no_expected_line(gate: Verdict | GateRecord) -> str:
    """Return which tasks have no expected score; nothing where all have one."""
    lacking = [task.task for task in gate.tasks if task.expected is None]
    if not lacking:
        return ""
    return "no expected score" + ("" if len(lacking) == len(gate.tasks) else f" of {', '.join(lacking)}")


def kept_with_bounds(kept: Retained | None) -> str:
    """Return `99.60% (98.1% … 101.3%)`, or a dash where there is no such score."""
    return "–" if kept is None or kept.retention is None else f"{retained(kept.retention)} ({bounds(kept)})"


def kept_words(gate: Verdict | GateRecord) -> str:
    """Return `99.60% (98.1% … 101.3%) of accuracy and 99.80% (99.4% … 100.2%) of the expected score kept`."""
    found = [f"{kept_with_bounds(kept)} of {SCORES[kind]}" for kind, kept in both(gate).items() if kept]
    return f"{' and '.join(found)} kept"


def bounds(kept: Retained) -> str:
    """Return `98.1% … 101.3%`, or a dash where the data bounds nothing."""
    low = "–" if kept.lower_bound is None else f"{kept.lower_bound:.1%}"
    high = "–" if kept.upper_bound is None else f"{kept.upper_bound:.1%}"
    return f"{low} … {high}"


def changed(gate: GateRecord) -> float | None:
    """Return the share of documents whose score changed; None when nothing was compared."""
    documents = sum(task.documents for task in gate.tasks)
    return sum(task.lost + task.gained for task in gate.tasks) / documents if documents else None


def retained(retention: float | None) -> str:
    """Return a retention in percent, or a dash where none was measured."""
    return "–" if retention is None else f"{retention:.2%}"
