"""All versions of a model, in a folder or on the Hub, and what changed from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmhf.errors import InputError
from mmhf.files import RECIPE_FILE, RELEASE_FILE, read_yaml_object
from mmhf.hub.hub_errors import named_hub_errors
from mmhf.hub.hub_repo import HubRepo, download_file
from mmhf.hub.manifest import Release, ReleaseReference, Version, read_release
from mmhf.hub.releases import list_versions, resolve_model
from mmhf.hub.seen_versions import check_seen
from mmhf.recipe.history import HISTORY

# Where a run was put, what it was called and what was changed on the way are no settings of the model.
_NOT_SETTINGS = ("release", "init_from", "training.output_dir", "tracking", HISTORY)


@dataclass(frozen=True)
class VersionRecord:
    """One version: what its `release.json` and `recipe.yaml` say.

    Args:
        repo (`str`): Folder or Hub repository.
        commit (`str`): Hash of its content; on the Hub, the commit of its tag.
        release ([`Release`]): Its `release.json`.
        recipe (`Mapping`): Its `recipe.yaml`.
    """

    repo: str
    commit: str
    release: Release
    recipe: Mapping[str, Any]

    def is_named_by(self, reference: ReleaseReference) -> bool:
        """Whether a child that names its parent so means this version."""
        if reference.commit is not None:
            return reference.commit in (self.commit, self.release.commit)
        return (reference.repo, reference.revision) == (self.repo, self.release.version)


@dataclass(frozen=True)
class Change:
    """One key that two versions have with different values; `None` = absent."""

    key: str
    old: Any
    new: Any


@dataclass
class FamilyTree:
    """A version and those that were trained from it.

    Args:
        record ([`VersionRecord`]): The version.
        children (`list[FamilyTree]`): By version number.
    """

    record: VersionRecord
    children: list[FamilyTree] = field(default_factory=list)


def read_history(repo: str) -> list[VersionRecord]:
    """All versions of a repository, the oldest number first; of the Hub only small files are fetched.

    Raises:
        InputError: There is no such repository, or it has no versions.
    """
    records = _folder_history(repo) if Path(repo).is_dir() else _hub_history(repo)
    if not records:
        raise InputError(f"{repo}: has no versions; mmhf release RUN --repo {repo} --version 0.1 makes one")
    return records


def read_version(reference: str) -> VersionRecord:
    """One version by its name, such as `ORG/NAME@v1.7` or `releases/fakeddit@1.8`; weights are not fetched."""
    resolved = resolve_model(reference, verify=False, only=[RELEASE_FILE, RECIPE_FILE])
    return VersionRecord(
        resolved.repo, resolved.commit, read_release(resolved.path), _read_recipe(resolved.path / RECIPE_FILE)
    )


def family_trees(records: Sequence[VersionRecord]) -> list[FamilyTree]:
    """Versions under their parents; a version whose parent is elsewhere, or none, begins a tree."""
    trees = [FamilyTree(record) for record in records]
    roots: list[FamilyTree] = []
    for tree in trees:
        parent = tree.record.release.parent
        found = [] if parent is None else [other for other in trees if other.record.is_named_by(parent)]
        found = [other for other in found if other is not tree]
        (found[0].children if found else roots).append(tree)
    return roots


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Settings of two recipes that differ, by dotted key, without what merely names the run."""
    return _changes(dict(_flat(old)), dict(_flat(new)))


def changed_metrics(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Numbers that differ, or that one of the two lacks."""
    return _changes(old, new)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    keys = dict.fromkeys([*old, *new])
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        key = f"{prefix}{name}"
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({str(index): item for index, item in enumerate(value)}, f"{key}.")
        elif value is not None:
            yield key, value


def _folder_history(repo: str) -> list[VersionRecord]:
    records = []
    for version in list_versions(repo):
        release = read_release(Path(repo) / version)
        recipe = _read_recipe(Path(repo) / version / RECIPE_FILE)
        records.append(VersionRecord(repo, release.commit, release, recipe))
    return records


def _hub_history(repo: str) -> list[VersionRecord]:
    hub_repo, records = HubRepo(repo), []
    with named_hub_errors(repo):
        refs = hub_repo.refs()
        if refs is None:
            raise InputError(f"{repo}: no such folder, and no such repository on the Hub that this login may see")
        for version in sorted(refs.versions(), key=Version.parse):
            commit = refs.tags[version]
            check_seen(repo, version, commit)
            release, recipe = hub_repo.release_at(commit), download_file(repo, RECIPE_FILE, commit)
            if release is not None:  # somebody's own tag may be called like a version
                records.append(VersionRecord(repo, commit, release, {} if recipe is None else _read_recipe(recipe)))
    return records


def _read_recipe(path: Path) -> dict[str, Any]:
    return read_yaml_object(path) if path.exists() else {}
