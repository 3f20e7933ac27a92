"""What an evaluation leaves behind: per-document scores, and the results they belong to."""

from collections.abc import Mapping

from pipelines.recipe import Suite
from pipelines.schema import Frozen
from pipelines.store import Result


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


Scores = Mapping[str, tuple[Document, ...]]
"""Task → its documents."""


class TaskResult(Result):
    """One task's evaluation of one model."""

    task: str
    metric: str
    shots: int
    split: str
    task_version: str
    data: str
    """Where the documents came from."""
    documents: int
    mean: float

    def scores(self) -> tuple[Document, ...]:
        """The per-document scores, in the order of the task's split."""
        with (self.folder / "documents.jsonl").open(encoding="utf-8") as file:
            return tuple(Document.model_validate_json(line) for line in file)


class Evaluation(Frozen):
    """A model's results on a suite."""

    model: str
    model_digest: str
    """Over the SHA-256 of each of the model's files."""
    suite: Suite
    runtime: str
    device: str
    tasks: tuple[TaskResult, ...]

    @property
    def seconds(self) -> float:
        return sum(task.seconds for task in self.tasks)

    def scores(self) -> Scores:
        """Task → per-document scores."""
        return {result.task: result.scores() for result in self.tasks}


class Distance(Frozen):
    """How far a GGUF is from its unquantized one on a text, as `llama-perplexity --kl-divergence` defines it."""

    tokens: int
    """Scored: the second half of each chunk."""
    perplexity_before: float
    perplexity_after: float
    perplexity_ratio: float
    perplexity_ratio_error: float
    """Standard error, as of all below."""
    divergence: float
    """Mean Kullback-Leibler divergence from the unquantized model's distribution, nats per token."""
    divergence_error: float
    divergence_99: float
    """Its 99th percentile."""
    same_top: float
    same_top_error: float
    """Share of tokens at which both find the same token likeliest."""
