"""A folder: assembled beside it and renamed, so that a reader sees all of it or none."""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.core import progress
from pipelines.core.cache import file_digest
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.core.paths import expanded
from pipelines.publishing.places.place import NOT_OURS, SUMS, Kind, Target, files_of, refuse_credentials

REMEDY = "give another folder with TO= or --to"
SUFFIX = ".partial"
LOCK = "quantgate.lock"
"""Name of a file in a staging folder, locked as long as the process that made the folder lives."""


class FolderTarget(Target):
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> "Folder":
        return Folder(self.path)


def parse(text: str) -> FolderTarget | None:
    """Return the folder that `text` names: a path, or a `file:` address with percent escapes; None for another scheme.

    Raises:
        BadInput: the address holds a credential.
    """
    scheme, separator, _ = text.partition("://")
    if not separator:
        return FolderTarget(path=expanded(text).absolute())
    if scheme != "file":
        return None
    refuse_credentials(text)
    return FolderTarget(path=Path(unquote(urlsplit(text).path)).absolute())


KIND = Kind(form="a folder", parse=parse)


class Folder:
    """The folder `path`, there or to be made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(OSError, ValueError):
            return (self._path / name).read_bytes()
        if _holds_something(self._path):
            raise bad_input(self._path, NOT_OURS, REMEDY)
        with self._making():
            self._above()
        return None

    def try_out(self) -> None:
        """Make a folder where this one is to be, unless there is something, and remove it: nothing but trying tells for
        every user and file system. It leaves a trace, the time of change of the folder above.

        Raises:
            BadInput: none can be made.
        """
        if _holds_something(self._path):
            return
        with self._making():
            above = self._above()
            with tempfile.TemporaryDirectory(prefix=".quantgate.", suffix=SUFFIX, dir=above) as trial:
                parent = Path(trial) / self._path.relative_to(above).parent
                parent.mkdir(parents=True, exist_ok=True)
                self._make_staging(parent)

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        """Turn what the file system says inside this block into `BadInput`."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise bad_input(self._path, f"cannot be made: {_reason(error)}", REMEDY) from None

    def _above(self) -> Path:
        """Return the nearest folder above that is there; refuse a path that no folder could be renamed to.

        Raises:
            BadInput: with the reason.
        """
        path = self._path
        if path.is_dir() and (path.is_symlink() or _is_mount(path)):
            kind = "a link" if path.is_symlink() else "a mount point"
            what = f"is {kind}, which cannot be replaced by the finished folder"
            raise bad_input(path, what, f"give a folder inside it: --to {path}/NAME")
        if path.is_symlink() and not path.is_dir():
            raise bad_input(path, "is a link that leads to no folder", f"remove the link, or {REMEDY}")
        above = next(parent for parent in path.parents if os.path.lexists(parent))
        if not above.is_dir():
            what = "is a link that leads to no folder" if above.is_symlink() else "is not a folder"
            raise bad_input(path, f"cannot be made: {above} {what}", REMEDY)
        missing = path.relative_to(above)
        if ".." in missing.parts:
            raise bad_input(path, "cannot be made: it leads up out of a folder that is not there", REMEDY)
        return above

    def upload(self, folder: Path) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._staging() as staging:
                self.copy(folder, staging)
                self._put_in_place(staging)
        except OSError as error:
            raise QuantgateError(f"{self._path}: {_reason(error)}\n    {REMEDY}") from None

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """Yield an empty folder beside the target, this process's own; what killed processes left there is removed."""
        self._remove_leftovers()
        own = self._make_staging(self._path.parent)
        try:
            with (own / "unlocked").open("w") as lock:
                with contextlib.suppress(OSError):  # without locks, a killed process's folder is never removed
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (own / "unlocked").rename(own / LOCK)  # nobody sees it before it is locked
                (own / "files").mkdir()
                yield own / "files"
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def _make_staging(self, parent: Path) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{self._path.name}.", suffix=SUFFIX, dir=parent))

    def _remove_leftovers(self) -> None:
        for left in self._path.parent.glob(f".{glob.escape(self._path.name)}.????????{SUFFIX}"):
            with contextlib.suppress(OSError), (left / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)

    def copy(self, folder: Path, staging: Path) -> None:
        """Copy the files of `folder` into `staging`, and check that each arrived.

        Raises:
            QuantgateError: one did not, or was removed meanwhile.
        """
        for name in progress.track(files_of(folder), "publish", "file"):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staging / name)
            if file_digest(staging / name) != file_digest(folder / name):
                raise QuantgateError(f"{staging / name} was not copied faithfully; is the disk sound?")
        if files_of(staging) != files_of(folder):
            raise QuantgateError(f"{self._path}: files were removed from {staging} while it was filled\n    {REMEDY}")

    def _put_in_place(self, staging: Path) -> None:
        try:
            staging.replace(self._path)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            what = "something else was put there meanwhile, and is left as it is"
            remedy = "publish again to have it compared with this artifact, or give another folder with --to"
            raise QuantgateError(f"{self._path}: {what}\n    {remedy}") from None

    def download(self, folder: Path) -> None:
        if not (self._path / SUMS).is_file():
            raise bad_input(self._path, "holds no published artifact", "is it a folder that quantgate published?")
        for path in sorted(self._path.rglob("*")):
            if path.is_file():
                copy = folder / path.relative_to(self._path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def _holds_something(path: Path) -> bool:
    """Tell whether there is a file, or a folder with content or one that may not be looked into."""
    try:
        return any(path.iterdir())
    except (NotADirectoryError, PermissionError):
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _is_mount(path: Path) -> bool:
    """Tell whether `path` is a mount point.

    Linux tells of bind mounts within one file system too, which `Path.is_mount` does not see.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            point = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])
            if point == os.fsencode(path.resolve()):
                return True
    return path.is_mount()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
