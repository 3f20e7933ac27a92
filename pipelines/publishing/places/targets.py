"""From what a user writes after `--to` to a place."""

import re
from pathlib import Path
from typing import assert_never
from urllib.parse import unquote, urlsplit

from pipelines.core.errors import bad_input
from pipelines.publishing.places.place import FilesystemTarget, FolderTarget, HubTarget, OciTarget, Place

PLACEHOLDER = re.compile(r"\{(\w*)\}")
HUB_TARGET = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
OCI_TARGET = re.compile(r"([\w.-]+(?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*):([\w][\w.-]{0,127})")
FORMS = "a folder, hf://org/name[@branch], s3://bucket/prefix (or another file system), oci://host/name:tag"
Target = FolderTarget | HubTarget | FilesystemTarget | OciTarget


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
            from pipelines.publishing.places.folder import Folder

            return Folder(target.path)
        case HubTarget():
            from pipelines.publishing.places.hub import Hub

            return Hub(target)
        case FilesystemTarget():
            from pipelines.publishing.places.object_store import Filesystem

            return Filesystem(target)
        case OciTarget():
            from pipelines.publishing.places.registry import Oci

            return Oci(target)
        case _ as never:
            assert_never(never)
