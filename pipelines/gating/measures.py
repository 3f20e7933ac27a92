"""Measures more sensitive than accuracy, each paired with the baseline, bounded, and held to the policy's limit.

Sources: Dutta et al. 2407.09141 (flips and KL divergence show what accuracy hides), llama.cpp's `llama-perplexity`
(the distances on held-out text), docs/gate.md.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pipelines.core.bounds import clustered_mean, margin_of_error, quantile
from pipelines.core.errors import bad_input
from pipelines.core.strict_yaml import Frozen
from pipelines.gating.pairs import Pairs
from pipelines.gating.spending import shared
from pipelines.recipe.suite import Limits
from pipelines.runtimes.distance import Distance

Name = Literal["perplexity_ratio", "divergence", "same_top", "flips", "margin"]
"""Name of a measure."""
LABELS: dict[Name, str] = {
    "perplexity_ratio": "perplexity ratio",
    "divergence": "KL divergence, nats per token",
    "same_top": "same likeliest token",
    "flips": "answers changed",
    "margin": "change of the right answer's margin, nats",
}
AT_LEAST: frozenset[Name] = frozenset({"same_top", "margin"})
"""Measures that are better the larger they are; the others are better the smaller."""
OF_TEXT: tuple[Name, ...] = ("perplexity_ratio", "divergence", "same_top")
"""Measures of held-out text, which the verify stage takes."""
FEWEST_MARGINS = 500
"""Number of independent documents from which on the margin decides: its bound is normal, and its tails are long."""


class Measure(Frozen):
    """A measure, and what the policy's limit makes of it."""

    name: Name
    value: float
    lower: float
    """Lower one-sided bound at the verdict's confidence."""
    upper: float
    """Upper one-sided bound at the verdict's confidence."""
    limit: float | None
    """Limit of the policy."""
    says: Literal["within", "beyond", "undecided"] | None
    """Which side of the limit the value is shown to be on; None where there is no limit."""

    @property
    def within(self) -> bool:
        """Tell whether the value itself respects the limit, which it does where there is none."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.name in AT_LEAST else self.value <= self.limit


def measure(
    pairs: Mapping[str, Pairs], distance: Distance | None, limits: Limits, confidence: float
) -> tuple[Measure, ...]:
    """Return all measures that there are: those of text where `distance` is known, the margin where some task has one.

    Each of k limits may use up a k-th of α to be shown to be broken, so that the chance of a false one stays within α.

    Raises:
        BadInput: a limit for what was not measured.
    """
    found = {**_of_text(distance), **_of_answers(pairs)}
    wanted = {name: limit for name in LABELS if (limit := getattr(limits, name)) is not None}
    if lacking := [name for name in wanted if name not in found]:
        what = f"limits {', '.join(lacking)}, which {'was' if len(lacking) == 1 else 'were'} not measured"
        remedy = "pass the `distance` of `verify`" if lacking[0] in OF_TEXT else "leave the limit out for these tasks"
        raise bad_input("policy", what, remedy)
    strict = shared(confidence, 1 / max(1, len(wanted)))
    return tuple(
        Measure(
            name=name,
            value=estimate.value,
            lower=estimate.bounds(confidence)[0],
            upper=estimate.bounds(confidence)[1],
            limit=wanted.get(name),
            says=_says(name, estimate, wanted[name], confidence, strict) if name in wanted else None,
        )
        for name, estimate in found.items()
    )


class _Estimate(Frozen):
    """A value and how far its bounds are."""

    value: float
    error: float
    """Standard error of the value, or of its logarithm where `scale` says so."""
    scale: Literal["plain", "log", "share"] = "plain"
    leverage: float = 0.0
    trusted: bool = True
    """Whether its bounds may decide."""

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Return the lower and the upper one-sided bound at `confidence`."""
        match self.scale:
            case "log":
                factor = math.exp(quantile(confidence) * self.error)
                return self.value / factor, self.value * factor
            case "share":
                away = margin_of_error(self.error**2, self.leverage, confidence)
                return max(0.0, self.value - away), min(1.0, self.value + away)
            case "plain":
                away = quantile(confidence) * self.error
                return self.value - away, self.value + away


def _says(
    name: Name, estimate: _Estimate, limit: float, confidence: float, strict: float
) -> Literal["within", "beyond", "undecided"]:
    """Return which side of `limit` the value is shown to be on; `beyond` takes the `strict` confidence."""
    if not estimate.trusted:
        return "undecided"
    lower, upper = estimate.bounds(confidence)
    lowest, highest = estimate.bounds(strict)
    if name in AT_LEAST:
        return "within" if lower >= limit else "beyond" if highest < limit else "undecided"
    return "within" if upper <= limit else "beyond" if lowest > limit else "undecided"


def _of_text(distance: Distance | None) -> dict[Name, _Estimate]:
    """Return what the distance on held-out text shows; nothing where it was not measured."""
    if distance is None:
        return {}
    ratio = distance.perplexity_ratio
    leverage = 1 / distance.tokens
    return {
        "perplexity_ratio": _Estimate(value=ratio, error=distance.perplexity_ratio_error / ratio, scale="log"),
        "divergence": _Estimate(value=distance.divergence, error=distance.divergence_error),
        "same_top": _Estimate(value=distance.same_top, error=distance.same_top_error, scale="share", leverage=leverage),
    }


def _of_answers(pairs: Mapping[str, Pairs]) -> dict[Name, _Estimate]:
    """Return what the paired answers show: means over all documents of all tasks."""
    every = [pair for documents in pairs.values() for pair in documents]
    clusters = [f"{task} {ours.cluster}" for task, documents in pairs.items() for ours, _ in documents]
    flips = clustered_mean([float(ours.score != theirs.score) for ours, theirs in every], clusters)
    error = math.sqrt(flips.variance)
    found: dict[Name, _Estimate] = {
        "flips": _Estimate(value=flips.value, error=error, scale="share", leverage=flips.leverage)
    }
    changes = [
        (theirs.margin - ours.margin, cluster)
        for (ours, theirs), cluster in zip(every, clusters, strict=True)
        if ours.margin is not None and theirs.margin is not None
    ]
    if (independent := len({cluster for _, cluster in changes})) > 1:
        margin = clustered_mean([change for change, _ in changes], [cluster for _, cluster in changes])
        trusted = independent >= FEWEST_MARGINS
        found["margin"] = _Estimate(value=margin.value, error=math.sqrt(margin.variance), trusted=trusted)
    return found
