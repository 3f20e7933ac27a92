"""The checks that a suite can be asked of a model, made before the model is loaded.

Refused are documents that cannot be had or have no right answer, metrics that score none of them, and prompts that
leave a model no room to answer.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core import progress
from pipelines.core.cache import Result, file_digest, keep
from pipelines.core.errors import BadInput, Problem, QuantgateError, bad_input, refuse
from pipelines.evaluation.looks import blocks_by_look
from pipelines.evaluation.patches import patched
from pipelines.evaluation.task import LmEvalTask, task_inputs, unscored
from pipelines.evaluation.tasks import Opened, layout_remedy, opener
from pipelines.recipe.load import load_task
from pipelines.recipe.suite import Suite, SuiteTask, Task

if TYPE_CHECKING:
    from pipelines.runtimes.lm_eval import TokenLM

CONTEXT = ("model_type", "text_config", "n_positions", "max_position_embeddings", "n_ctx")
"""Keys of `config.json` that decide how long a prompt is, or may be."""

T = TypeVar("T")


class Asked(Result):
    """The documents that a suite asks of a task, whatever the model."""

    places: tuple[int, ...]
    """Places in the task's split of the documents that are asked, in the order in which they are."""
    independent: int
    """Number of groups of them that share nothing."""
    metrics: tuple[str, ...]
    """Names of the metrics that score each of them; empty where the task's own code decides."""
    written: bool
    """Whether a model writes the answers rather than choose among given ones."""
    content: str
    """Digest of all documents of the task: the hub may have others tomorrow."""

    @property
    def documents(self) -> int:
        """Number of documents that are asked."""
        return len(self.places)


def ask(suite: Suite, opened: Opened) -> dict[str, Asked]:
    """Return what is asked of each of the suite's tasks, by its name; once looked at is enough.

    Raises:
        BadInput: for every task whose documents cannot be had, or one of whose documents has no right answer.
    """
    return _each(suite, lambda wanted: _ask(wanted, opened))


def _each(suite: Suite, look: Callable[[SuiteTask], T]) -> dict[str, T]:
    """Return what `look` finds at each task, or raise one `BadInput` for all of them."""
    found: dict[str, T] = {}
    problems: list[Problem] = []
    for wanted in suite.tasks:
        try:
            found[wanted.task] = look(wanted)
        except BadInput as error:
            problems += error.problems
    refuse(problems)
    return found


def _ask(wanted: SuiteTask, opened: Opened) -> Asked:
    """Return what is asked of one task, kept."""
    task = load_task(wanted.task)

    def make(_: Path) -> dict[str, Any]:
        loaded = opened(wanted.task)
        if why := loaded.refused:
            raise bad_input(f"task {task.task}", why, "leave it out of the suite")
        if wrong := loaded.unanswerable(wanted.limit):
            raise _wrong(task, wrong)
        places = loaded.places(wanted.limit)
        return {
            "places": places,
            "independent": len({loaded.cluster(loaded.documents[place]) for place in places}),
            "metrics": loaded.metrics,
            "written": loaded.written,
            "content": loaded.content,
        }

    found = keep("documents", {**task_inputs(task), "limit": wanted.limit}, Asked, make)
    metric = wanted.metric or task.metric
    if found.metrics and metric not in found.metrics:
        raise unscored(task, metric, found.metrics)
    if wanted.temperature and not found.written:
        what = "has answers that are given, of which none is drawn"
        raise bad_input(f"task {task.task}", what, "leave out its temperature")
    return found


def check_unchanged(task: LmEvalTask, asked: Asked) -> None:
    """Check that a task's documents are those that were looked at; if not, forget what was found on those.

    Raises:
        QuantgateError: they are others.
    """
    if task.content != asked.content:
        (asked.folder / "result.json").unlink(missing_ok=True)
        raise QuantgateError(
            f"task {task.task.task}: its documents are no longer those of before\n    run it again, on the new ones"
        )


