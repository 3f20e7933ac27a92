"""Where artifacts are published: what `--to` may say, and one module for each kind of place.

A place shows a reader the whole artifact or nothing: a folder is renamed into place, a hub repository gets one commit,
a registry's tag is set last, and of an object store's prefix `SHA256SUMS` is written last.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar, assert_never
from urllib.parse import unquote, urlsplit

from pipelines.errors import QuantgateError, bad_input
from pipelines.schema import Frozen
from pipelines.secrets import redact

T = TypeVar("T")
SUMS = "SHA256SUMS"
"""Names and SHA-256 of all other files but the signature: the last file to appear."""
NOT_OURS = "exists and is not an artifact of quantgate"
PLACEHOLDER = re.compile(r"\{(\w*)\}")
HUB_TARGET = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
OCI_TARGET = re.compile(r"([\w.-]+(?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*):([\w][\w.-]{0,127})")
FORMS = "a folder, hf://org/name[@branch], s3://bucket/prefix (or another file system), oci://host/name:tag"


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


Target = FolderTarget | HubTarget | FilesystemTarget | OciTarget


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


def parse_target(text: str | Path, **names: str) -> Target:
    """The target that `text` is, with `{model}`, `{recipe}` and the like replaced by `names`.

    Raises:
        BadInput: an unknown form or placeholder, or a credential in it, which is not repeated.
    """
    text = _filled(str(text), names)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return FolderTarget(path=Path(text).expanduser().absolute())
    if scheme != "hf" and "@" in rest.split("/")[0]:
        where = f"{scheme}://…@{rest.split('/')[0].rpartition('@')[2]}"
        raise bad_input(where, "a target holds no credentials", "docs/publish.md says where each client looks")
    match scheme:
        case "file":
            return FolderTarget(path=Path(unquote(urlsplit(text).path)).absolute())
        case "hf" if found := HUB_TARGET.fullmatch(rest.strip("/")):
            return HubTarget(repository=found[1], branch=found[2] or "main")
        case "oci" if found := OCI_TARGET.fullmatch(_lower(rest)):
            return OciTarget(host=found[1], name=found[2], tag=found[3])
        case "hf" | "oci":
            raise bad_input(text, f"is not a target of the form {FORMS.split(', ')[1 if scheme == 'hf' else 3]}")
    from fsspec.registry import known_implementations

    if scheme not in known_implementations:
        raise bad_input(text, f"'{scheme}' is no kind of target", f"give {FORMS}")
    if not rest.strip("/") or ".." in rest.split("/"):
        raise bad_input(text, "names no place for an artifact", f"for example {scheme}://bucket/{{model}}/{{recipe}}")
    return FilesystemTarget(url=f"{scheme}://{rest.rstrip('/')}")


def _filled(text: str, names: dict[str, str]) -> str:
    unknown = sorted({found[1] for found in PLACEHOLDER.finditer(text)} - names.keys())
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in names) or "none"
        raise bad_input(text, f"has the unknown placeholder {{{unknown[0]}}}", f"known here: {known}")
    return PLACEHOLDER.sub(lambda found: names[found[1]], text)


def _lower(reference: str) -> str:
    """A registry's names are lower case; a tag is as it was."""
    name, separator, tag = reference.rpartition(":")
    return f"{name.lower()}{separator}{tag}"


def open_place(target: Target) -> Place:
    """The place that `target` names; nothing is asked of it yet."""
    match target:
        case FolderTarget():
            from pipelines.places.folder import Folder

            return Folder(target.path)
        case HubTarget():
            from pipelines.places.hub import Hub

            return Hub(target)
        case FilesystemTarget():
            from pipelines.places.filesystem import Filesystem

            return Filesystem(target)
        case OciTarget():
            from pipelines.places.oci import Oci

            return Oci(target)
        case _ as never:
            assert_never(never)


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
