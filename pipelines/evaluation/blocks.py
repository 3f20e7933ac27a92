"""A block of a task's documents: evaluating them together, and keeping what each scored."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.cache import digest, found, keep
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.rows import origin
from pipelines.evaluation.scores import Block, Document
from pipelines.evaluation.task import SEED, LmEvalTask, task_inputs
from pipelines.evaluation.tasks import Opened
from pipelines.recipe.load import load_task
from pipelines.recipe.suite import SuiteTask


class BlockRequest(Frozen):
    """A request to a model to answer some of a task's documents."""

    model_digest: str
    wanted: SuiteTask
    documents: tuple[int, ...]
    """Places of the documents in the task's split, sorted."""
    content: str
    """Digest of all documents of the task."""
    setting: dict[str, Any]
    """Inputs of the runtime, the device and the type that decide the results."""
    runtime: tuple[str, ...]
    """Full names of the modules that load and run the model."""

    @property
    def id(self) -> tuple[str, tuple[int, ...]]:
        """Task and documents of the block, which tell it from others of the same evaluation."""
        return self.wanted.task, self.documents


def evaluate_block(request: BlockRequest, load_lm: Callable[[], Any], opened: Opened) -> Block:
    """Return the block's scores: found finished, or answered now by the model that `load_lm` gives.

    Raises:
        BadInput: the metric is none of those that score each document.
    """
    wanted = request.wanted
    task = load_task(wanted.task)
    inputs = {
        **task_inputs(task),
        "content": request.content,
        "model": request.model_digest,
        "metric": wanted.metric or task.metric,
        "shots": wanted.shots,
        "drawn": [wanted.temperature, wanted.seeds],
        "documents": digest(request.documents),
        **request.setting,
    }

    def make(folder: Path) -> dict[str, Any]:
        return _answer(opened(wanted.task), request, load_lm(), folder)

    return keep("evaluate", inputs, Block, make, chosen=request.runtime)


def finished_block(request: BlockRequest) -> Block | None:
    """Return the block's scores where they are finished, else None; nothing is loaded or evaluated."""

    def never(*_: Any) -> Any:
        raise AssertionError("a block was to be found, not made")

    return found(lambda: evaluate_block(request, never, never))


def _answer(task: LmEvalTask, request: BlockRequest, lm: Any, folder: Path) -> dict[str, Any]:
    """Write each document's score into `folder`; return the block's fields that are the same for all."""
    wanted = request.wanted
    metric = wanted.metric or task.task.metric
    runs = [task.answers(wanted, request.documents, lm, SEED + number) for number in range(wanted.seeds)]
    scores = [task.scores(run.samples, metric) for run in runs]
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_mean(drawn).model_dump_json() + "\n" for drawn in zip(*scores, strict=True))
    return {
        "task": task.task.task,
        "metric": metric,
        "shots": runs[0].shots,
        "split": task.split,
        "task_version": runs[0].version,
        "data": origin(task.task),
    }


def _mean(drawn: Sequence[Document]) -> Document:
    """Return one document, answered several times: the answers are not independent, their mean is one observation."""
    mean = sum(document.score for document in drawn) / len(drawn)
    return drawn[0].model_copy(update={"score": mean, "times": len(drawn)})
