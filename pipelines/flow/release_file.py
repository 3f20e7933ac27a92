"""The release file: its schema, and loading it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from pipelines.core.errors import Problem, refuse
from pipelines.core.strict_yaml import Frozen, YamlFile, fit, place, read
from pipelines.recipe.library import Name

Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Release(Frozen):
    """The content of a release file."""

    version: Literal[1]
    name: Name
    """Name of the release, which `{release}` in a target stands for."""
    summary: str = ""
    models: Texts
    """Models: hub ids (`org/name@revision`) or checkpoint folders, as seen from the file."""
    recipes: Texts
    """Recipes: names, or files as seen from the release file."""
    targets: Texts
    """Targets, each of which gets every artifact that passed; `{release}`, `{model}` and `{recipe}` stand for names."""

    _places: dict[str, tuple[str, ...]] = PrivateAttr(default_factory=dict)

    def places(self, key: str) -> tuple[str, ...]:
        """Return where the file names each of the `models`, `recipes` or `targets`, with line and column; nothing for a
        release that is of no file."""
        return self._places.get(key, ())

    def __eq__(self, other: object) -> bool:
        """Tell whether two releases ask for the same, wherever their files name it."""
        return isinstance(other, Release) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Release":
        for what in ("models", "recipes", "targets"):
            given = getattr(self, what)
            if twice := [one for one in given if given.count(one) > 1]:
                raise ValueError(f"{what} has {twice[0]} twice")
        return self


def load_release(file: Path) -> Release:
    """Return the release that `file` describes.

    Raises:
        BadInput: with every problem, each with line and column; a path that leads out of the file's folder is one.
    """
    document = read(file)
    release = fit(document, Release)
    refuse([*_escapes(document, "recipes", release.recipes), *_escapes(document, "targets", release.targets)])
    for key in ("models", "recipes", "targets"):
        named = range(len(getattr(release, key)))
        release._places[key] = tuple(place(document, (key, number)) for number in named)
    return release


def _escapes(document: YamlFile, key: str, names: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each of `names`, which are under `key`, that leads out of the file's folder: a file in a pull
    request must not say what is read and written elsewhere on the machine that runs it."""
    folder = document.path.absolute().parent.resolve()
    for number, name in enumerate(names):
        path = Path(name.removeprefix("file://"))
        local = "://" not in name or name.startswith("file:")
        if local and (path.parts[:1] == ("~",) or not (folder / path).resolve().is_relative_to(folder)):
            remedy = "give a path below the file; any is allowed to --to on the command line"
            remedy = remedy if key == "targets" else "copy it there"
            yield Problem(place(document, (key, number)), f"{name} leads out of the release file's folder", remedy)