def _wrong(task: Task, wrong: Sequence[tuple[int, str]]) -> BadInput:
    """Return the error for documents that no answer could be right on."""
    place, why = wrong[0]
    others = f" ({len(wrong) - 1} more are like it)" if len(wrong) > 1 else ""
    remedy = layout_remedy(task) if task.offline else "leave the task out of the suite"
    return bad_input(f"task {task.task}, document {place}", f"{why}{others}", remedy)


def _questions(wanted: SuiteTask, task: LmEvalTask) -> Iterator[tuple[int, Any]]:
    """Yield all that the suite asks of a task, as it is evaluated: a document's place, and lm-eval's request."""
    for block in itertools.chain(*blocks_by_look(task.places(wanted.limit))):
        yield from task.requests(wanted, block)


class _Fit(Result):
    """The finding that a model can answer every prompt of a task."""

    cut: int
    """Number of prompts whose beginnings the model does not read."""


def check_prompts(suite: Suite, opened: Opened, reader: Callable[[], "TokenLM"], reads: object) -> None:
    """Check that the model can answer each of the suite's prompts: that there is room for what it is to write. Say how
    many prompts with given answers are longer than it reads, of which lm-eval cuts off the beginning.

    `reader` gives the model's tokenizer and context, with or without its weights; `reads` tells them from others.

    Raises:
        BadInput: for every task that has a prompt that does not fit: its longest.
    """

    def look(wanted: SuiteTask) -> _Fit:
        def make(_: Path) -> dict[str, Any]:
            return {"cut": _check_longest(wanted, opened(wanted.task), reader())}

        content = _ask(wanted, opened).content
        asked = {"limit": wanted.limit, "shots": wanted.shots, "reads": reads, "content": content}
        return keep("prompts", {**task_inputs(load_task(wanted.task)), **asked}, _Fit, make)

    for task, found in _each(suite, look).items():
        if found.cut:
            progress.say(
                f"task {task}: {found.cut:,} prompts are longer than the model reads, which misses their beginnings"
            )


def _check_longest(wanted: SuiteTask, task: LmEvalTask, reader: "TokenLM") -> int:
    """Return how many prompts lose their beginnings; raise `BadInput` for the longest that cannot be answered."""
    from pipelines.runtimes.lm_eval import answer_tokens

    with patched():
        every = ((reader.tokens(request), place, request) for place, request in _questions(wanted, task))
        long = [one for one in every if one[0] > reader.max_length]
    if stuck := [one for one in long if not reader.may_cut(one[2])]:
        tokens, place, request = max(stuck, key=lambda one: one[0])
        answer = answer_tokens(request)
        of_them = f", {answer} of them for the answer," if answer else ""
        what = f"takes {tokens} tokens{of_them} and the model reads {reader.max_length} ({reader.limit_from})"
        remedy = "use a suite without the task or with fewer shots, or a model that reads more"
        raise bad_input(f"task {wanted.task}, document {place}", what, remedy)
    return len(long)


def check_context(suite: Suite, opened: Opened, checkpoint: Checkpoint) -> None:
    """Check that `checkpoint` can answer each of the suite's prompts; its weights are not read.

    Raises:
        BadInput: for every task that has a prompt that does not fit.
    """
    from pipelines.runtimes.lm_eval import HubLM

    config = {name: checkpoint.config.get(name) for name in CONTEXT}
    files = {name: file_digest(checkpoint.folder / name) for name in checkpoint.companions}
    check_prompts(suite, opened, functools.cache(lambda: HubLM(checkpoint.folder)), [config, files])


def check_suite(suite: Suite, checkpoint: Checkpoint) -> dict[str, Asked]:
    """Check that everything in `suite` can be asked of `checkpoint`, and return what is asked of each task.

    Raises:
        BadInput: documents that cannot be had, or have no right answer; prompts that are longer than the model reads.
    """
    with opener() as opened:
        asked = ask(suite, opened)
        check_context(suite, opened, checkpoint)
    return asked


def prompts(suite: Suite) -> list[str]:
    """Return what `suite` asks, document by document: each prompt with each of its answers."""
    with opener() as opened:
        return [text for wanted in suite.tasks for text in opened(wanted.task).prompts(wanted.limit)]
