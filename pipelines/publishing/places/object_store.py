"""An object store or any other file system that fsspec knows.

Such a store cannot show many files at once. So a prefix is written once and never again, `SHA256SUMS` comes last, and
what has none is not published.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.core import progress
from pipelines.core.cache import HASH_CHUNK, file_digest
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.publishing.places.place import SUMS, Kind, Target, asking, files_of, path_for, refuse_credentials, sha256

REMEDY = "are the credentials of that store set, and is it there? (docs/publish.md)"
UPLOAD_REMEDY = f"{REMEDY}; the local artifact is untouched"


class FilesystemTarget(Target):
    """A prefix in a file system that fsspec knows: `s3://`, `gs://` and so on."""

    url: str

    def __str__(self) -> str:
        return self.url

    def open(self) -> "Filesystem":
        return Filesystem(self)


def parse(text: str) -> FilesystemTarget | None:
    """Return the prefix that an address of a file system names; None where fsspec knows no such file system.

    It knows the hub's and registries', too: so this kind is asked last.

    Raises:
        BadInput: the address names no place for an artifact, or holds a credential.
    """
    from fsspec.registry import known_implementations

    refuse_credentials(text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in known_implementations:
        return None
    if not rest.strip("/") or ".." in rest.split("/"):
        raise bad_input(text, "names no place for an artifact", f"for example {scheme}://bucket/{{model}}/{{recipe}}")
    return FilesystemTarget(url=f"{scheme}://{rest.rstrip('/')}")


KIND = Kind(form="s3://bucket/prefix (or another file system)", parse=parse)


class Filesystem:
    """The prefix that a target names."""

    def __init__(self, target: FilesystemTarget) -> None:
        self._target = target
        self._opened: tuple[Any, str] | None = None

    @property
    def _root(self) -> tuple[Any, str]:
        """File system, and the prefix in it; no listing is remembered, since others write there too."""
        if self._opened is None:
            import fsspec

            try:
                self._opened = fsspec.core.url_to_fs(
                    self._target.url, use_listings_cache=False, skip_instance_cache=True
                )
            except ImportError as error:
                scheme = self._target.url.partition("://")[0]
                remedy = (
                    f".venv/bin/pip install '.[{scheme}]' in quantgate's folder"
                    if scheme in ("s3", "gs")
                    else "install what it names"
                )
                raise bad_input(self._target, f"needs a package: {error}", remedy) from None
        return self._opened

    def read(self, name: str) -> bytes | None:
        with asking(self._target, REMEDY):
            fs, root = self._root
            try:
                content: bytes = fs.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                content = b""
            complete = content and fs.exists(f"{root}/{SUMS}")
        return content if complete else None

    def upload(self, folder: Path) -> None:
        with asking(self._target, UPLOAD_REMEDY):
            fs, root = self._root
            names, there = files_of(folder), self._names()
            if foreign := [name for name in sorted(there) if name not in names or not self._holds(folder, name)]:
                what = f"holds other files already, like {foreign[0]}"
                raise bad_input(self._target, what, "give another prefix, or remove them")
            for name in progress.track([name for name in names if name not in there], "publish", "file"):
                fs.put_file(str(folder / name), f"{root}/{name}")
                if not self._holds(folder, name):
                    raise QuantgateError(f"{self._target}/{name} did not arrive as it was sent\n    publish again")

    def _holds(self, folder: Path, name: str) -> bool:
        """Tell whether the file there is the one of `folder`: what an upload that was cut off left is kept."""
        return sha256(self._chunks(name)) == file_digest(folder / name)

    def _names(self) -> set[str]:
        """Return the names of the files below the prefix."""
        fs, root = self._root
        try:
            found = fs.find(root)
        except FileNotFoundError:
            return set()
        return {path.removeprefix(root).lstrip("/") for path in found} - {""}

    def _chunks(self, name: str) -> Iterator[bytes]:
        fs, root = self._root
        with fs.open(f"{root}/{name}", "rb", cache_type="readahead", block_size=HASH_CHUNK) as file:
            while chunk := file.read(HASH_CHUNK):
                yield chunk

    def download(self, folder: Path) -> None:
        with asking(self._target, REMEDY):
            names = self._names()
            if SUMS not in names:
                raise bad_input(
                    self._target, "holds no published artifact", "an upload that was cut off has no SHA256SUMS"
                )
            fs, root = self._root
            for name in progress.track(sorted(names), "pull", "file"):
                path = path_for(name, folder)
                fs.get_file(f"{root}/{name}", str(path))
