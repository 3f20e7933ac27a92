"""A repository of the Hugging Face hub: all files in one commit.

The token is huggingface_hub's: `HF_TOKEN`, or what `hf auth login` stored. Large files that arrived before a connection
broke are kept by the hub and not sent again.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from pipelines.core import progress
from pipelines.core.cache import file_digest
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.publishing.places.place import NOT_OURS, SUMS, Kind, Target, asking, files_of, path_for

REMEDY = "is the hub in reach, and HF_TOKEN set?"
UPLOAD_REMEDY = "is HF_TOKEN set, and may it write there? What arrived of large files is kept, and not sent again"
HUBS_OWN = ".gitattributes"
"""Name of a file that the hub puts into every repository."""
NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


class HubTarget(Target):
    """A branch of a repository of the Hugging Face hub, made private unless it exists."""

    repository: str
    branch: str

    def __str__(self) -> str:
        return f"hf://{self.repository}" + ("" if self.branch == "main" else f"@{self.branch}")

    def open(self) -> "Hub":
        return Hub(self)


def parse(text: str) -> HubTarget | None:
    """Return the branch that `hf://org/name`, with `@branch` or without, names; None for another scheme.

    Raises:
        BadInput: the target is not of this form.
    """
    scheme, _, rest = text.partition("://")
    if scheme != "hf":
        return None
    if not (found := NAME.fullmatch(rest.strip("/"))):
        raise bad_input(text, f"is not a target of the form {KIND.form}")
    return HubTarget(repository=found[1], branch=found[2] or "main")


KIND = Kind(form="hf://org/name[@branch]", parse=parse)


class Hub:
    """The branch that a target names."""

    def __init__(self, target: HubTarget) -> None:
        from huggingface_hub import HfApi

        self._target = target
        self._api = HfApi()

    def read(self, name: str) -> bytes | None:
        with asking(self._target, REMEDY):
            if (files := self._files()) is None:
                self._api.whoami()  # a missing or wrong token is said now, not when all is made
                return None
            if not files:
                return None
            if name not in files:
                raise bad_input(self._target, NOT_OURS, "give another name or branch")
            return self._fetch(name).read_bytes()

    def _files(self) -> dict[str, Any] | None:
        """Return the files of the branch, by name; None where there is no such branch."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        repository, branch = self._target.repository, self._target.branch
        try:
            tree = list(self._api.list_repo_tree(repository, recursive=True, revision=branch, expand=False))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path != HUBS_OWN}

    def _fetch(self, name: str) -> Path:
        return Path(self._api.hf_hub_download(self._target.repository, name, revision=self._target.branch))

    def upload(self, folder: Path) -> None:
        from huggingface_hub import CommitOperationAdd

        names = files_of(folder)
        repository, branch = self._target.repository, self._target.branch
        with asking(self._target, UPLOAD_REMEDY):
            self._api.create_repo(repository, private=True, exist_ok=True)
            if branch != "main":
                self._api.create_branch(repository, branch=branch, exist_ok=True)
            operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
            head = self._api.repo_info(repository, revision=branch).sha
            self._api.create_commit(
                repository,
                operations,
                commit_message="Publish with quantgate",
                revision=branch,
                parent_commit=head,  # so that two who publish at once do not mix
            )
            there = self._files() or {}
        for name in names:
            if name not in there or _digest(there[name]) != _expected(there[name], folder / name):
                raise QuantgateError(f"{self._target}: {name} did not arrive as it was sent\n    publish again")

    def download(self, folder: Path) -> None:
        with asking(self._target, REMEDY):
            files = self._files() or {}
            if SUMS not in files:
                raise bad_input(self._target, "holds no published artifact", "check the name, the branch and HF_TOKEN")
            for name in progress.track(sorted(files), "pull", "file"):
                path = path_for(name, folder)
                shutil.copyfile(self._fetch(name), path)


def _digest(entry: Any) -> str:
    """Return the hub's digest of a file: SHA-256 of a large one, git's blob id of a small one."""
    return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _expected(entry: Any, path: Path) -> str:
    if entry.lfs:
        return file_digest(path)
    from huggingface_hub.utils.sha import git_hash

    return git_hash(path.read_bytes())
