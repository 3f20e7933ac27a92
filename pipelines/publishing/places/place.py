"""The common part of all kinds of places: what a target is, what a place can do, and helpers of their modules."""

import contextlib
import hashlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipelines.core.errors import QuantgateError, bad_input
from pipelines.core.secrets import redact
from pipelines.core.strict_yaml import Frozen

SUMS = "SHA256SUMS"
"""Name of the file with names and SHA-256 of all others but the signature; it is the last to appear."""
NOT_OURS = "exists and is not an artifact of quantgate"


class Place(Protocol):
    """A target that can be read and written. Whatever a client library raises becomes one `QuantgateError`."""

    def read(self, name: str) -> bytes | None:
        """Return a small file of what is published there; None where nothing is.

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


class Target(Frozen, ABC):
    """The name of a place, as data. `str` gives it as a user writes it after `--to`."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def open(self) -> Place:
        """Return the place of that name; nothing is asked of it yet."""


@dataclass(frozen=True)
class Kind:
    """A kind of place, and how a user names one."""

    form: str
    """Form of its targets, for help and messages."""
    parse: Callable[[str], Target | None]
    """Reader of what a user wrote: it returns None where that is of another kind, and raises `BadInput` where it is of
    this kind and wrong."""


def refuse_credentials(text: str) -> None:
    """Refuse the target `text` if a user name or a password stands before its host.

    Raises:
        BadInput: it does; the credential is not repeated.
    """
    scheme, _, rest = text.partition("://")
    _, separator, host = rest.split("/")[0].rpartition("@")
    if separator:
        what = "a target holds no credentials"
        raise bad_input(f"{scheme}://…@{host}", what, "docs/publish.md says where each client looks")


def files_of(folder: Path) -> list[str]:
    """Return the relative path of every file below `folder`, weights first and `SUMS` last, so that a reader who looks
    for that sees all."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(names, key=lambda name: (name == SUMS, name.endswith(".json"), name))


def path_for(name: str, folder: Path) -> Path:
    """Return where the file `name` is to be written, and make its own folder.

    Raises:
        QuantgateError: it would leave `folder`: what a place says is not trusted.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise QuantgateError(f"the published artifact has a file called {name!r}, which would leave its folder")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    return folder / path


def sha256(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256, in hexadecimal, of bytes that come piece by piece."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


@contextlib.contextmanager
def asking(target: object, remedy: str) -> Iterator[None]:
    """Turn whatever a client library raises in the `with` block into one `QuantgateError`.

    Each library has exceptions of its own, and passes on those of the layers below: naming them all would miss some.
    A traceback may show a request's headers.
    """
    try:
        yield
    except (QuantgateError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise QuantgateError(redact(f"{target}: {_cause(error)}\n    {remedy}")) from None


def _failed_connection(error: BaseException | None) -> OSError | None:
    """Return the error of the system that `error` is due to, if a connection failed."""
    while error is not None:
        if isinstance(error, ConnectionError | socket.gaierror | TimeoutError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _cause(error: BaseException) -> str:
    """Return what went wrong in one line: of a connection that failed, what the system says of it."""
    failed = _failed_connection(error)
    said = f"the connection failed: {failed.strerror or failed or 'it took too long'}" if failed else str(error)
    text = " ".join(said.split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} …"
