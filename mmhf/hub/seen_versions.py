"""The commit that each version of a repository had when it was first seen, so that a tag that moves is noticed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from mmhf.errors import InputError
from mmhf.files import read_json_object, write_json

logger = logging.getLogger(__name__)

ACCEPT_MOVED = "MMHF_ACCEPT_MOVED"
"""Environment variable; when it is set, tags may have moved, which `--accept-moved` says."""


class MovedVersionError(InputError):
    """A version is another commit than it was."""


def check_seen(repo: str, version: str, commit: str) -> None:
    """Remember the commit of a version, or compare it with the one that is remembered.

    What is remembered lies beside the cache of `huggingface_hub`, in `mmhf/versions/`.

    Args:
        repo (`str`): `ORG/NAME`.
        version (`str`): The tag.
        commit (`str`): What it points to now.

    Raises:
        MovedVersionError: It pointed to another commit before.
    """
    path = Path(constants.HF_HUB_CACHE).parent / "mmhf" / "versions" / f"{repo.replace('/', '--')}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            seen = _read(path)
            before = seen.get(version, commit)
            if before != commit:
                if not os.environ.get(ACCEPT_MOVED):
                    raise MovedVersionError(
                        f"{repo}@{version}: the tag has moved from commit {before[:12]} to {commit[:12]} since it was "
                        f"first used here, and versions are immutable; ask its owners why, name {repo}@{before} to "
                        "have what it was, or add --accept-moved to take what it is now"
                    )
                logger.warning("%s@%s: has moved from commit %s to %s", repo, version, before[:12], commit[:12])
            if seen.get(version) != commit:
                write_json(path, {**seen, version: commit})
    except OSError as error:  # a cache that others fill may be read alone
        logger.warning("%s: cannot be written (%s), so a tag that moves would not be noticed", path, error.strerror)


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        seen = read_json_object(path)
    except InputError:
        seen = {"": None}
    if all(isinstance(commit, str) for commit in seen.values()):
        return seen
    logger.warning("%s: is damaged; the commits of versions seen before are forgotten", path)
    return {}
