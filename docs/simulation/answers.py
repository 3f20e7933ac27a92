"""Documents of a known retention: populations that simulated runs draw from, with replacement, so that it is exact."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.recipe.suite import ScoreKind

Floats = npt.NDArray[np.float64]
TARGET = 0.99
TOGETHER = 0.7
"""Probability that a document goes as its cluster does, rather than its own way."""
DOCUMENTS = 20_000
"""Number of documents in a population of expected scores."""


class Scores(NamedTuple):
    """Scores of a population by one statistic, each (clusters, documents in a cluster)."""

    baseline: Floats
    """Score of the baseline above chance."""
    candidate: Floats
    """Score of the artifact above chance."""
    right_or_wrong: bool = False

    @property
    def retention(self) -> float:
        return float(self.candidate.mean() / self.baseline.mean())


Population = Mapping[ScoreKind, Scores]
"""Scores of the same documents by each statistic."""

Kind = Literal["middling", "wide", "near chance", "high", "single answer"]
Loss = Literal["a shift", "breaks to chance", "breaks to a random answer", "half of the margin", "breaks of the surest"]

KINDS: Mapping[Kind, tuple[float, float, float]] = {
    "middling": (0.3, 1.5, 0.25),
    "wide": (0.5, 4.0, 0.25),
    "near chance": (-0.6, 0.4, 0.25),
    "high": (3.0, 1.5, 0.0),
    "single answer": (0.0, 0.0, 0.0),
}
"""Kind of task → mean and standard deviation of the logit of the right answer's probability, and chance. A single
answer's log-probability is minus a gamma variable instead (shape 0.8, scale 2.5), as that of LAMBADA's last words."""


def right_or_wrong(
    accuracy: float, discordance: float, chance: float = 0.0, cluster: int = 1, retention: float = TARGET, seed: int = 1
) -> Population:
    """Return a population of right and wrong answers, of which a share of `discordance` changes, or as many as the
    loss takes; those of a `cluster` go together."""
    fall = (1 - retention) * (accuracy - chance)
    changed = max(discordance, abs(fall))
    lost, gained = (changed + fall) / 2, (changed - fall) / 2
    count = DOCUMENTS // cluster * cluster
    ends = np.rint(count * np.cumsum([accuracy - lost, lost, gained])).astype(int)
    random = np.random.default_rng(seed)
    drawn = random.random((count // cluster, cluster))
    if cluster > 1:
        passages = random.random((count // cluster, 1))
        drawn = np.where(random.random(drawn.shape) < TOGETHER, passages, drawn)
    places = np.argsort(np.argsort(drawn, axis=None)).reshape(drawn.shape)  # ranks: exactly so many of each
    baseline = places < ends[1]
    candidate = (places < ends[0]) | ((places >= ends[1]) & (places < ends[2]))
    return {"accuracy": Scores(baseline - chance, candidate - chance, True)}


def expected(
    kind: Kind, noise: float, loss: Loss, retention: float = TARGET, cluster: int = 1, seed: int = 1
) -> Scores:
    """Return a population of expected scores: each logit moves by normal `noise`, and the `loss` does the rest; a
    break hits whole clusters."""
    random = np.random.default_rng(seed)
    chance = KINDS[kind][2]
    logits = _logits(kind, cluster, random)
    moved = logits + noise * _normal(logits.shape, random)
    before = _probability(logits)
    wanted = chance + retention * (before.mean() - chance)
    if loss == "a shift":
        return Scores(before - chance, _shifted(moved, wanted) - chance)
    noisy = _shifted(moved, float(before.mean()))
    broken = _broken(loss, logits, chance, random)
    passages = random.permutation(len(before))[:, None] * cluster + np.arange(cluster)
    order = np.argsort(-before, axis=None) if loss == "breaks of the surest" else passages.ravel()
    return Scores(before - chance, _replaced(noisy, broken, order, wanted) - chance)


def both(kind: Kind, noise: float, loss: Loss, retention: float = TARGET, cluster: int = 1) -> Population:
    """Return a population with both statistics, each of exactly this retention: an answer is right where its
    probability is large enough."""
    scores = expected(kind, noise, loss, retention, cluster)
    chance = KINDS[kind][2]
    right = scores.baseline + chance > 0.5
    kept = round(right.size * (chance + retention * (right.mean() - chance)))
    order = np.argsort(-scores.candidate, axis=None)
    still = np.zeros(right.size, dtype=bool)
    still[order[:kept]] = True
    answers = Scores(np.subtract(right, chance), np.subtract(still.reshape(right.shape), chance), True)
    return {"expected": scores, "accuracy": answers}


def _logits(kind: Kind, cluster: int, random: np.random.Generator) -> Floats:
    """Return the logits of the right answers' probabilities, (clusters, cluster)."""
    mean, deviation, _ = KINDS[kind]
    shape = (DOCUMENTS // cluster, cluster)
    if kind == "single answer":
        probability = np.exp(-np.maximum(random.gamma(0.8, 2.5, shape), 1e-9))
        found: Floats = np.log(probability) - np.log1p(-probability)
        return found
    return mean + deviation * _normal(shape, random)


def _normal(shape: tuple[int, int], random: np.random.Generator) -> Floats:
    """Return standard normal numbers, (clusters, cluster); half of the variance is that of the clusters."""
    own = random.standard_normal(shape)
    return own if shape[1] == 1 else (own + random.standard_normal((shape[0], 1))) / math.sqrt(2)


def _probability(logits: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-logits))
    return found


def _shifted(logits: Floats, wanted: float) -> Floats:
    """Return the probabilities under the common shift of all logits that gives them the mean `wanted`."""
    low, high = -5.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(logits + middle).mean() < wanted else (low, middle)
    return _probability(logits + low)


def _broken(loss: Loss, logits: Floats, chance: float, random: np.random.Generator) -> Floats:
    """Return the probability of each document's right answer, should it be lost."""
    if loss == "breaks to a random answer":
        return (random.random(logits.shape) < chance).astype(float)
    if loss == "half of the margin":
        guess = max(chance, 0.02)
        return _probability((logits + math.log(guess / (1 - guess))) / 2)
    return np.full(logits.shape, chance)


def _replaced(scores: Floats, by: Floats, order: npt.NDArray[np.int64], wanted: float) -> Floats:
    """Return scores of which the first in an order are replaced, as many as bring their mean down to `wanted`."""
    flat, broken = scores.ravel().copy(), by.ravel()
    fall = np.cumsum((flat - broken)[order])
    reached = int(np.argmax(fall >= flat.sum() - wanted * flat.size))
    missing = flat.sum() - wanted * flat.size - (fall[reached - 1] if reached else 0.0)
    hit = order[:reached]
    flat[hit] = broken[hit]
    flat[order[reached]] -= missing
    return flat.reshape(scores.shape)
