"""The expected score: how probable a model's right answer is, when it draws its answer by its own log-probabilities.

Right and wrong throws most of an answer away. The probability of the right answer moves with every document, so that
the same documents show smaller losses (docs/gate.md). Of several answers it is their softmax, at the right ones; of a
single one its own probability; of an answer that is drawn several times the mean score.

Sources: Guo et al. 1706.04599 (a temperature fitted by maximum likelihood), Schaeffer et al. 2304.15004 (continuous
against discontinuous scores of the same answers).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipelines.evaluation.scores import Document
from pipelines.gating.pairs import Pairs
from pipelines.gating.statistic import Scored

if TYPE_CHECKING:
    import numpy as np

NO_EXPECTED = "has no expected score: its answers are written once, or its own code decides what is right"
"""Words for a task that has none."""
EXPECTED_REMEDY = "draw its answers several times (temperature, seeds), or set policy.statistic to accuracy"
"""Remedy for a policy that asks for the expected score of such a task."""
TEMPERATURES = (1e-3, 1e3)
"""Smallest and largest temperature that is tried."""


def has_expected(document: Document) -> bool:
    """Tell whether a document has an expected score: its answers were offered, or drawn more than once."""
    return bool(document.logprobs and document.right) or document.times > 1


class Expected(NamedTuple):
    """The expected scores of a task's paired documents."""

    scored: list[Scored]
    temperature: float | None
    """Temperature of the softmax, fitted on the baseline alone, where the metric divides log-probabilities by lengths:
    such quotients are too close to each other to be taken as they are."""


def expected_scores(pairs: Pairs) -> Expected | None:
    """Return the expected scores of a task's paired documents; None where one has none."""
    ours, theirs = [document for document, _ in pairs], [document for _, document in pairs]
    if not all(map(has_expected, (*ours, *theirs))) or len({bool(document.logprobs) for document in ours}) > 1:
        return None
    temperature = fit_temperature(ours) if any(document.lengths for document in ours) else None
    scores = zip(ours, _expected(ours, temperature), _expected(theirs, temperature), strict=True)
    return Expected([Scored(b, c, document.chance, document.cluster) for document, b, c in scores], temperature)


def fit_temperature(documents: Sequence[Document]) -> float:
    """Return the temperature under which the right answers of `documents` are likeliest."""
    from scipy.optimize import minimize_scalar

    offered, right = _offered(documents)
    low, high = map(math.log, TEMPERATURES)

    def surprise(log_temperature: float) -> float:
        return -float(_log_right(offered / math.exp(log_temperature), right).mean())

    return math.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)


def _expected(documents: Sequence[Document], temperature: float | None) -> list[float]:
    """Return the expected score of each document, in [0, 1]."""
    import numpy as np

    if not documents[0].logprobs:
        return [document.score for document in documents]
    offered, right = _offered(documents)
    probability = np.exp(_log_right(offered / (temperature or 1.0), right))
    found: list[float] = np.minimum(probability, 1.0).tolist()  # which keeps what is no number
    return found


def _offered(documents: Sequence[Document]) -> "tuple[np.ndarray, np.ndarray]":
    """Return (documents, answers): what the metric compares of each answer, minus infinity where there is none, and
    whether it is right. An answer that stands alone is given the rest of its probability as its rival."""
    import numpy as np

    most = max(2, *(len(document.logprobs) for document in documents))
    offered = np.full((len(documents), most), -np.inf)
    right = np.zeros(offered.shape, dtype=bool)
    for line, flags, document in zip(offered, right, documents, strict=True):
        compared = np.divide(document.logprobs, document.lengths or 1)
        line[: len(compared)] = compared
        if len(compared) == 1:
            line[1] = np.log(max(1e-300, -np.expm1(min(compared[0], 0.0))))
        flags[list(document.right)] = True
    return offered, right


def _log_right(offered: "np.ndarray", right: "np.ndarray") -> "np.ndarray":
    """Return (documents,): the logarithm of the softmax of `offered`, summed over the right answers."""
    import numpy as np

    with np.errstate(divide="ignore"):
        among_right = np.logaddexp.reduce(np.where(right, offered, -np.inf), axis=1)
    found: np.ndarray = among_right - np.logaddexp.reduce(offered, axis=1)
    return found
