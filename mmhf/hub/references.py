"""From what a user writes (`outputs/run`, `releases/fakeddit@v1.6`, `ORG/NAME`) to a folder with a model in it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mmhf.errors import InputError
from mmhf.hub.releases import (
    RELEASE_FILE,
    ReleaseReference,
    content_commit,
    file_sha256,
    find_version,
    list_versions,
    read_release,
    released_files,
    verify_release,
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model folder and where it comes from.

    Args:
        path (`Path`): The folder, to be passed to `from_pretrained`.
        repo (`str`): The repository as the user wrote it; for a run folder, the folder.
        revision (`str`, *optional*): The version or Hub revision; `None` for a run folder.
        commit (`str`): Hash of the content; on the Hub its commit.
    """

    path: Path
    repo: str
    revision: str | None
    commit: str

    @property
    def reference(self) -> ReleaseReference:
        """What a child of this model records as its parent."""
        return ReleaseReference(repo=self.repo, revision=self.revision, commit=self.commit)


def resolve_model(reference: str | Path, *, verify: bool = True) -> ResolvedModel:
    """Find the model that a reference names.

    Folders come first: a run folder, a release's own folder, `REPO@v1.6`, or `REPO` alone for its highest version.
    Anything else is a Hub repository, `ORG/NAME` or `ORG/NAME@REVISION`, which is downloaded.

    Args:
        reference (`str` or `Path`): What the user wrote.
        verify (`bool`, defaults to `True`): Compare the files of a release with the hashes recorded in it.

    Raises:
        InputError: Nothing is there, the version does not exist, or the release is damaged (the file is named).
    """
    text = str(reference).rstrip("/") or "/"
    if Path(text).is_dir():
        return _from_folder(text, verify=verify)
    repo, _, revision = text.rpartition("@")
    if repo and Path(repo).is_dir():
        return _from_release(repo, find_version(repo, revision), verify=verify)
    if Path(text).exists():
        raise InputError(f"{text}: is a file; name the folder of a run or a release")
    return _from_hub(text)


def _from_folder(folder: str, *, verify: bool) -> ResolvedModel:
    path = Path(folder)
    if (path / RELEASE_FILE).is_file():
        return _from_release(str(path.parent), path.name, verify=verify)
    if (path / "config.json").is_file():
        hashes = {file.name: file_sha256(file) for file in released_files(path)}
        return ResolvedModel(path, repo=folder, revision=None, commit=content_commit(hashes))
    versions = list_versions(path)
    if versions:
        return _from_release(folder, versions[-1], verify=verify)
    checkpoints = sorted(path.glob("checkpoint-*/config.json"), key=lambda found: found.stat().st_mtime)
    way_out = f"training has not finished; its last checkpoint is {checkpoints[-1].parent}" if checkpoints else ""
    raise InputError(
        f"{folder}: no model in it (config.json) and no released version; "
        + (way_out or "name a run folder, a release, or REPO@VERSION")
    )


def _from_release(repo: str, folder_name: str, *, verify: bool) -> ResolvedModel:
    path = Path(repo) / folder_name
    release = verify_release(path) if verify else read_release(path)
    return ResolvedModel(path, repo=repo, revision=release.version, commit=release.commit)


def _from_hub(text: str) -> ResolvedModel:
    repo, _, revision = text.partition("@")
    if repo.count("/") != 1 or repo.startswith((".", "~", "/")):
        raise InputError(f"{text}: no such folder{_nearest_sibling(repo)}")
    try:
        path = Path(snapshot_download(repo, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{text}: no such folder{_nearest_sibling(repo)}, and not to be had from the Hub ({reason})"
        ) from error
    return ResolvedModel(path, repo=repo, revision=revision or None, commit=path.name)


def _nearest_sibling(repo: str) -> str:
    parent = Path(repo).expanduser().parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    nearest = difflib.get_close_matches(Path(repo).name, names, n=1)
    return f"; did you mean {parent / nearest[0]}?" if nearest else ""
