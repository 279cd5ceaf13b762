"""Releases in a folder: `REPO/v1.6/`, written once and never changed, and how a reference finds one."""

from __future__ import annotations

import difflib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from mmhf.damage import content_hash, is_model_file, refuse_damage
from mmhf.errors import DamagedError, InputError, UnreachableError
from mmhf.files import CONFIG_FILE, RELEASE_FILE, expand_path
from mmhf.hub.assembling import assemble, check_run
from mmhf.hub.hub_repo import download_model
from mmhf.hub.manifest import (
    ReleaseNotes,
    ReleaseReference,
    Version,
    content_commit,
    read_release,
    released_files,
    verify_release,
)
from mmhf.hub.seen_versions import MovedVersionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedModel:
    """A model folder and where it comes from.

    Args:
        path (`Path`): The folder, to be passed to `from_pretrained`.
        repo (`str`): The repository as the user wrote it; for a run folder, the folder.
        revision (`str`, *optional*): The version or Hub revision; `None` for a run folder.
        commit (`str`): Hash of the content; on the Hub its commit.
        is_on_hub (`bool`): Whether it was downloaded.
    """

    path: Path
    repo: str
    revision: str | None
    commit: str
    is_on_hub: bool = False

    @property
    def reference(self) -> ReleaseReference:
        """What a child of this model records as its parent."""
        return ReleaseReference(repo=self.repo, revision=self.revision, commit=self.commit)


def write_release(run_dir: str | Path, repo: str | Path, version: str, *, notes: ReleaseNotes | None = None) -> Path:
    """Copy the model of a run folder into `REPO/vX.Y/`, whole or not at all.

    The version's folder appears by one rename, so that a process killed at any moment leaves no half version. Of two
    processes that release the same version, one is refused.

    Args:
        run_dir (`str` or `Path`): A finished run folder: model, processor, `recipe.yaml` and `metrics.json`.
        repo (`str` or `Path`): The folder of all versions; it is made when absent.
        version (`str`): `1.8` or `v1.8`.
        notes ([`ReleaseNotes`], *optional*): Parent, card and what else to record; name and version are filled in.

    Returns:
        `Path`: The folder of the new version.

    Raises:
        InputError: The version exists, or the run folder lacks what a release needs.
    """
    run_dir, repo, parsed = Path(run_dir), Path(repo), Version.parse(version)
    check_run(run_dir)
    _check_repo(repo)
    repo.mkdir(parents=True, exist_ok=True)
    with FileLock(repo / ".lock"):
        check_version_is_free(repo, version)
        target = repo / str(parsed)
        with _staging(repo, target.name) as staging:
            named = replace(notes or ReleaseNotes(), name=repo.resolve().name, version=target.name, model=str(target))
            assemble(staging, run_dir, named)
            for path in staging.iterdir():
                path.chmod(0o444)
            staging.rename(target)
    return target


def check_version_is_free(repo: str | Path, version: str) -> None:
    """Raise `InputError` if a version exists already, so that a program can say so before it trains for hours."""
    repo, parsed = Path(repo), Version.parse(version)
    _check_repo(repo)
    for name in list_versions(repo):
        if Version.parse(name) == parsed:
            raise InputError(f"{repo}: version {name} exists and versions are immutable; choose another number")
    target = repo / str(parsed)
    if target.exists():
        raise InputError(f"{target}: is in the way and is not a release; move it or choose another number")


def list_versions(repo: str | Path) -> list[str]:
    """The versions in a repository folder as their folders are named, oldest number first (v1.9 before v1.10)."""
    folders = [path.parent.name for path in Path(repo).glob(f"*/{RELEASE_FILE}")]
    return sorted((name for name in folders if Version.is_valid(name)), key=Version.parse)


def find_version(repo: str | Path, version: str) -> str:
    """The folder name of a version, however it is written (`1.8`, `v1.8`, `1.8.0`).

    Raises:
        InputError: There is no such version; the message names the nearest or lists all.
    """
    versions = list_versions(repo)
    if Version.is_valid(version):
        wanted = Version.parse(version)
        for name in versions:
            if Version.parse(name) == wanted:
                return name
        for entry in Path(repo).iterdir():
            if Version.is_valid(entry.name) and Version.parse(entry.name) == wanted:
                _refuse_lost_release(entry)
    nearest = difflib.get_close_matches(f"v{version.removeprefix('v')}", versions, n=1)
    known = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(versions) or 'no versions'}"
    raise InputError(f"{repo}: no version {version}; {known}")


