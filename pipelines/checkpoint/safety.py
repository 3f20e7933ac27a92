"""What in a checkpoint's folder is not its own, or would make a runtime load something else than its weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.core.errors import Problem

ADAPTER = "adapter_config.json"
OTHER_WEIGHTS = ("transformers_weights", "speculators_config")
"""Keys of a config by which transformers, or vLLM, loads other weights than those that lie there for it."""


def folder_label(folder: Path) -> str:
    """Return the folder's name; it becomes a part of paths, which `..` must not."""
    name = folder.absolute().name
    return name if name not in ("", "..") else folder.resolve().name or "model"


def foreign_files(folder: Path) -> Iterator[Problem]:
    """Yield what is not the checkpoint's own, before anything of it is read: what lies beside the weights may be
    published, and a link could take along any file of this machine.

    The hub's cache consists of links, from `snapshots/COMMIT/` to `blobs/` in the folder of the same repository.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[1]
    if not folder_label(folder).isprintable():
        yield Problem(repr(str(folder)), "has control characters in its name", "rename it")
    for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        name = path.relative_to(folder).as_posix()
        if name.startswith("."):  # neither read nor copied
            continue
        if not name.isprintable():
            yield unprintable_name(folder, name)
        elif (target := _resolved(path)) is None:
            yield Problem(str(path), "is a link that leads nowhere", "copy the file itself here")
        elif not target.is_relative_to(home):
            yield Problem(str(path), f"leads out of the checkpoint, to {target}", "copy the file itself here")
        elif not (target.is_file() or target.is_dir()):
            yield Problem(str(path), "is neither a file nor a folder", "remove it")


def unprintable_name(folder: Path, name: str) -> Problem:
    """Return the problem of a name that would be lines of its own in a card and in a list of checksums."""
    return Problem(str(folder), f"holds a file with control characters in its name: {name!r}", "rename it")


def _resolved(path: Path) -> Path | None:
    """Return what `path` is, without links; None if they lead to nothing, or in circles."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # of a circle, Python 3.13 raises another than those before
        return None


def misleading_settings(folder: Path, config: dict[str, Any]) -> Iterator[Problem]:
    """Yield what would make a runtime load something else than the weights that are read here."""
    where = str(folder / "config.json")
    for key, value in entries(config):
        if key in OTHER_WEIGHTS:
            yield Problem(where, f"its '{key}' sends runtimes to other weights than those here", "remove the key")
        if key.endswith("attn_implementation") and "/" in str(value):
            what = f"its '{key}' asks for code from the hub ({value}), which quantgate does not run"
            yield Problem(where, what, "remove the key")
    if "auto_map" in config and not _is_known(config.get("model_type")):
        what = f"its model type {config.get('model_type')} needs code of its own, which quantgate does not run"
        yield Problem(where, what, "give a model of a type that transformers knows")
    if (folder / ADAPTER).is_file():
        what = "is of an adapter, which transformers would put on the weights unasked"
        yield Problem(str(folder / ADAPTER), what, "merge it into the weights, or remove this file")


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON value with what it holds, at any depth."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            left += inner.values()
        elif isinstance(inner, list):
            left += inner


def _is_known(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # takes a second: for few configs

    return model_type in CONFIG_MAPPING_NAMES
