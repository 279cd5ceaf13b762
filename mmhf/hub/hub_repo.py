"""One repository of the Hub, as a push sees it: refs, trees, and steps that may be done twice.

Each step first looks whether it has been done, so that a request whose answer got lost, or a push that was killed and
is started again, does not do it a second time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError

from mmhf.errors import InputError
from mmhf.files import RELEASE_FILE
from mmhf.hub.downloads import download_release_file
from mmhf.hub.hub_errors import HUB_ERRORS, status_of, with_retries
from mmhf.hub.manifest import Release, file_sha256
from mmhf.hub.versions import Version

_CONFLICT = 409


@dataclass(frozen=True)
class Refs:
    """Branches and tags of a repository: name → commit."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]

    def tag_of(self, version: Version) -> str | None:
        """The tag of a version, however it is written."""
        return next((tag for tag in self.tags if Version.is_valid(tag) and Version.parse(tag) == version), None)

    def versions(self) -> list[str]:
        """Tags that are versions, the oldest number first."""
        return sorted((tag for tag in self.tags if Version.is_valid(tag)), key=Version.parse)


class HubRepo:
    """A repository of the Hub.

    Args:
        name (`str`): `ORG/NAME`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._api = HfApi()

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.name}"

    def whoami(self) -> str:
        return str(with_retries(self._api.whoami)["name"])

    def create(self, *, private: bool) -> None:
        """Make the repository unless it is there; one that is there stays as public or private as it is."""
        with_retries(lambda: self._api.create_repo(self.name, private=private or None, exist_ok=True))

    def refs(self) -> Refs | None:
        """Branches and tags; `None` when there is no such repository."""
        try:
            refs = with_retries(lambda: self._api.list_repo_refs(self.name))
        except RepositoryNotFoundError:
            return None
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        return Refs(branches, {ref.name: ref.target_commit for ref in refs.tags})

    def head(self, branch: str) -> str:
        """The commit of a branch."""
        refs = self.refs()
        if refs is None or branch not in refs.branches:
            raise InputError(f"{self.name}: the branch {branch} has gone; another push is going on")
        return refs.branches[branch]

    def release_at(self, revision: str) -> Release | None:
        """What a revision says it is; `None` when it is no release."""
        return download_release_file(self.name, revision)

    def holds(self, revision: str, files: Mapping[str, Path]) -> bool:
        """Whether a revision has all these files with this content, by hash; it may have more."""
        entries = with_retries(lambda: list(self._api.list_repo_tree(self.name, revision=revision, recursive=True)))
        found = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        return all(name in found and _is_same(found[name], path) for name, path in files.items())

    def create_branch(self, branch: str, revision: str) -> None:
        """Make a branch at a commit, or find it there."""

        def create() -> None:
            try:
                self._api.create_branch(self.name, branch=branch, revision=revision)
            except HUB_ERRORS as error:
                refs = self.refs() if status_of(error) == _CONFLICT else None
                if refs is None or refs.branches.get(branch) != revision:
                    raise

        with_retries(create)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch, if it is there."""

        def delete() -> None:
            refs = self.refs()
            if refs is not None and branch in refs.branches:
                self._api.delete_branch(self.name, branch=branch)

        with_retries(delete)

    def create_tag(self, tag: str, revision: str) -> None:
        """Set a tag at a commit, or find it there; whoever set it elsewhere was first, and is not overruled."""

        def create() -> None:
            try:
                self._api.create_tag(self.name, tag=tag, revision=revision)
            except HUB_ERRORS as error:
                refs = self.refs() if status_of(error) == _CONFLICT else None
                if refs is None or refs.tags.get(tag) != revision:
                    raise

        with_retries(create)

    def delete_tag(self, tag: str) -> None:
        """Delete a tag, if it is there."""

        def delete() -> None:
            refs = self.refs()
            if refs is not None and tag in refs.tags:
                self._api.delete_tag(self.name, tag=tag)

        with_retries(delete)

    def commit(self, branch: str, parent: str, files: Mapping[str, Path], message: str) -> str:
        """Make one commit that leaves the branch with these files and without those of the release before.

        What the Hub has already is not sent: large files by their hash, small ones where they stand in the parent.

        Args:
            branch (`str`): Branch.
            parent (`str`): What the branch must be at; anything else means that somebody else has pushed.
            files (`Mapping[str, Path]`): Name in the repository → file.
            message (`str`): Commit message.

        Returns:
            `str`: The new commit, or the branch's own when it holds these files already.
        """
        before = self.release_at(parent)
        gone = [] if before is None else sorted({*before.files, RELEASE_FILE} - files.keys())

        def commit() -> str:
            head = self.head(branch)
            if self.holds(head, files):
                return head
            additions = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
            deletions = [CommitOperationDelete(name) for name in gone]
            done = self._api.create_commit(
                self.name, [*additions, *deletions], commit_message=message, revision=branch, parent_commit=parent
            )
            return str(done.oid)

        return with_retries(commit)


def _is_same(entry: RepoFile, path: Path) -> bool:
    status = path.stat()
    if entry.size != status.st_size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == _sha256(path, status.st_mtime_ns)
    content = path.read_bytes()
    return entry.blob_id == hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, changed: int) -> str:
    """Of weights, which are asked for several times in one push."""
    return file_sha256(path)
