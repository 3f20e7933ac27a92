"""The YAML files that come with quantgate, by kind and name: recipes, calibration sets, suites, tasks.

A name is looked up in the library; anything that ends in `.yaml` is a path of the user's own.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.core.errors import bad_input, did_you_mean

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
"""Name of a recipe, a suite or a calibration set."""
Kind = Literal["recipe", "set", "suite", "task"]
FOLDERS: dict[Kind, str] = {
    "recipe": "recipes",
    "set": "calibration/sets",
    "suite": "evals/suites",
    "task": "evals/tasks",
}
PACKAGE = Path(__file__).parents[1]


def folder(kind: Kind) -> Path:
    """Return the folder of `kind`: inside the package when installed, beside it in a checkout."""
    installed = PACKAGE / "data" / FOLDERS[kind]
    return installed if installed.is_dir() else PACKAGE.parent / FOLDERS[kind]


def names(kind: Kind) -> list[str]:
    """Return the names of all files of `kind`, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def find(kind: Kind, name: str) -> Path:
    """Return the file of `kind` called `name`, or the path that `name` is.

    Raises:
        BadInput: there is no such file; the message has the nearest names.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not _exists(path):
            raise bad_input(name, f"there is no such {kind} file", _other_file(kind, path))
        return path
    path = folder(kind) / f"{name}.yaml"
    if name in names(kind):
        return path
    own = [str(file) for suffix in (".yaml", ".yml") if (file := Path(name + suffix)).name != suffix and _exists(file)]
    remedy = did_you_mean(name, own or names(kind), cutoff=0.4) or f"there are: {', '.join(names(kind))}"
    raise bad_input(name, f"there is no {kind} of this name", remedy)


def _other_file(kind: Kind, path: Path) -> str:
    """Name what may be meant by a path of no file: a name of the library, or files beside it."""
    if path.stem in names(kind):
        return f"did you mean {path.stem}, which comes with quantgate?"
    try:
        beside = [str(file) for file in path.parent.iterdir() if _exists(file) and file.suffix in (".yaml", ".yml")]
    except OSError:
        beside = []
    return did_you_mean(str(path), beside) or f"give the path of a file, or one of: {', '.join(names(kind))}"


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False
