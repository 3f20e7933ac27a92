"""The evaluate stage: lm-eval's own `evaluate` on its own task definitions, kept document by document.

Each block of documents is a finished result of its own, so that a killed evaluation loses one block at most, two
suites share what they have in common, and a baseline is evaluated once for all recipes.
"""

import functools
import gc
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core import progress
from pipelines.core.cache import found
from pipelines.core.device import Dtype
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.blocks import BlockRequest, evaluate_block, finished_block
from pipelines.evaluation.checks import Asked, ask, check_context, check_prompts, check_unchanged
from pipelines.evaluation.choice import MODULES, load_lm, setting_inputs
from pipelines.evaluation.looks import LOOKS, blocks_by_look
from pipelines.evaluation.scores import Block, Evaluation, TaskResult
from pipelines.evaluation.subject import Runtime, Setting, Subject, choose_setting, find_subject
from pipelines.evaluation.task import LmEvalTask
from pipelines.evaluation.tasks import Opened, check_tasks, opener
from pipelines.quantization.artifact import Artifact
from pipelines.recipe.load import expected_documents, load_suite
from pipelines.recipe.suite import Suite

if TYPE_CHECKING:
    from pipelines.runtimes.lm_eval import TokenLM


def evaluate(
    model: Artifact | Checkpoint | str | Path,
    suite: Suite | str = "core",
    device: str | None = None,
    runtime: Runtime = "transformers",
    python: Path | None = None,
    dtype: Dtype = "auto",
) -> Evaluation:
    """Evaluate a checkpoint folder, or an artifact, on a suite; what was evaluated before is not evaluated again.

    A GGUF is evaluated in llama.cpp, and so is the F16 GGUF made of a checkpoint when `runtime` says so. `python` is
    the interpreter of an environment that has vLLM; one is made when none is given. transformers computes in `dtype`;
    `auto` is float32 on a CPU whose memory holds it, else the checkpoint's own type, which is vLLM's `auto` everywhere.

    Raises:
        BadInput: no such suite; a task that lm-eval does not know, whose documents cannot be had or have no right
            answer, or one of whose prompts is longer than the model reads; a `dtype` for llama.cpp, which has its own.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    with progress.bar(expected_documents(suite), f"evaluate on {suite.name}", "document"):
        *_, whole = looks(model, suite, device, runtime, python, dtype)
    return whole


def looks(
    model: Artifact | Checkpoint | str | Path,
    suite: Suite | str = "core",
    device: str | None = None,
    runtime: Runtime = "transformers",
    python: Path | None = None,
    dtype: Dtype = "auto",
    keep_loaded: bool = True,
) -> Iterator[Evaluation]:
    """Yield the evaluation as it grows: after the first share of each task's documents, in random order, after the
    second, … up to all of them (`looks.LOOKS`). Stop iterating to skip the remaining documents.

    Without `keep_loaded` the model is unloaded after each look, so that another one can have its memory.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    subject = find_subject(model)
    check_tasks(suite)
    setting = choose_setting(subject, device, runtime, python, dtype)
    with opener() as opened:

        @functools.cache  # the model is loaded once, and only if a block is not finished yet
        def lm() -> "TokenLM":
            loaded = load_lm(subject, setting)
            if subject.gguf:  # which alone tells its tokens
                check_prompts(suite, opened, lambda: loaded, subject.digest)
            return loaded

        @functools.cache
        def unchanged(name: str) -> LmEvalTask:
            check_unchanged(opened(name), asked[name])
            return opened(name)

        asked = _ask(suite, opened, subject)
        schedule = _schedule(suite, asked, subject, setting)
        kept = _finished(schedule)
        progress.found(sum(len(documents) for _, documents in kept))
        done: dict[str, list[Block]] = {task: [] for task in asked}
        for requests in schedule:
            for request in requests:
                block = kept.get(request.id)
                if block is None:
                    with progress.part(len(request.documents)):
                        block = evaluate_block(request, lm, unchanged)
                done[request.wanted.task].append(block)
            if not keep_loaded:
                lm.cache_clear()
                gc.collect()  # a model is full of cycles
            yield _evaluation(subject, suite, setting, asked, done)


class Share(Frozen):
    """The part of an evaluation that is finished already."""

    documents: dict[str, int] = Field(default={})
    """Number of finished documents of each task that has any."""
    seconds: float = 0.0
    """Seconds that they took."""


def finished_share(
    model: Artifact | Checkpoint,
    suite: Suite,
    device: str,
    runtime: Runtime,
    python: Path | None = None,
    dtype: Dtype = "auto",
) -> Share:
    """Return what is finished of an evaluation (`looks`); nothing is evaluated."""

    def look() -> Share:
        subject = find_subject(model)
        check_tasks(suite)
        setting = choose_setting(subject, device, runtime, python, dtype)
        with opener() as opened:
            asked = _ask(suite, opened, subject)
            kept = _finished(_schedule(suite, asked, subject, setting))
        documents: dict[str, int] = defaultdict(int)
        for task, places in kept:
            documents[task] += len(places)
        return Share(documents=dict(documents), seconds=sum(block.seconds for block in kept.values()))

    return found(look) or Share()


def _ask(suite: Suite, opened: Opened, subject: Subject) -> dict[str, Asked]:
    """Return what is asked of each task, once it is known that it can be; a GGUF tells when it is loaded."""
    asked = ask(suite, opened)
    if subject.checkpoint:
        check_context(suite, opened, subject.checkpoint)
    return asked


def _schedule(suite: Suite, asked: Mapping[str, Asked], subject: Subject, setting: Setting) -> list[list[BlockRequest]]:
    """Return, for each look, the blocks of documents that it adds, task by task."""
    inputs = setting_inputs(setting)
    orders = {task: blocks_by_look(of.places) for task, of in asked.items()}
    return [
        [
            BlockRequest(
                model_digest=subject.digest,
                wanted=wanted,
                documents=documents,
                content=asked[wanted.task].content,
                setting=inputs,
                runtime=MODULES[setting.runtime],
            )
            for wanted in suite.tasks
            for documents in orders[wanted.task][look]
        ]
        for look in range(len(LOOKS))
    ]


def _finished(schedule: Sequence[Sequence[BlockRequest]]) -> dict[tuple[str, tuple[int, ...]], Block]:
    """Return the blocks that are finished, by task and documents."""
    looked_up = ((request.id, finished_block(request)) for requests in schedule for request in requests)
    return {id_: block for id_, block in looked_up if block}


def _evaluation(
    subject: Subject, suite: Suite, setting: Setting, asked: Mapping[str, Asked], done: Mapping[str, Sequence[Block]]
) -> Evaluation:
    """Return the evaluation, as far as its blocks are done."""
    return Evaluation(
        model=subject.label,
        model_digest=subject.digest,
        suite=suite,
        runtime=setting.name,
        device=setting.device,
        dtype=setting.dtype,
        tasks=tuple(_task_result(blocks, asked[task].documents) for task, blocks in done.items()),
    )


def _task_result(blocks: Sequence[Block], of: int) -> TaskResult:
    """Return one task's result, of `of` documents that the suite asks for."""
    scores = [document.score for block in blocks for document in block.documents]
    return TaskResult(documents=len(scores), of=of, mean=sum(scores) / len(scores), blocks=tuple(blocks))
