"""What an evaluation leaves behind: per-document scores, and the results they belong to."""

from collections.abc import Mapping
from functools import cached_property

from pydantic import Field

from pipelines.core.cache import Result
from pipelines.core.device import ComputeDtype
from pipelines.core.strict_yaml import Frozen
from pipelines.recipe.suite import Suite


class Document(Frozen):
    """One document's score, with what is needed to pair it."""

    id: int
    """Its position in the task's split."""
    doc_hash: str
    prompt_hash: str
    target_hash: str
    cluster: str
    """Equal for documents that are not independent of each other."""
    chance: float
    """What guessing scores on this document."""
    score: float
    margin: float | None = None
    """Nats: the log-probability of the right answer over that of the likeliest wrong one; of a single answer, its
    own; None for generated text."""


Scores = Mapping[str, tuple[Document, ...]]
"""Task → its documents."""


class Block(Result):
    """Some of a task's documents, evaluated together: what a killed evaluation loses at most."""

    task: str
    metric: str
    shots: int
    split: str
    task_version: str
    data: str
    """Where the documents came from."""

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """In the order of the task's split; read once, though every look at an evaluation asks for them."""
        with (self.folder / "documents.jsonl").open(encoding="utf-8") as file:
            return tuple(Document.model_validate_json(line) for line in file)


class TaskResult(Frozen):
    """One task's evaluation of one model."""

    documents: int
    of: int
    """How many the suite asks for: an evaluation that was stopped has fewer."""
    mean: float
    blocks: tuple[Block, ...] = Field(min_length=1)

    @property
    def about(self) -> Block:
        """What is the same in all blocks: task, metric, shots, split, version and origin."""
        return self.blocks[0]

    def scores(self) -> tuple[Document, ...]:
        """The per-document scores, in the order of the task's split."""
        return tuple(sorted((d for block in self.blocks for d in block.documents), key=lambda d: d.id))


class Evaluation(Frozen):
    """A model's results on a suite."""

    model: str
    model_digest: str
    """Over the SHA-256 of each of the model's files."""
    suite: Suite
    runtime: str
    device: str
    dtype: ComputeDtype | None
    """What the model computed in; None where the runtime chooses for each product."""
    tasks: tuple[TaskResult, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        """What it cost."""
        return tuple(block for task in self.tasks for block in task.blocks)

    @property
    def documents(self) -> int:
        return sum(task.documents for task in self.tasks)

    @property
    def of(self) -> int:
        """The documents of the whole suite."""
        return sum(task.of for task in self.tasks)

    def scores(self) -> Scores:
        """Task → per-document scores."""
        return {task.about.task: task.scores() for task in self.tasks}
