"""A stand-in for the Hugging Face Hub, which cannot exist in the tests: they have no network, no account, no full disk.

It listens on 127.0.0.1, keeps everything in memory and speaks only the calls which these methods of `HfApi` make about
models, with the Hub's own texts and codes where those are known; anything else gets 501.

    whoami                              GET  /api/whoami-v2
    create_repo                         POST /api/repos/create
    repo_info, model_info               GET  /api/models/REPO[/revision/REV]
    list_repo_tree, get_paths_info      GET  /api/models/REPO/tree/REV[/PATH], POST /api/models/REPO/paths-info/REV
    create_branch                       POST /api/models/REPO/branch/NAME
    preupload_lfs_files                 POST /api/models/REPO/preupload/REV, /REPO.git/info/lfs/objects/batch,
                                        PUT  /lfs/REPO/SHA256
    create_commit                       the same, and POST /api/validate-yaml, /api/models/REPO/commit/REV
    hf_hub_download, snapshot_download  HEAD and GET /REPO/resolve/REV/PATH, besides info and tree

It leaves out pull requests, tags, .gitignore, multipart uploads, pages of long lists, and Xet. A client that has hf_xet
uploads by Xet without asking, so it must be told not to: `plain_client` and `HubServer.environment` do.
"""

import base64
import codecs
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import pytest
import yaml

Json = dict[str, Any]

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".npz", ".zip")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
LFS_SIZE = 10 * 1024**2
"""The Hub takes no larger file as a regular one."""


class Refused(Exception):
    """An error the Hub answers with; by `code` the client tells a missing repository from a missing file."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, "X-Error-Code": code, **headers}


@dataclass(frozen=True)
class File:
    """A file of a commit: in git, or in the large file storage with a pointer to it in git."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def in_git(self) -> bytes:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.lfs else self.content

    @cached_property
    def blob_id(self) -> str:
        """As git computes it."""
        return hashlib.sha1(b"blob %d\0%b" % (len(self.in_git), self.in_git)).hexdigest()

    @property
    def oid(self) -> str:
        """By which a client sees whether it has the same content."""
        return self.sha256 if self.lfs else self.blob_id

    def described(self, blob_id: str, sha256: str) -> Json:
        """With the two names that differ from call to call."""
        size = len(self.content)
        lfs = {"lfs": {sha256: self.sha256, "size": size, "pointerSize": len(self.in_git)}} if self.lfs else {}
        return {"size": size, blob_id: self.blob_id, **lfs}


@dataclass(frozen=True)
class Commit:
    """All files at one point, and the oid of the commit before."""

    title: str
    files: Mapping[str, File]
    parent: str = ""

    @cached_property
    def oid(self) -> str:
        """Not git's, but like it a hash of everything."""
        parts = [self.title, self.parent, *(f"{path} {file.oid}" for path, file in sorted(self.files.items()))]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


def first_commit() -> Commit:
    """The Hub makes one with every repository."""
    return Commit("initial commit", {".gitattributes": File(ATTRIBUTES.encode())})


@dataclass
class Repo:
    """Branches with their commits, oldest first, and the large file storage by SHA-256."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [first_commit()]})
    blobs: dict[str, bytes] = field(default_factory=dict)

    def history(self, revision: str) -> list[Commit]:
        """Oldest first, of a branch or up to a commit."""
        if revision in self.branches:
            return self.branches[revision]
        for commits in self.branches.values():
            for count, commit in enumerate(commits, 1):
                if commit.oid == revision:
                    return commits[:count]
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def apply(self, files: dict[str, File], key: str, value: Json) -> None:
        """Change `files` by one line of a commit."""
        path = value["path"]
        match key:
            case "file":
                files[path] = File(base64.b64decode(value["content"]))
            case "lfsFile" if value["oid"] in self.blobs:
                files[path] = File(self.blobs[value["oid"]], lfs=True)
            case "lfsFile":
                what = "Your push was rejected because an LFS pointer pointed to a file that does not exist"
                raise Refused(400, f"{what}: {path}")
            case "deletedFile" if path in files:
                del files[path]
            case "deletedFolder":
                for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                    del files[inside]
            case _:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """`lfs` for what is large or, by its name or its first bytes (`sample`), binary; else `regular`."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # to which a character cut at the end is no error
        binary = b"\0" in sample
    except UnicodeDecodeError:
        binary = True
    return "lfs" if binary or size > LFS_SIZE or path.endswith(LFS_SUFFIXES) else "regular"


