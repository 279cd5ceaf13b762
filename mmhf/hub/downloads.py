"""Models and single files from the Hub, checked against the hashes of their release."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from mmhf.errors import InputError
from mmhf.files import CONFIG_FILE, RELEASE_FILE
from mmhf.hub.hub_errors import named_hub_errors, with_retries
from mmhf.hub.manifest import Release, read_release, verify_release
from mmhf.hub.versions import Version

logger = logging.getLogger(__name__)


def download_model(repo: str, revision: str | None, *, only: Sequence[str] | None = None, verify: bool = True) -> Path:
    """Download a repository, or take it from the cache.

    A release whose files do not have the hashes recorded in it is downloaded a second time before it is refused.

    Args:
        repo (`str`): `ORG/NAME`.
        revision (`str`, *optional*): Tag, branch or commit; `1.6` finds the tag `v1.6`.
        only (`Sequence[str]`, *optional*): Patterns of the files to download; absent: all. Nothing is then verified.
        verify (`bool`, defaults to `True`): Compare the files of a release with the hashes recorded in it.

    Returns:
        `Path`: The snapshot's folder, which is named after the commit.

    Raises:
        UnreachableError: The Hub does not answer and the cache has nothing.
        InputError: There is no such repository or revision, or its files are damaged.
    """
    patterns = None if only is None else list(only)

    def fetch(tag: str | None, *, again: bool = False) -> Path:
        return Path(
            with_retries(lambda: snapshot_download(repo, revision=tag, allow_patterns=patterns, force_download=again))
        )

    tag = _existing_tag(repo, revision)
    with named_hub_errors(repo if revision is None else f"{repo}@{revision}"):
        path = fetch(tag)
        if not verify or only is not None or not (path / RELEASE_FILE).is_file():
            return path
        try:
            verify_release(path)
        except InputError as error:
            logger.warning("%s; downloading it again", error)
            path = fetch(tag, again=True)
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
