"""The YAML files that come with quantgate, by kind and name: recipes, calibration sets, suites, tasks.

A name is looked up in the library; anything that ends in `.yaml` is a path of the user's own.
"""

import difflib
from pathlib import Path
from typing import Literal

from pipelines.errors import bad_input

Kind = Literal["recipe", "set", "suite", "task"]
FOLDERS: dict[Kind, str] = {
    "recipe": "recipes",
    "set": "calibration/sets",
    "suite": "evals/suites",
    "task": "evals/tasks",
}
PACKAGE = Path(__file__).parent


def folder(kind: Kind) -> Path:
    """The folder of `kind`: inside the package when installed, beside it in a checkout."""
    installed = PACKAGE / "data" / FOLDERS[kind]
    return installed if installed.is_dir() else PACKAGE.parent / FOLDERS[kind]


def names(kind: Kind) -> list[str]:
    """The names of all files of `kind`, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def find(kind: Kind, name: str) -> Path:
    """The file of `kind` called `name`, or the path that `name` is.

    Raises:
        BadInput: there is no such file; the message has the nearest names.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        try:
            found = path.is_file()
        except OSError:  # a name that no file system takes
            found = False
        if not found:
            raise bad_input(name, f"there is no such {kind} file")
        return path
    path = folder(kind) / f"{name}.yaml"
    if name in names(kind):
        return path
    near = difflib.get_close_matches(name, names(kind), n=3, cutoff=0.4)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names(kind))}"
    raise bad_input(name, f"there is no {kind} of this name", remedy)
