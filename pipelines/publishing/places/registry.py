"""A container registry: the artifact as the CNCF's ModelPack describes it, one layer for each file.

Blobs are addressed by their digest and checked by the registry when they arrive; the tag is set last. Media types and
annotations: https://github.com/modelpack/model-spec (v1). Credentials are those of `docker login`.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pipelines.core import progress
from pipelines.core.cache import HASH_CHUNK, file_digest
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.publishing.places.place import NOT_OURS, Kind, Target, asking, files_of, path_for, refuse_credentials

REMEDY = "is the registry there, and did you `docker login`?"
UPLOAD_REMEDY = f"{REMEDY} What arrived is kept, and not sent again"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
"""Annotation with the name that `oras pull` gives a file."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Hosts that may speak plain HTTP, as Docker allows."""
SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
"""Units of ModelPack for a number of parameters, the largest first."""
NAME = re.compile(r"([\w.-]+(?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*):([\w][\w.-]{0,127})")


class OciTarget(Target):
    """A tag in a container registry."""

    host: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}:{self.tag}"

    def open(self) -> "Oci":
        return Oci(self)


def parse(text: str) -> OciTarget | None:
    """Return the tag that `oci://host/name:tag` names; None for another scheme.

    A registry's names are lower case, a tag is as it was written.

    Raises:
        BadInput: the target is not of this form, or holds a credential.
    """
    scheme, _, rest = text.partition("://")
    if scheme != "oci":
        return None
    refuse_credentials(text)
    name, separator, tag = rest.rpartition(":")
    if not (found := NAME.fullmatch(f"{name.lower()}{separator}{tag}")):
        raise bad_input(text, f"is not a target of the form {KIND.form}")
    return OciTarget(host=found[1], name=found[2], tag=found[3])


KIND = Kind(form="oci://host/name:tag", parse=parse)


class Oci:
    """The tag that a target names."""

    def __init__(self, target: OciTarget) -> None:
        from oras.container import Container

        self._target = target
        self._container = Container(f"{target.host}/{target.name}:{target.tag}")
        self._registry = _registry(target, self._container)

    def read(self, name: str) -> bytes | None:
        with asking(self._target, REMEDY):
            if (manifest := self._manifest()) is None:
                return None
            layers = _layers(manifest)
            if name not in layers:
                raise bad_input(self._target, NOT_OURS, "give another tag")
            answer = self._registry.get_blob(self._container, layers[name]["digest"])
            answer.raise_for_status()
            content: bytes = answer.content
            return content

    def _manifest(self) -> dict[str, Any] | None:
        url = f"{self._registry.prefix}://{self._container.manifest_url()}"
        answer = self._registry.do_request(url, "GET", headers={"Accept": IMAGE_MANIFEST})
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        manifest: dict[str, Any] = answer.json()
        return manifest

    def upload(self, folder: Path) -> None:
        with asking(self._target, UPLOAD_REMEDY):
            layers = [_layer(folder, name) for name in files_of(folder)]
            for layer in progress.track(layers, "publish", "file"):
                self._send(layer, folder / layer["annotations"][FILE_PATH])
            config = _config(folder, layers)
            described = _descriptor(CONFIG, hashlib.sha256(config).hexdigest(), len(config))
            self._send(described, config)
            manifest = {
                "schemaVersion": 2,
                "mediaType": IMAGE_MANIFEST,
                "artifactType": ARTIFACT,
                "config": described,
                "layers": layers,
            }
            self._check(self._registry.upload_manifest(manifest, self._container), "the manifest")
            if self._manifest() != manifest:
                raise QuantgateError(
                    f"{self._target} holds another manifest than was sent\n    who else writes to this tag?"
                )

    def _send(self, blob: dict[str, Any], content: Path | bytes) -> None:
        """Upload a blob unless it is there: never held in memory, and stored by the registry if its digest is right."""
        registry = self._registry
        if registry.blob_exists(blob, self._container):
            return
        start = registry.do_request(f"{registry.prefix}://{self._container.upload_blob_url()}", "POST")
        self._check(start, "an upload")
        place = registry._get_location(start, self._container)
        address = f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': blob['digest']})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob["size"])}
        body = content if isinstance(content, bytes) else _Body(content)
        sent = registry.do_request(address, "PUT", data=body, headers=headers)
        self._check(sent, f"blob {blob['digest']}")
        if not registry.blob_exists(blob, self._container):
            raise QuantgateError(f"{self._target}: blob {blob['digest']} did not arrive\n    publish again")

    def _check(self, answer: Any, what: str) -> None:
        if answer.status_code not in (200, 201, 202):
            said = " ".join(answer.text.split())[:300]
            raise QuantgateError(
                f"{self._target}: the registry refused {what}: {answer.status_code} {said}\n    {UPLOAD_REMEDY}"
            )

    def download(self, folder: Path) -> None:
        with asking(self._target, REMEDY):
            if (manifest := self._manifest()) is None:
                raise bad_input(self._target, "holds no published artifact", "is there such a tag?")
            for name, layer in progress.track(sorted(_layers(manifest).items()), "pull", "file"):
                path = path_for(name, folder)
                with self._registry.get_blob(self._container, layer["digest"], stream=True) as answer:
                    answer.raise_for_status()
                    _write(path, answer.iter_content(HASH_CHUNK))
                if f"sha256:{file_digest(path)}" != layer["digest"]:
                    raise QuantgateError(f"{self._target}: {name} is not what its digest says\n    pull again")


