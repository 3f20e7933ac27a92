"""The results of evaluations: per-document scores, and what they belong to."""

import math
from collections.abc import Mapping
from functools import cached_property

from pydantic import ConfigDict, Field

from pipelines.core.cache import Result
from pipelines.core.device import ComputeDtype
from pipelines.core.strict_yaml import Frozen
from pipelines.recipe.suite import Suite


class Document(Frozen):
    """One document's score, with what is needed to pair it."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a broken model's log-probabilities are no numbers

    id: int
    """Position of the document in the task's split."""
    doc_hash: str
    prompt_hash: str
    target_hash: str
    cluster: str
    """Name of the group of documents that are not independent of each other."""
    chance: float
    """Score of guessing on this document, in [0, 1]."""
    score: float
    """Score of the model's answer, in [0, 1]."""
    margin: float | None = None
    """Log-probability of the right answer over that of the likeliest wrong one, in nats; of a single answer, its own;
    None of text that the model writes."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each answer that was offered, in nats; empty of text that the model writes."""
    lengths: tuple[int, ...] = ()
    """Length by which the metric divides the log-probability of each answer; empty where it divides by none."""
    right: tuple[int, ...] = ()
    """Places of the right answers among those offered; empty where the metric does not choose the likeliest."""
    times: int = 1
    """Number of times that the document was answered; the score is their mean."""

    @property
    def is_finite(self) -> bool:
        """Whether the score is a number, and each log-probability that an expected score is made of."""
        return math.isfinite(self.score) and all(map(math.isfinite, self.logprobs))

    @property
    def is_whole(self) -> bool:
        """Whether guessing scores within [0, 1], right answers are among those offered, and each length is one of them
        and above 0."""
        offered = len(self.logprobs)
        return (
            0 <= self.chance <= 1
            and all(0 <= place < offered for place in self.right)
            and len(self.lengths) in (0, offered)
            and all(length > 0 for length in self.lengths)
        )


Scores = Mapping[str, tuple[Document, ...]]
"""Scored documents by task."""


class Block(Result):
    """The scores of some of a task's documents, evaluated together: a killed evaluation loses no more."""

    task: str
    metric: str
    shots: int
    """Number of examples before each question."""
    split: str
    task_version: str
    data: str
    """Origin of the documents, for people."""

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Documents in the order of the task's split; read once, though every look asks for them."""
        with (self.folder / "documents.jsonl").open(encoding="utf-8") as file:
            return tuple(Document.model_validate_json(line) for line in file)


class TaskResult(Frozen):
    """One task's evaluation of one model."""

    documents: int
    of: int
    """Number of documents that the suite asks for: an evaluation that was stopped has fewer."""
    mean: float
    """Mean score over the documents, not corrected for chance."""
    blocks: tuple[Block, ...] = Field(min_length=1)

    @property
    def about(self) -> Block:
        """First block, for what is the same in all: task, metric, shots, split, version and origin."""
        return self.blocks[0]

    def scores(self) -> tuple[Document, ...]:
        """Return the per-document scores, in the order of the task's split."""
        return tuple(sorted((d for block in self.blocks for d in block.documents), key=lambda d: d.id))


class Evaluation(Frozen):
    """A model's results on a suite."""

    model: str
    model_digest: str
    """Digest over the SHA-256 of each of the model's files."""
    suite: Suite
    runtime: str
    """Name of the runtime, with its version where that is none of our packages'."""
    device: str
    dtype: ComputeDtype | None
    """Type that the model computed in; None where the runtime chooses one for each product."""
    tasks: tuple[TaskResult, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        """Results that the evaluation is made of, with what each cost."""
        return tuple(block for task in self.tasks for block in task.blocks)

    @property
    def documents(self) -> int:
        """Number of documents that were evaluated."""
        return sum(task.documents for task in self.tasks)

    @property
    def of(self) -> int:
        """Number of documents of the whole suite."""
        return sum(task.of for task in self.tasks)

    def scores(self) -> Scores:
        """Return the per-document scores, by task."""
        return {task.about.task: task.scores() for task in self.tasks}
