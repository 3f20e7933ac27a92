"""The tree of packages in docs/architecture.md, made from their docstrings."""

import ast
import itertools
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- begin of the tree: make docs -->\n", "<!-- end of the tree -->\n"
WIDTH = 116


def architecture_page() -> str:
    """Return docs/architecture.md with the tree as it is now."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tree()}{END}{after}"


def tree() -> str:
    """Return the packages from the command down to the core, each with what it is for and its modules."""
    packages = list(itertools.chain.from_iterable(_described(ROOT / "pipelines" / name) for name in _layers()))
    return "```\npipelines/\n" + "".join(f"{line}\n" for line in packages) + "```\n"


def _layers() -> list[str]:
    """Return the packages in the order that import-linter holds them to."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [name for layer in layers for name in layer.split(" | ")]


def _described(package: Path) -> list[str]:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    about = " ".join(docstring.split("\n\n")[0].split())
    head = textwrap.wrap(about, WIDTH - 18)
    lines = [f"  {package.name + '/':<16}{head[0]}", *(" " * 18 + line for line in head[1:])]
    return lines + textwrap.wrap(_modules(package), WIDTH, initial_indent=" " * 20, subsequent_indent=" " * 20)


def _modules(package: Path) -> str:
    """Return the names of a package's modules, those of a folder in it in brackets behind its name."""
    modules = sorted(file.stem for file in package.glob("*.py") if not file.stem.startswith("__"))
    folders = sorted(folder for folder in package.iterdir() if (folder / "__init__.py").is_file())
    return ", ".join([*modules, *(f"{folder.name}/ ({_modules(folder)})" for folder in folders)])