def _registry(target: OciTarget, container: Any) -> Any:
    """Return oras' client, with another way to be let in, and without its retries.

    Those wait two minutes before they say that a registry is not there.
    """
    from oras.provider import Registry

    class Client(Registry):  # type: ignore[misc]
        def do_request(
            self,
            url: str,
            method: str = "GET",
            data: Any = None,
            headers: dict[str, str] | None = None,
            json: Any = None,
            stream: bool = False,
        ) -> Any:
            asked = {"data": data, "json": json, "stream": stream}
            answer = self.session.request(method, url, headers={**(headers or {}), **self._known()}, **asked)
            if answer.status_code in (401, 403) and (proof := self._prove(answer)):
                answer = self.session.request(method, url, headers={**(headers or {}), **proof}, **asked)
            return answer

        def _known(self) -> dict[str, str]:
            """Return the header that let us in before: asking first without it would send a large blob twice."""
            return {"Authorization": self._basic} if self._basic else dict(self.auth.get_auth_header())

        _basic = ""

        def _prove(self, answer: Any) -> dict[str, str]:
            """Return the header that `answer` asks for: a token may have expired, or be for less than this request."""
            if answer.headers.get("WWW-Authenticate", "").lower().startswith("basic"):
                login = getattr(self.auth, "_basic_auth", None)
                refused = bool(self._basic) or not login
                self._basic = "" if refused else f"Basic {login}"
                return {} if refused else {"Authorization": self._basic}
            self.auth.token = None
            headers, changed = self.auth.authenticate_request(answer, {})
            return dict(headers) if changed else {}

    host = target.host.rpartition(":")[0] or target.host
    registry = Client(hostname=target.host, insecure=host in LOOPBACK)
    registry.auth.load_configs(container, configs=_logins())
    return registry


def _logins() -> list[str]:
    """Return where `docker login`, `podman login` and `oras login` were told to keep logins; oras adds ~/.docker."""
    named = [Path(os.environ.get("DOCKER_CONFIG", "")) / "config.json", Path(os.environ.get("REGISTRY_AUTH_FILE", ""))]
    return [str(path) for path in named if path.is_absolute() and path.is_file()]


class _Body:
    """A file as a request's body, that can be sent again after the registry asked for another token."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __len__(self) -> int:
        return self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK):
                yield chunk


def _descriptor(media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


def _layer(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    described = _descriptor(_media_type(name), file_digest(path), path.stat().st_size)
    return {**described, "annotations": {FILE_PATH: name, TITLE: name}}


def _media_type(name: str) -> str:
    if name.endswith((".safetensors", ".gguf")):
        return WEIGHT
    return DOC if name.endswith((".md", ".html", ".parquet", ".sig")) or "LICENSE" in name else WEIGHT_CONFIG


def _layers(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers by the names of their files."""
    named = ((layer.get("annotations", {}).get(FILE_PATH), layer) for layer in manifest.get("layers", []))
    return {name: layer for name, layer in named if name}


def _config(folder: Path, layers: list[dict[str, Any]]) -> bytes:
    """Return ModelPack's description of the model, from the record."""
    from pipelines.reporting.record import RECORD, Manifest  # here, since a command's help names all places

    record = Manifest.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    model = record.model
    scale, letter = next((pair for pair in SCALES if model.parameters >= pair[0]), (1, ""))
    described: dict[str, Any] = {
        "descriptor": {
            "createdAt": record.created,
            "name": f"{model.label}-{record.recipe.name}",
            "description": record.recipe.summary,
            **({"revision": model.revision} if model.revision else {}),
            **({"licenses": [model.spdx]} if model.spdx else {}),
        },
        "config": {
            "architecture": "transformer",
            "format": "gguf" if record.recipe.makes_gguf else "safetensors",
            "paramSize": f"{model.parameters / scale:.1f}{letter}",
            "quantization": record.recipe.quantize.method,
        },
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }
    return json.dumps(described, indent=1).encode()


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
