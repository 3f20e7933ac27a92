"""The stand-in for the Hub, as the real client sees it."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.helpers.hub_server import HubServer, plain_client, serve, upload_mode

REPO = "me/model"
SMALL = {
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "config.json": b'{"hidden_size": 64}',
    "deep/down/notes file.txt": "naïve".encode(),
}
FILES = {"model.safetensors": random.Random(0).randbytes(3_000_000), **SMALL}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    plain_client(monkeypatch)
    with serve("hf_secret") as server:
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    client = HfApi(endpoint=hub.url, token=hub.token)
    client.create_repo(REPO, private=True)
    return client


def push(api: HfApi, files: dict[str, bytes], revision: str | None = None, parent: str | None = None) -> CommitInfo:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message="Files", revision=revision, parent_commit=parent)


def uploads(hub: HubServer) -> int:
    return sum(method == "PUT" for method, _ in hub.requests)


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".gitattributes"}


def test_files_of_one_commit_come_back_from_a_private_repository(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    made = push(api, FILES)
    assert hub.private(REPO)
    assert hub.commits(REPO)[0].oid == made.oid
    assert [commit.title for commit in hub.commits(REPO)] == ["Files", "initial commit"]
    assert {**FILES, ".gitattributes": hub.files(REPO)[".gitattributes"]} == hub.files(REPO)
    info = api.model_info(REPO, revision=made.oid)
    assert (info.sha, info.private) == (made.oid, True)
    assert contents(Path(api.snapshot_download(REPO, cache_dir=tmp_path))) == FILES
    assert api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path, force_download=True)


def test_a_file_on_disk_is_uploaded_too(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES["model.safetensors"])
    api.create_commit(REPO, [CommitOperationAdd(path.name, path)], commit_message="From disk")
    assert hub.files(REPO)[path.name] == path.read_bytes()


def test_a_repository_may_be_there_already(hub: HubServer, api: HfApi) -> None:
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo(REPO)
    api.create_repo("me/open", private=False)
    assert not hub.private("me/open")
    assert api.whoami()["name"] == "me"


def test_what_a_path_says_is_what_was_committed(api: HfApi) -> None:
    push(api, FILES)
    (large,) = api.get_paths_info(REPO, "model.safetensors")
    assert isinstance(large, RepoFile)
    assert large.lfs
    assert (large.size, large.lfs.sha256) == (3_000_000, hashlib.sha256(FILES["model.safetensors"]).hexdigest())
    (small,) = api.get_paths_info(REPO, ["config.json", "nothing"])
    assert isinstance(small, RepoFile)
    git = subprocess.run(
        ["git", "hash-object", "--stdin"], input=SMALL["config.json"], capture_output=True, check=True
    ).stdout
    assert (small.lfs, small.blob_id) == (None, git.decode().strip())
    siblings = {sibling.rfilename: sibling for sibling in api.model_info(REPO, files_metadata=True).siblings or ()}
    assert siblings["model.safetensors"].lfs == large.lfs
    assert siblings["config.json"].blob_id == small.blob_id


def test_the_tree_is_listed_by_folder_or_whole(api: HfApi) -> None:
    push(api, SMALL)
    top = {entry.path: type(entry) for entry in api.list_repo_tree(REPO)}
    assert top == {".gitattributes": RepoFile, "README.md": RepoFile, "config.json": RepoFile, "deep": RepoFolder}
    assert [entry.path for entry in api.list_repo_tree(REPO, "deep/down")] == ["deep/down/notes file.txt"]
    whole = {entry.path for entry in api.list_repo_tree(REPO, recursive=True) if isinstance(entry, RepoFile)}
    assert whole == {".gitattributes", *SMALL}
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))


@pytest.mark.parametrize(
    ("path", "size", "sample", "mode"),
    [
        ("config.json", 500, b"{}", "regular"),
        ("notes.txt", 600, "naïve".encode()[:3], "regular"),
        ("model.safetensors", 5, b"hello", "lfs"),
        ("tokenizer.model", 500, b"\n\0", "lfs"),
        ("table", 500, b"\xff\xfe", "lfs"),
        ("tokenizer.json", 11_000_000, b"{}", "lfs"),
    ],
)
def test_large_and_binary_files_go_to_the_large_file_storage(path: str, size: int, sample: bytes, mode: str) -> None:
    assert upload_mode(path, size, sample) == mode


def test_a_second_publish_uploads_nothing(hub: HubServer, api: HfApi) -> None:
    made = push(api, FILES)
    assert uploads(hub) == 1
    hub.requests.clear()
    assert push(api, FILES).oid == made.oid
    assert uploads(hub) == 0
    assert ("POST", f"/api/models/{REPO}/commit/main") not in hub.requests
    push(api, {**FILES, "config.json": b"{}"})
    assert uploads(hub) == 0
    assert hub.files(REPO)["config.json"] == b"{}"


def test_a_wrong_token_is_refused_everywhere(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    push(api, FILES)
    wrong = HfApi(endpoint=hub.url, token="hf_other")
    commits = hub.commits(REPO)
    for call in (
        lambda: wrong.create_repo("me/new", exist_ok=True),
        lambda: wrong.model_info(REPO),
        wrong.whoami,
        lambda: push(wrong, {"config.json": b"{}"}),
        lambda: push(wrong, SMALL),  # with README.md, whose check comes first
        lambda: wrong.snapshot_download(REPO, cache_dir=tmp_path),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert refused.value.response.status_code == 401
    assert hub.commits(REPO) == commits


def test_another_namespace_is_refused(api: HfApi) -> None:
    for exist_ok in (False, True):
        with pytest.raises(HfHubHTTPError, match="rights to create a model") as refused:
            api.create_repo("other/model", exist_ok=exist_ok)
        assert refused.value.response.status_code == 403
    add = CommitOperationAdd("config.json", b"{}")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        api.create_commit("other/model", [add], commit_message="No")


def test_what_is_not_there_is_said_to_be(api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        push(api, {"config.json": b"{}"}, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "nothing.json", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="does not speak"):
        api.create_tag(REPO, tag="v1")


def test_after_a_dropped_connection_only_what_is_missing_is_uploaded(hub: HubServer, api: HfApi) -> None:
    large = {"a.safetensors": FILES["model.safetensors"][:1_000_000], "b.safetensors": FILES["model.safetensors"]}
    hub.fail_after_bytes = 2_000_000
    with pytest.raises(RuntimeError, match=r"Error while uploading 'b\.safetensors'") as dropped:
        push(api, large | SMALL)
    assert isinstance(dropped.value.__cause__, httpx.TransportError)
    assert uploads(hub) == 1 + 6  # the client tries the one that fails five times more
    assert len(hub.commits(REPO)) == 1
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.fail_after_bytes = None
    hub.requests.clear()
    push(api, large | SMALL)
    assert [path for method, path in hub.requests if method == "PUT"] == [
        f"/lfs/{REPO}/{hashlib.sha256(large['b.safetensors']).hexdigest()}"
    ]
    assert large.items() <= hub.files(REPO).items()


def test_uploads_may_come_before_their_commit(hub: HubServer, api: HfApi) -> None:
    shards = [CommitOperationAdd(f"{name}.safetensors", name.encode() * 1000) for name in "ab"]
    for shard in shards:
        api.preupload_lfs_files(REPO, [shard])
    assert uploads(hub) == 2
    assert len(hub.commits(REPO)) == 1
    api.create_commit(REPO, shards, commit_message="Shards")
    assert uploads(hub) == 2
    assert hub.files(REPO)["b.safetensors"] == b"b" * 1000


def test_a_full_storage_takes_only_what_it_has(hub: HubServer, api: HfApi) -> None:
    push(api, FILES)
    hub.full = True
    with pytest.raises(HfHubHTTPError, match="storage limit reached") as full:
        push(api, {"other.safetensors": b"other", "config.json": b"{}"})
    assert full.value.response.status_code == 403
    assert hub.files(REPO)["config.json"] == SMALL["config.json"]
    push(api, {"again.safetensors": FILES["model.safetensors"]})
    assert "again.safetensors" in hub.files(REPO)


def test_a_refused_commit_leaves_nothing_but_its_uploads(hub: HubServer, api: HfApi) -> None:
    hub.refuse_commit = True
    with pytest.raises(BadRequestError, match="rejected"):
        push(api, FILES)
    assert len(hub.commits(REPO)) == 1
    hub.refuse_commit = False
    push(api, FILES)
    assert uploads(hub) == 1
    assert FILES.items() <= hub.files(REPO).items()


def test_a_commit_is_made_whole_and_on_the_parent_it_names(hub: HubServer, api: HfApi) -> None:
    first = push(api, SMALL)
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(
            REPO, [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("nothing.txt")], commit_message="Half"
        )
    assert "new.txt" not in hub.files(REPO)
    api.create_commit(REPO, [CommitOperationDelete("deep/")], commit_message="Less", parent_commit=first.oid)
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", "config.json"}
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as late:
        push(api, {"config.json": b"{}"}, parent=first.oid)
    assert late.value.response.status_code == 412
    assert hub.files(REPO, first.oid)["config.json"] == SMALL["config.json"]


def test_a_branch_has_commits_of_its_own(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    push(api, SMALL)
    api.create_branch(REPO, branch="release/v1")
    api.create_branch(REPO, branch="release/v1", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch(REPO, branch="release/v1")
    made = push(api, FILES, revision="release/v1")
    assert [commit.title for commit in hub.commits(REPO, "release/v1")] == ["Files", "Files", "initial commit"]
    assert set(hub.files(REPO)) == {".gitattributes", *SMALL}
    assert api.repo_info(REPO, revision="release/v1").sha == made.oid
    assert contents(Path(api.snapshot_download(REPO, revision="release/v1", cache_dir=tmp_path))) == FILES


def test_a_card_is_checked_before_anything_is_uploaded(hub: HubServer, api: HfApi) -> None:
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push(api, {**FILES, "README.md": b"---\nlicense: [mit\n---\n"})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, {"README.md": b"# A model\n"})
    assert uploads(hub) == 0


@pytest.mark.usefixtures("api")
def test_an_upload_needs_its_permission_and_its_content(hub: HubServer) -> None:
    oid, token = hashlib.sha256(b"right").hexdigest(), {"Authorization": f"Bearer {hub.token}"}
    assert httpx.put(f"{hub.url}/lfs/{REPO}/{oid}", content=b"right", headers=token).status_code == 403
    asked = {"objects": [{"oid": oid, "size": 5}]}
    batch = httpx.post(f"{hub.url}/{REPO}.git/info/lfs/objects/batch", json=asked, headers=token).json()
    address = batch["objects"][0]["actions"]["upload"]["href"]
    assert httpx.put(address, content=b"wrong").status_code == 400
    lines = [
        {"key": "header", "value": {"summary": "Too early"}},
        {"key": "lfsFile", "value": {"path": "x.bin", "oid": oid}},
    ]
    commit, content = f"{hub.url}/api/models/{REPO}/commit/main", "\n".join(map(json.dumps, lines))
    dangling = httpx.post(commit, content=content, headers=token)
    assert (dangling.status_code, dangling.json()["error"][-33:]) == (400, "a file that does not exist: x.bin")
    assert httpx.put(address, content=b"right").status_code == 200
    assert httpx.post(commit, content=content, headers=token).status_code == 200
    assert hub.files(REPO)["x.bin"] == b"right"


def test_another_process_finds_it(hub: HubServer, tmp_path: Path) -> None:
    code = "from huggingface_hub import HfApi; print(HfApi().create_repo('made', private=True))"
    env = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{hub.url}/me/made"
    assert hub.private("me/made")
