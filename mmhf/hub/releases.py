"""Releases in a folder: `REPO/v1.6/`, written once and never changed."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from mmhf.errors import InputError
from mmhf.hub.environment import code_version, environment
from mmhf.hub.model_card import model_card
from mmhf.hub.versions import Version

logger = logging.getLogger(__name__)

RELEASE_FILE = "release.json"
_NEVER_RELEASED = {RELEASE_FILE, "trainer_state.json"}
_RELEASED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "recipe.yaml")
_REQUIRED = ("config.json", "recipe.yaml", "metrics.json")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ReleaseReference:
    """Names one state of a model: where it lies, which version, which content.

    Args:
        repo (`str`): A repository folder, a Hub repository, or a run folder.
        revision (`str`, *optional*): The version (`v1.6`), or a Hub revision; `None` for a run folder.
        commit (`str`, *optional*): The content: a release's own hash, or the Hub's commit.
    """

    repo: str
    revision: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


class Release(BaseModel):
    """What `release.json` says."""

    model_config = ConfigDict(frozen=True)

    version: str
    commit: str
    """sha256 over the sorted names and hashes of `files`: equal content, equal commit."""
    created: str
    """UTC, ISO 8601."""
    parent: ReleaseReference | None
    task: str
    metrics: dict[str, Any]
    code: dict[str, str | None]
    environment: dict[str, str]
    files: dict[str, str]
    """File name → sha256."""
    extra: dict[str, Any] = {}
    """Whatever the releasing program adds, such as `data_fingerprint`."""


def write_release(
    run_dir: str | Path,
    repo: str | Path,
    version: str,
    *,
    parent: ReleaseReference | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Copy the model of a run folder into `REPO/vX.Y/`, whole or not at all.

    The version's folder appears by one rename, so that a process killed at any moment leaves no half version. Of two
    processes that release the same version, one is refused.

    Args:
        run_dir (`str` or `Path`): A finished run folder: model, processor, `recipe.yaml` and `metrics.json`.
        repo (`str` or `Path`): The folder of all versions; it is made when absent.
        version (`str`): `1.8` or `v1.8`.
        parent (`ReleaseReference`, *optional*): What training started from; `None` = from the backbones.
        extra (`Mapping[str, Any]`, *optional*): More to record under `extra`, such as `data_fingerprint`.

    Returns:
        `Path`: The folder of the new version.

    Raises:
        InputError: The version exists, or the run folder lacks what a release needs.
    """
    run_dir, repo, parsed = Path(run_dir), Path(repo), Version.parse(version)
    _check_run(run_dir)
    _check_repo(repo)
    repo.mkdir(parents=True, exist_ok=True)
    with FileLock(repo / ".lock"):
        _refuse_existing(repo, parsed)
        target = repo / str(parsed)
        with _staging(repo, target.name) as staging:
            _fill(staging, run_dir, target, parent=parent, extra=dict(extra or {}))
            staging.rename(target)
    logger.info("Released %s as %s", run_dir, target)
    return target


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
    nearest = difflib.get_close_matches(f"v{version.removeprefix('v')}", versions, n=1)
    known = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(versions) or 'no versions'}"
    raise InputError(f"{repo}: no version {version}; {known}")


def read_release(release_dir: str | Path) -> Release:
    """Read `release.json` of a release folder; raises `InputError` when it is not one or the file is damaged."""
    path = Path(release_dir) / RELEASE_FILE
    if not path.is_file():
        raise InputError(f"{release_dir}: not a release, it has no {RELEASE_FILE}")
    try:
        return Release.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: damaged ({error.errors()[0]['msg']}); fetch the release again") from error


def verify_release(release_dir: str | Path) -> Release:
    """Compare every file of a release with the hash recorded when it was made.

    Raises:
        InputError: Names each file that is missing or changed.
    """
    release_dir = Path(release_dir)
    release = read_release(release_dir)
    damaged = []
    for name, expected in release.files.items():
        path = release_dir / name
        if not path.is_file():
            damaged.append(f"{name} is missing")
        elif file_sha256(path) != expected:
            damaged.append(f"{name} has changed")
    if not damaged and content_commit(release.files) != release.commit:
        damaged.append(f"{RELEASE_FILE} has changed")
    if damaged:
        raise InputError(f"{release_dir}: damaged release, {', '.join(damaged)}; restore it or use another version")
    return release


def released_files(folder: str | Path) -> list[Path]:
    """The files of a run folder that make up its model and enter a release, sorted by name."""
    found = {path for pattern in _RELEASED for path in Path(folder).glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in _NEVER_RELEASED)


def content_commit(hashes: Mapping[str, str]) -> str:
    """One hash for a set of files, from their names and sha256 hashes."""
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_run(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run folder")
    missing = [name for name in _REQUIRED if not (run_dir / name).is_file()]
    weights = sorted(run_dir.glob("*.safetensors"))
    if not weights:
        missing.append("model.safetensors")
    if not any((run_dir / name).is_file() for name in _PROCESSOR_FILES):
        missing.append(_PROCESSOR_FILES[0])
    if missing:
        raise InputError(f"{run_dir}: cannot be released, it lacks {', '.join(missing)}; has its training finished?")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be released, the weights are damaged ({error})") from error


def _check_repo(repo: Path) -> None:
    if repo.exists() and not repo.is_dir():
        raise InputError(f"{repo}: is a file; a repository is a folder of versions")
    if (repo / "config.json").is_file():
        raise InputError(
            f"{repo}: is itself a model folder; a repository is a folder of versions, such as {repo}-releases"
        )


def _refuse_existing(repo: Path, version: Version) -> None:
    for name in list_versions(repo):
        if Version.parse(name) == version:
            raise InputError(f"{repo}: version {name} exists and versions are immutable; choose another number")
    if (repo / str(version)).exists():
        raise InputError(
            f"{repo / str(version)}: is in the way and is not a release; move it or choose another number"
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


def _fill(
    staging: Path, run_dir: Path, target: Path, *, parent: ReleaseReference | None, extra: dict[str, Any]
) -> None:
    sources = released_files(run_dir)
    for source in sources:
        shutil.copyfile(source, staging / source.name)
    task = _read_task(staging / "recipe.yaml")
    metrics = _read_metrics(staging / "metrics.json")
    card = model_card(
        target.parent.resolve().name, target.name, task=task, metrics=metrics, parent=parent, model_path=str(target)
    )
    (staging / "README.md").write_text(card, encoding="utf-8")
    files = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
    release = Release(
        version=target.name,
        commit=content_commit(files),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        parent=parent,
        task=task,
        metrics=metrics,
        code=code_version(),
        environment=environment(),
        files=files,
        extra=extra,
    )
    (staging / RELEASE_FILE).write_text(release.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for path in staging.iterdir():
        path.chmod(0o444)


def _read_task(recipe_path: Path) -> str:
    try:
        return str(yaml.safe_load(recipe_path.read_text(encoding="utf-8"))["task"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{recipe_path.name}: not a resolved recipe, it has no `task`; cannot be released") from error


def _read_metrics(metrics_path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{metrics_path.name}: not JSON ({error}); cannot be released") from error
    if not isinstance(metrics, dict):
        raise InputError(f"{metrics_path.name}: expected one object of metrics; cannot be released")
    return metrics
