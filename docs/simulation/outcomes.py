"""The gate's verdicts of simulated runs: once over all documents, and look by look until one is shown."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from docs.simulation.answers import TARGET, Floats
from docs.simulation.seen import Looks, Seen, Task, combine, looks
from pipelines.evaluation.looks import LOOKS, documents_at_look
from pipelines.gating.decision import CHOSEN_SHARE
from pipelines.gating.spending import look_confidence, shared
from pipelines.recipe.suite import Policy, ScoreKind

Words = npt.NDArray[np.int8]
"""Verdict of each run: `CERTIFIED`, `FAIL`, or `OPEN` where neither is shown."""
CERTIFIED, OPEN, FAIL = 1, 0, -1
BATCH = 500_000
"""Number of documents held in memory at a time."""
EXPECTED = Policy(statistic="expected")
ACCURACY = Policy(statistic="accuracy")


class Outcomes(NamedTuple):
    """Verdicts of simulated runs, each (runs,)."""

    fixed: Words
    """Once over all documents."""
    sequential: Words
    """At the first look that shows one, else at the last."""
    share: Floats
    """Share of the documents that were used until the sequential verdict."""

    @property
    def rates(self) -> tuple[float, float, float, float]:
        """Return the shares of runs certified all at once and with looks, and of FAIL."""
        return (
            float((self.fixed == CERTIFIED).mean()),
            float((self.sequential == CERTIFIED).mean()),
            float((self.fixed == FAIL).mean()),
            float((self.sequential == FAIL).mean()),
        )


def verdicts(seen: Sequence[Mapping[ScoreKind, Seen]], weights: Sequence[float], policy: Policy) -> Words:
    """Return the gate's verdicts on these moments, by task and statistic, at the policy's confidence."""
    kinds = list(seen[0])
    overall = {kind: combine([task[kind] for task in seen], weights) for kind in kinds}
    shares = {kind: CHOSEN_SHARE if kind == policy.statistic else 1 - CHOSEN_SHARE for kind in kinds}
    refusing = {kind: shared(policy.confidence, shares[kind] if len(kinds) > 1 else 1.0) for kind in kinds}
    failed = np.any([overall[kind].below(TARGET, refusing[kind], chance=policy.confidence) for kind in kinds], axis=0)
    if policy.floor is not None:
        strict = shared(policy.confidence, 1 / len(seen))
        floors = [task[policy.statistic].below(policy.floor, strict, chance=policy.confidence) for task in seen]
        failed |= np.any(floors, axis=0) & overall[policy.statistic].above_chance(policy.confidence)
    certified = overall[policy.statistic].above(TARGET, policy.confidence)
    judged = overall[policy.statistic].above_chance(policy.confidence)
    return np.where(judged, np.where(failed, FAIL, np.where(certified, CERTIFIED, OPEN)), OPEN).astype(np.int8)


Levels = Callable[[int, float], float]
"""Confidence of the bounds at a look, where that of all is given."""


def outcomes_of(
    by_task: Sequence[Looks], tasks: Sequence[Task], policy: Policy, levels: Levels = look_confidence
) -> Outcomes:
    """Return the outcomes of runs of which every task's looks are given."""
    weights = [task.weight for task in tasks]
    of = sum(task.documents for task in tasks)
    runs = len(next(iter(by_task[0][0].values())).baseline)
    said, share = np.zeros(runs, dtype=np.int8), np.ones(runs)
    for look in range(len(LOOKS)):
        at = policy.model_copy(update={"confidence": levels(look, policy.confidence)})
        now = verdicts([looked[look] for looked in by_task], weights, at)
        used = sum(documents_at_look(look, task.documents) for task in tasks)
        new = (said == OPEN) & (now != OPEN)
        said[new], share[new] = now[new], used / of
    return Outcomes(verdicts([looked[-1] for looked in by_task], weights, policy), said, share)


def simulate(
    tasks: Sequence[Task], times: int, policy: Policy = ACCURACY, seed: int = 1, levels: Levels = look_confidence
) -> Outcomes:
    """Return the outcomes of `times` runs."""
    found = [outcomes_of(by_task, tasks, policy, levels) for by_task in drawn(tasks, times, seed)]
    return Outcomes(*(np.concatenate(part) for part in zip(*found, strict=True)))


def drawn(tasks: Sequence[Task], times: int, seed: int = 1) -> Iterator[list[Looks]]:
    """Yield `times` runs in batches, each as every task's looks."""
    random = np.random.default_rng(seed)
    batch = max(1, BATCH // sum(task.documents for task in tasks))
    for start in range(0, times, batch):
        yield [looks(task, random, min(batch, times - start)) for task in tasks]


def seeded(*setting: object) -> int:
    """Return the seed of a setting."""
    return zlib.crc32(repr(setting).encode())
