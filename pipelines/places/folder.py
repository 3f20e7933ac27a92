"""A folder: assembled beside it and renamed, so that a reader sees all of it or none."""

import shutil
from pathlib import Path

from pipelines import progress
from pipelines.errors import QuantgateError, bad_input
from pipelines.places import NOT_OURS, SUMS, files_of
from pipelines.store import file_digest

REMEDY = "give another folder with TO= or --to"


class Folder:
    """The folder `path`, there or to be made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        above = next(parent for parent in self._path.absolute().parents if parent.exists())
        if not above.is_dir():
            raise bad_input(self._path, f"cannot be made: {above} is not a folder", REMEDY)
        if not self._path.exists() or (self._path.is_dir() and not any(self._path.iterdir())):
            return None
        try:
            return (self._path / name).read_bytes()
        except OSError:
            raise bad_input(self._path, NOT_OURS, REMEDY) from None

    def upload(self, folder: Path) -> None:
        staging = self._path.parent / f".{self._path.name}.partial"
        staging.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        try:
            self._copy(folder, staging)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise QuantgateError(f"{self._path}: {error.strerror or error}\n    {REMEDY}") from None
        staging.replace(self._path)

    def _copy(self, folder: Path, staging: Path) -> None:
        for name in progress.track(files_of(folder), "publish", "file"):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staging / name)
            if file_digest(staging / name) != file_digest(folder / name):
                raise QuantgateError(f"{staging / name} was not copied faithfully; is the disk sound?")

    def download(self, folder: Path) -> None:
        if not (self._path / SUMS).is_file():
            raise bad_input(self._path, "holds no published artifact", "is it a folder that quantgate published?")
        for path in sorted(self._path.rglob("*")):
            if path.is_file():
                copy = folder / path.relative_to(self._path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
