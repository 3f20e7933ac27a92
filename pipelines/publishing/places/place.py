"""What all kinds of places have in common: their targets as data, and what a place can do."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from pipelines.core.errors import QuantgateError
from pipelines.core.secrets import redact
from pipelines.core.strict_yaml import Frozen

T = TypeVar("T")
SUMS = "SHA256SUMS"
"""Names and SHA-256 of all other files but the signature: the last file to appear."""
NOT_OURS = "exists and is not an artifact of quantgate"


class FolderTarget(Frozen):
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


class HubTarget(Frozen):
    """A repository of the Hugging Face hub, made private unless it exists."""

    repository: str
    branch: str

    def __str__(self) -> str:
        return f"hf://{self.repository}" + ("" if self.branch == "main" else f"@{self.branch}")


class FilesystemTarget(Frozen):
    """A prefix in a file system that fsspec knows: `s3://`, `gs://` and so on."""

    url: str

    def __str__(self) -> str:
        return self.url


class OciTarget(Frozen):
    """A tag in a container registry."""

    host: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}:{self.tag}"


class Place(Protocol):
    """A target that can be read and written. Whatever a client library raises becomes one `QuantgateError`."""

    def read(self, name: str) -> bytes | None:
        """A small file of what is published there; None where nothing is.

        Raises:
            BadInput: there is something that quantgate did not publish.
        """
        ...

    def upload(self, folder: Path) -> None:
        """Publish every file of `folder`, which holds `SUMS`; each is seen to have arrived before a reader sees any."""
        ...

    def download(self, folder: Path) -> None:
        """Fetch every file that is published there into the empty `folder`."""
        ...


def files_of(folder: Path) -> list[str]:
    """Every file below `folder`, by its relative path: weights first, what makes a reader look at them last."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(names, key=lambda name: (name == SUMS, name.endswith(".json"), name))


def path_for(name: str, folder: Path) -> Path:
    """Where the file `name` is to be written, its own folder made, if it stays below `folder`: what a place says is
    not trusted."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise QuantgateError(f"the published artifact has a file called {name!r}, which would leave its folder")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    return folder / path


def sha256(chunks: Iterable[bytes]) -> str:
    """Of bytes that come piece by piece, in hexadecimal."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


@contextlib.contextmanager
def asking(target: object, remedy: str) -> Iterator[None]:
    """Turn what a client library raises into one error. Each library has exceptions of its own, and passes on those of
    the layers below: naming them all would miss some, and a traceback may show a request's headers."""
    try:
        yield
    except (QuantgateError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise QuantgateError(redact(f"{target}: {_cause(error)}\n    {remedy}")) from None


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} …"
