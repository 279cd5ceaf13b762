"""Repositories of the Hub: what is downloaded from them, and one of them as a push sees it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmhf.errors import DamagedError, InputError
from mmhf.files import CONFIG_FILE, RELEASE_FILE, file_sha256
from mmhf.hub.hub_errors import HUB_ERRORS, named_hub_errors, status_of, with_retries
from mmhf.hub.manifest import Release, Version, damaged_files, read_release, verify_release
from mmhf.hub.seen_versions import check_seen

logger = logging.getLogger(__name__)

_CONFLICT = 409


def download_model(repo: str, revision: str | None, *, only: Sequence[str] | None = None, verify: bool = True) -> Path:
    """Download a repository, or take it from the cache.

    Files of a release that do not match their recorded hashes are downloaded once more before it is refused.

    Args:
        repo (`str`): `ORG/NAME`.
        revision (`str`, *optional*): Tag, branch or commit; `1.6` finds the tag `v1.6`.
        only (`Sequence[str]`, *optional*): Patterns of the files to download; absent: all. Nothing is then verified.
        verify (`bool`, defaults to `True`): Compare the files of a release with the hashes recorded in it.

    Returns:
        `Path`: The snapshot's folder, which is named after the commit.

    Raises:
        UnreachableError: The Hub does not answer and the cache has nothing.
        DamagedError: Its files are damaged.
        MovedVersionError: The version is another commit than it was.
        InputError: There is no such repository or revision.
    """
    patterns = None if only is None else list(only)

    tag = _existing_tag(repo, revision)
    with named_hub_errors(repo if revision is None else f"{repo}@{revision}"):
        path = Path(with_retries(lambda: snapshot_download(repo, revision=tag, allow_patterns=patterns)))
        if tag is not None and Version.is_valid(tag):
            check_seen(repo, tag, path.name)
        if not verify or only is not None:
            return path
        if not (path / CONFIG_FILE).is_file():
            # The cache may hold a listing of files that was damaged.
            with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
                with_retries(lambda: hf_hub_download(repo, RELEASE_FILE, revision=path.name))
        if not (path / RELEASE_FILE).is_file():
            return path
        try:
            verify_release(path)
        except DamagedError as error:
            logger.warning("%s; downloading it again", error)
            # One by one, and by the names that the release has: what the cache knows of its files may be damaged, too.
            for name in damaged_files(path, read_release(path)):
                with_retries(lambda: hf_hub_download(repo, name, revision=path.name, force_download=True))  # noqa: B023
            verify_release(path)
    return path


def download_file(repo: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository, `None` when the revision has no such file."""
    tag = _existing_tag(repo, revision)
    with named_hub_errors(f"{repo}@{revision}, {name}"):
        try:
            return Path(with_retries(lambda: hf_hub_download(repo, name, revision=tag)))
        except EntryNotFoundError:
            return None


def download_release_file(repo: str, revision: str | None) -> Release | None:
    """What a revision's `release.json` says; `None` when it is not a release of mmhf's."""
    path = download_file(repo, RELEASE_FILE, revision)
    return None if path is None else read_release(path.parent)


def _existing_tag(repo: str, revision: str | None) -> str | None:
    """`v1.6` for `1.6`, unless the repository has a revision that is called so."""
    if revision is None or revision.startswith("v") or not Version.is_valid(revision):
        return revision
    with named_hub_errors(f"{repo}@{revision}"):
        try:
            with_retries(lambda: hf_hub_download(repo, CONFIG_FILE, revision=revision))
        except RevisionNotFoundError:
            return str(Version.parse(revision))
        except EntryNotFoundError:
            pass
    return revision


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
        """Create the repository if it does not exist; the visibility of an existing one is not changed."""
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
        """Create a branch at a commit, unless it is there already."""
        create = functools.partial(self._api.create_branch, self.name, branch=branch, revision=revision)
        self._create(create, lambda refs: refs.branches.get(branch) == revision)

    def _create(self, create: Callable[[], object], is_there: Callable[[Refs], bool]) -> None:
        def attempt() -> None:
            try:
                create()
            except HUB_ERRORS as error:
                refs = self.refs() if status_of(error) == _CONFLICT else None
                if refs is None or not is_there(refs):
                    raise

        with_retries(attempt)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch, if it is there."""

        def delete() -> None:
            refs = self.refs()
            if refs is not None and branch in refs.branches:
                self._api.delete_branch(self.name, branch=branch)

        with_retries(delete)

    def create_tag(self, tag: str, revision: str) -> None:
        """Set a tag at a commit, unless it is there already. One that somebody set elsewhere is an error."""
        create = functools.partial(self._api.create_tag, self.name, tag=tag, revision=revision)
        self._create(create, lambda refs: refs.tags.get(tag) == revision)
        for wait in (1.0, 4.0, None):
            refs = self.refs()
            if refs is not None and refs.tags.get(tag) == revision:
                return
            if wait is not None:
                time.sleep(wait)
        raise InputError(f"{self.name}: the tag {tag} was answered for and is not there; is a proxy in between?")

    def delete_tag(self, tag: str) -> None:
        """Delete a tag, if it is there."""

        def delete() -> None:
            refs = self.refs()
            if refs is not None and tag in refs.tags:
                self._api.delete_tag(self.name, tag=tag)

        with_retries(delete)

    def commit(self, branch: str, parent: str, files: Mapping[str, Path], message: str) -> str:
        """Make one commit that adds these files to the branch and removes those of the previous release.

        Files that the Hub already has are not sent again.

        Args:
            branch (`str`): Branch.
            parent (`str`): The commit that the branch must be at; another one means that somebody else has pushed.
            files (`Mapping[str, Path]`): Name in the repository → file.
            message (`str`): Commit message.

        Returns:
            `str`: The new commit, or the branch's current one if it has these files already.
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
    """Cached, because one push asks for the hash of the weights several times."""
    return file_sha256(path)