def resolve_model(reference: str | Path, *, verify: bool = True, only: Sequence[str] | None = None) -> ResolvedModel:
    """Find the model that a reference names.

    Folders come first: a run folder, a release's own folder, `REPO@v1.6`, or `REPO` alone for its highest version.
    Anything else is a Hub repository, `ORG/NAME` or `ORG/NAME@REVISION`, which is downloaded.

    Args:
        reference (`str` or `Path`): What the user wrote.
        verify (`bool`, defaults to `True`): Compare the files of a release with the hashes recorded in it.
        only (`Sequence[str]`, *optional*): Patterns of the files to download from the Hub; absent: all.

    Raises:
        InputError: Nothing is there, the version does not exist, or the release is damaged (the file is named).
    """
    text = expand_path(str(reference)).rstrip("/") or "/"
    if Path(text).is_dir():
        return _from_folder(text, verify=verify)
    repo, at, revision = text.rpartition("@")
    if at and not revision:
        raise InputError(f"{text}: no version after the @; write {repo}@VERSION, or {repo} alone for the newest")
    if repo and Path(repo).is_dir():
        return _from_release(repo, find_version(repo, revision), verify=verify)
    if Path(text).exists():
        raise InputError(f"{text}: is a file; name the folder of a run or a release")
    return _from_hub(text, only, verify=verify)


def may_be_on_hub(repo: str) -> bool:
    """Whether a name that is no folder here may be a repository of the Hub: `ORG/NAME`."""
    # `outputs/` and `releases/` are where runs and releases lie, and no organisations.
    return repo.count("/") == 1 and not repo.startswith((".", "~", "/", "outputs/", "releases/"))


def is_hub_reference(reference: str) -> bool:
    """Whether a reference to a model names no folder here, and may name a repository of the Hub."""
    repo = reference.partition("@")[0]
    return not Path(reference).exists() and not Path(repo).exists() and may_be_on_hub(repo)


def _check_repo(repo: Path) -> None:
    if repo.exists() and not repo.is_dir():
        raise InputError(f"{repo}: is a file; a repository is a folder of versions")
    if (repo / CONFIG_FILE).is_file():
        raise InputError(
            f"{repo}: is itself a model folder; a repository is a folder of versions, such as {repo}-releases"
        )


@contextmanager
def _staging(repo: Path, name: str) -> Iterator[Path]:
    """A hidden folder beside the target, on the same file system; the caller holds the repository's lock."""
    for leftover in repo.glob(".staging-*"):
        logger.warning("Removing what an interrupted release left: %s", leftover)
        shutil.rmtree(leftover)
    staging = repo / f".staging-{name}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _from_folder(folder: str, *, verify: bool) -> ResolvedModel:
    path = Path(folder)
    if (path / RELEASE_FILE).is_file():
        return _from_release(str(path.parent), path.name, verify=verify)
    if (path / CONFIG_FILE).is_file():
        if verify:
            _refuse_lost_release(path)
            refuse_damage(path, is_model_file)
        hashes = {file.name: content_hash(file) for file in released_files(path)}
        return ResolvedModel(path, repo=folder, revision=None, commit=content_commit(hashes))
    versions = list_versions(path)
    if versions:
        for entry in path.iterdir():
            _refuse_lost_release(entry)
        return _from_release(folder, versions[-1], verify=verify)
    checkpoints = sorted(path.glob("checkpoint-*/config.json"), key=lambda found: found.stat().st_mtime)
    way_out = f"training has not finished; its last checkpoint is {checkpoints[-1].parent}" if checkpoints else ""
    raise InputError(
        f"{folder}: no model in it (config.json) and no released version; "
        + (way_out or "name a run folder, a release, or REPO@VERSION")
    )


def _refuse_lost_release(path: Path) -> None:
    """Raise `DamagedError` where a folder is a release but for its `release.json`."""
    is_release = Version.is_valid(path.name) and (path / CONFIG_FILE).is_file() and (path / "README.md").is_file()
    if is_release and not (path / RELEASE_FILE).is_file():
        raise DamagedError(f"{path}: damaged release, {RELEASE_FILE} is missing; restore it or use another version")


def _from_release(repo: str, folder_name: str, *, verify: bool) -> ResolvedModel:
    path = Path(repo) / folder_name
    release = verify_release(path) if verify else read_release(path)
    return ResolvedModel(path, repo=repo, revision=release.version, commit=release.commit)


def _from_hub(text: str, only: Sequence[str] | None, *, verify: bool) -> ResolvedModel:
    repo, _, revision = text.partition("@")
    if not may_be_on_hub(repo):
        raise InputError(f"{text}: no such folder{_nearest_sibling(repo)}")
    try:
        path = download_model(repo, revision or None, only=only, verify=verify)
    except DamagedError as error:
        raise DamagedError(f"{text}: downloaded twice, and damaged both times ({error})") from error
    except MovedVersionError:
        raise
    except InputError as error:
        reason = str(error).removeprefix(f"{text}: ")
        message = f"{text}: no such folder{_nearest_sibling(repo)}, and not to be had from the Hub: {reason}"
        raise (UnreachableError if isinstance(error, UnreachableError) else InputError)(message) from error
    version = read_release(path).version if (path / RELEASE_FILE).is_file() else None
    # Where a branch was named, or nothing, the version that it holds says more to whoever reads the lineage later.
    return ResolvedModel(path, repo=repo, revision=version or revision or None, commit=path.name, is_on_hub=True)


def _nearest_sibling(repo: str) -> str:
    parent = Path(repo).parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    nearest = difflib.get_close_matches(Path(repo).name, names, n=1)
    return f"; did you mean {parent / nearest[0]}?" if nearest else ""
