"""Sentences that card, report and console all say about a run, each made in one place."""

from typing import NamedTuple

from pipelines.core.bounds import level
from pipelines.gating.measures import AT_LEAST, LABELS, Measure
from pipelines.gating.verdict import TaskVerdict, Verdict
from pipelines.reporting.record import GateRecord
from pipelines.runtimes.distance import Distance
from pipelines.verification.reader import Reader

NO_LICENCE = "The base model declares no licence that is known: find out what you may do with this before you use it."


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
    """Return the verdict as a sentence.

    `PASS, certified: 99.60% of the baseline kept, at least 99.10% at 95% (target 99.00%).`
    """
    kept = "no retention measured" if gate.retention is None else f"{retained(gate.retention)} of the baseline kept"
    bound = "" if gate.lower_bound is None else f", at least {gate.lower_bound:.2%} at {level(gate.confidence)}"
    return f"{verdict_name(gate)}: {kept}{bound} (target {gate.target:.2%})."


def bounds(kept: TaskVerdict | Verdict | GateRecord) -> str:
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
