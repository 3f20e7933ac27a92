"""The code that a kept result depends on: a module, and all that it imports from this project, directly or not."""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder that holds the package `pipelines`."""
PACKAGE = "pipelines"
CHOICE = "choice"
"""Name of modules that pick others at run time: who asks one names what it picked, so that imports end there."""


@functools.cache
def code_digest(modules: tuple[str, ...], root: Path = ROOT) -> str:
    """Return the digest (SHA-256, 32 hexadecimal digits) of `modules`, by full name, and of all that they import.

    It is computed once: an evaluation asks for it with each of its blocks. Imports inside functions count; those for a
    type checker only, and what a `choice` module imports, do not.
    """
    state = hashlib.sha256()
    for name in sorted(imported_by(modules, root)):
        state.update(f"{name}\0{_read(root, name)[0]}\n".encode())
    return state.hexdigest()[:32]


def imported_by(modules: Iterable[str], root: Path = ROOT) -> set[str]:
    """Return `modules` and all modules of this project that they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += () if name.endswith(f".{CHOICE}") else _read(root, name)[1]
    return found


@functools.cache
def _read(root: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of a module's file, and the modules of this project that it imports."""
    content = _file(root, module).read_bytes()
    modules = (part if _file(root, part).is_file() else whole for whole, part in _imports(content))
    return hashlib.sha256(content).hexdigest(), tuple(sorted(set(modules)))


def _file(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _imports(content: bytes) -> tuple[tuple[str, str], ...]:
    """Return what code imports from this project: a module, and the full name of what it takes from it, which may be a
    module, too."""
    return tuple(_imported(ast.parse(content)))


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((name.name, name.name) for name in node.names if name.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            yield from ((node.module, f"{node.module}.{name.name}") for name in node.names)
        else:
            yield from _imported(node)