def tree(files: Mapping[str, File], under: str = "", recursive: bool = True) -> list[Json]:
    """What is in the folder `under` ('' for all), folders first; a folder's oid is not git's."""
    prefix = f"{under}/" if under else ""
    inside = {path: file for path, file in files.items() if path.startswith(prefix)}
    cuts = [(path, cut.start()) for path in inside for cut in re.finditer("/", path) if cut.start() >= len(prefix)]
    folders = sorted({path[:end] for path, end in cuts})
    entries: list[Json] = [{"type": "directory", "path": name, "oid": first_commit().oid} for name in folders]
    entries += [{"type": "file", "path": path, **file.described("oid", "oid")} for path, file in sorted(inside.items())]
    return [entry for entry in entries if recursive or "/" not in entry["path"][len(prefix) :]]


class Request(NamedTuple):
    query: Mapping[str, list[str]]
    authorization: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Reply(NamedTuple):
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}


class HubServer:
    """The Hub as one user sees it. Tests set the faults and read the rest; repositories are named NAMESPACE/NAME."""

    def __init__(self, token: str, namespace: str) -> None:
        self.token, self.namespace = token, namespace
        self.fail_after_bytes: int | None = None
        """Drops the connection of every upload to the large file storage that is longer, after so many bytes."""
        self.full = False
        """Lets nothing new into the large file storage, as when a plan's storage is used up."""
        self.refuse_commit = False
        """Takes uploads, but no commit."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) in order of arrival, also of what was refused or dropped."""
        self._repos: dict[str, Repo] = {}
        self._signature = secrets.token_hex(16)
        self._lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """For a process of its own; HF_HOME is left to the caller. Its retries wait: 1, 2, 4, 8 and 8 seconds."""
        own = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_OFFLINE": "0"}
        return {**own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Content by path, with the .gitattributes the Hub makes."""
        return {path: file.content for path, file in self._head(repo, revision).files.items()}

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """Newest first, as the Hub lists them; the oldest is the Hub's own."""
        return self._repo(repo).history(revision)[::-1]

    def private(self, repo: str) -> bool:
        return self._repo(repo).private

    def answer(self, method: str, path: str, request: Request) -> Reply:
        """One at a time, so that what a commit checks still holds when it is made."""
        with self._lock:
            try:
                given = self._route(method, path, request)
            except Refused as no:
                given = Reply(json.dumps({"error": str(no)}).encode(), no.status, no.headers)
        return given if isinstance(given, Reply) else Reply(json.dumps(given).encode())

    def _route(self, method: str, path: str, request: Request) -> object:
        for route in ROUTES:
            match = re.fullmatch(route.path, path)
            if match and method in route.methods:
                named = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                self._check(route, request, named.get("repo", self.namespace))
                return route.call(self, request, **named)
        raise Refused(501, f"the stand-in does not speak {method} {path}")

    def _check(self, route: "Route", request: Request, repo: str) -> None:
        """An upload's address carries its permission: the client sends no token with it."""
        if route.methods == "PUT":
            if request.query.get("signature") != [self._signature]:
                raise Refused(403, "SignatureDoesNotMatch")
        elif request.authorization != f"Bearer {self.token}":
            raise Refused(401, "Invalid credentials in Authorization header")
        if route.writes and repo.partition("/")[0] != self.namespace:
            raise Refused(403, "Forbidden: you don't have the rights to write to this repository")

    def _repo(self, name: str) -> Repo:
        if name not in self._repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self._repos[name]

    def _head(self, repo: str, revision: str) -> Commit:
        return self._repo(repo).history(revision)[-1]

    def _whoami(self, _: Request) -> Json:
        return {"type": "user", "name": self.namespace, "orgs": []}

    def _validate_card(self, request: Request) -> Json | Reply:
        front = re.match(r"---\n(.*?)\n---\s", request.json()["content"] + "\n", re.DOTALL)
        try:
            if front and yaml.safe_load(front[1]):
                return {"errors": [], "warnings": []}
        except yaml.YAMLError as error:
            return Reply(json.dumps({"errors": [{"message": str(error)}]}).encode(), 400)
        return {"warnings": [{"message": "empty or missing yaml metadata in repo card"}]}

    def _create_repo(self, request: Request) -> Json | Reply:
        asked = request.json()
        namespace = asked["organization"] or self.namespace
        if namespace != self.namespace:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        name = f"{namespace}/{asked['name']}"
        url = {"url": f"{self.url}/{name}"}
        if name in self._repos:
            return Reply(json.dumps({"error": "You already created this model repo", **url}).encode(), 409)
        # The client sends `visibility`; some of its 1.x versions sent `private`.
        self._repos[name] = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
        return url

    def _info(self, request: Request, repo: str, revision: str = "main") -> Json:
        head, details = self._head(repo, revision), "blobs" in request.query
        siblings = [
            {"rfilename": path, **(file.described("blobId", "sha256") if details else {})}
            for path, file in sorted(head.files.items())
        ]
        return {"id": repo, "sha": head.oid, "private": self.private(repo), "tags": [], "siblings": siblings}

    def _tree(self, request: Request, repo: str, revision: str, path: str = "") -> list[Json]:
        entries = tree(self._head(repo, revision).files, path, request.query.get("recursive") == ["true"])
        if path and not entries:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return entries

    def _paths_info(self, request: Request, repo: str, revision: str) -> list[Json]:
        asked = parse_qs(request.body.decode()).get("paths", [])
        return [entry for entry in tree(self._head(repo, revision).files) if entry["path"] in asked]

    def _create_branch(self, request: Request, repo: str, revision: str) -> Json:
        branches = self._repo(repo).branches
        if revision in branches:
            raise Refused(409, f"Reference already exists: refs/heads/{revision}")
        branches[revision] = list(self._repo(repo).history(request.json().get("startingPoint", "main")))
        return {}

    def _preupload(self, request: Request, repo: str, revision: str) -> Json:
        """How to upload each file, and the oid of the one in its place: the client leaves out what is unchanged."""
        present = self._head(repo, revision).files
        files: list[Json] = []
        for asked in request.json()["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            oid = {"oid": present[path].oid} if path in present else {}
            mode = upload_mode(path, asked["size"], sample)
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": files}

    def _batch(self, request: Request, repo: str) -> Json:
        objects: list[Json] = [{"oid": asked["oid"], "size": asked["size"]} for asked in request.json()["objects"]]
        missing = [wanted for wanted in objects if wanted["oid"] not in self._repo(repo).blobs]
        if missing and self.full:
            raise Refused(403, "Private repository storage limit reached, please upgrade your plan")
        for wanted in missing:
            address = f"{self.url}/lfs/{repo}/{wanted['oid']}?signature={self._signature}"
            wanted["actions"] = {"upload": {"href": address}}
        return {"transfer": "basic", "objects": objects}

    def _upload(self, request: Request, repo: str, oid: str) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refused(400, "BadDigest")
        self._repo(repo).blobs[oid] = request.body
        return Reply(b"")

    def _commit(self, request: Request, repo: str, revision: str) -> Json:
        header, *lines = (json.loads(line) for line in request.body.splitlines())
        if "create_pr" in request.query:
            raise Refused(501, "the stand-in makes no pull requests")
        if revision not in self._repo(repo).branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if self.refuse_commit:
            raise Refused(400, "Your push was rejected")
        before = self._head(repo, revision)
        if header["value"].get("parentCommit", before.oid) != before.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before.files)
        for line in lines:
            self._repo(repo).apply(files, line["key"], line["value"])
        made = Commit(header["value"]["summary"], files, before.oid)
        self._repo(repo).branches[revision].append(made)
        return {"commitUrl": f"{self.url}/{repo}/commit/{made.oid}", "commitOid": made.oid}

    def _resolve(self, _: Request, repo: str, revision: str, path: str) -> Reply:
        head = self._head(repo, revision)
        headers = {"X-Repo-Commit": head.oid}
        if path not in head.files:
            raise Refused(404, "Entry not found", "EntryNotFound", **headers)
        file = head.files[path]
        headers["ETag"] = f'"{file.blob_id}"'
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        return Reply(file.content, 200, headers)


class Route(NamedTuple):
    """Who answers what; the named groups of `path` are passed on. `writes` needs the token's own namespace."""

    methods: str
    path: str
    call: Callable[..., object]
    writes: bool = False


REPO = "(?P<repo>[^/]+/[^/]+)"
MODEL = f"/api/models/{REPO}"
REVISION = "(?P<revision>[^/]+)"
ROUTES = [
    Route("GET", "/api/whoami-v2", HubServer._whoami),
    Route("POST", "/api/validate-yaml", HubServer._validate_card),
    Route("POST", "/api/repos/create", HubServer._create_repo),
    Route("GET", f"{MODEL}(/revision/{REVISION})?", HubServer._info),
    Route("GET", f"{MODEL}/tree/{REVISION}(/(?P<path>.+))?", HubServer._tree),
    Route("POST", f"{MODEL}/paths-info/{REVISION}", HubServer._paths_info),
    Route("POST", f"{MODEL}/branch/{REVISION}", HubServer._create_branch, writes=True),
    Route("POST", f"{MODEL}/preupload/{REVISION}", HubServer._preupload, writes=True),
    Route("POST", f"{MODEL}/commit/{REVISION}", HubServer._commit, writes=True),
    Route("POST", f"/{REPO}.git/info/lfs/objects/batch", HubServer._batch, writes=True),
    Route("PUT", f"/lfs/{REPO}/(?P<oid>[0-9a-f]+)", HubServer._upload, writes=True),
    Route("GET HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", HubServer._resolve),
]


class _Http(ThreadingHTTPServer):
    request_queue_size = 64  # of the default, 5, a client's threads overflow, and wait a second before they knock again


class _Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.0: with a connection for each request, none outlives its server in the client's pool."""

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        self.hub.requests.append((self.command, unquote(path)))
        body = self._body()
        if body is None:
            return  # which closes the connection
        request = Request(parse_qs(query), self.headers.get("Authorization", ""), body)
        reply = self.hub.answer(self.command, path, request)
        self.send_response(reply.status)
        for name, text in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _body(self) -> bytes | None:
        """None of a request that ended early, or is made to."""
        length, limit = int(self.headers.get("Content-Length", 0)), self.hub.fail_after_bytes
        dropped = self.command == "PUT" and limit is not None and limit < length
        body = self.rfile.read(limit if dropped else length)
        return body if len(body) == length else None

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 (names that http.server looks for)

    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is its own."""


@contextmanager
def serve(token: str, namespace: str = "me") -> Iterator[HubServer]:
    """A Hub without repositories for as long as the context lasts; `token` may write to `namespace` only."""
    hub = HubServer(token, namespace)
    thread = threading.Thread(target=hub.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.http.shutdown()
        hub.http.server_close()
        thread.join()


def plain_client(patch: pytest.MonkeyPatch) -> None:
    """Make the client of this process upload without Xet, ask no other host, and retry (5 times) without waiting."""
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
