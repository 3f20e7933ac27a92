"""Recipes, suites, tasks and calibration sets, from YAML files and back."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.core.errors import BadInput, Problem, bad_input, refuse
from pipelines.core.strict_yaml import YamlFile, fit, place, read
from pipelines.core.text_files import refusals
from pipelines.recipe import library
from pipelines.recipe.calibration_set import CalibrationSet, FileSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite, SuiteTask, Task


def as_yaml(recipe: Recipe) -> str:
    """Return the YAML of a file with this recipe."""
    values = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    kept: dict[str, Any] = {"version": recipe.version, "name": recipe.name, **values}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe called `name` (or in the file `name`), with `overrides` like `calibrate.samples=64` applied.

    Its suite and calibration set are looked up too, so that a misspelt one is found now.

    Raises:
        BadInput: with every problem of the file, each with line and column.
    """
    document = _document("recipe", name, overrides)
    recipe = fit(document, Recipe)
    problems = _named(load_suite, recipe.gate.suite, place(document, ("gate", "suite")))
    if recipe.calibrate:
        problems += _named(load_set, recipe.calibrate.set, place(document, ("calibrate", "set")))
    refuse(problems)
    return recipe


def _document(kind: library.Kind, name: str | Path, overrides: Iterable[str] = ()) -> YamlFile:
    """Return the file of `kind` called `name`. One of the library calls itself by the name that it is found by; a file
    of the user's own, which is found by its path, may have any.

    Raises:
        BadInput: there is no such file, it is not plain YAML, or it calls itself otherwise.
    """
    path = library.find(kind, str(name))
    document = read(path, overrides)
    file, key = document.alone or document, "task" if kind == "task" else "name"
    called = file.data.get(key)
    if str(name) in library.names(kind) and isinstance(called, str) and called != path.stem:
        remedy = f"rename the file, or write {key}: {path.stem}"
        raise bad_input(place(file, (key,)), f"{key} is '{called}', and the {kind} is found as '{path.stem}'", remedy)
    return document


def _named(load_it: Callable[[str], object], name: str, where: str) -> list[Problem]:
    """Return the problems of the file that a recipe names at `where`; a name of no file is blamed on the recipe."""
    try:
        load_it(name)
    except BadInput as error:
        found = (Problem(where, f"{p.what}: '{name}'", p.remedy) if p.where == name else p for p in error.problems)
        return list(found)
    return []


def load_suite(name: str | Path) -> Suite:
    """Return the suite called `name` (or in the file `name`).

    Raises:
        BadInput: with every problem of the file.
    """
    return fit(_document("suite", name), Suite)


def load_task(name: str) -> Task:
    """Return the facts that quantgate has on lm-eval's task `name`; for a task it has no file for, the defaults."""
    if name in library.names("task"):
        return fit(_document("task", name), Task)
    return Task(version=1, task=name)


def expected_documents(suite: Suite) -> int | None:
    """Count the documents of `suite` by what its tasks' files say; None where one says nothing."""
    counts = [task_documents(wanted) for wanted in suite.tasks]
    return None if None in counts else sum(filter(None, counts))


def task_documents(wanted: SuiteTask) -> int | None:
    """Count the documents of one task of a suite; None where nothing tells."""
    known = [count for count in (wanted.limit, load_task(wanted.task).documents) if count]
    return min(known, default=None)


def load_set(name: str | Path) -> CalibrationSet:
    """Return the calibration set called `name` (or in the file `name`).

    Raises:
        BadInput: with every problem of the set's file, and of those it names, as far as it shows without reading them.
    """
    document = _document("set", name)
    chosen = fit(document, CalibrationSet)
    if isinstance(chosen.source, FileSource):
        refuse(_unreadable(document, chosen.source))
    return chosen


def _unreadable(document: YamlFile, source: FileSource) -> Iterator[Problem]:
    """Yield a problem for each thing that keeps the files of a set from being read."""
    folder = document.path.parent
    for number, name in enumerate(source.paths):
        where, path = place(document, ("source", "paths", number)), folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError, ValueError):  # a circle of links, or a name that no file system takes
            inside = False
        if inside:
            yield from refusals(where, path)
        else:  # a set from elsewhere is to read nothing else
            yield Problem(where, f"names a file outside its folder: {path}", "copy the file beside the set's file")
