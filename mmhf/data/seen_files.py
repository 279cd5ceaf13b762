"""What is known of files that have not changed since they were read: their digests, and which images are whole.

To read 50,000 files takes seconds at each start, to ask for their sizes and times a fraction of one. What was learnt
of them is kept in two files of the data set cache, 24 and 8 bytes for each.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mmhf.files import whole_file

logger = logging.getLogger(__name__)

_RECORD = np.dtype([("state", "<u8"), ("digest", "V16")])
_WHOLE = np.dtype([("state", "<u8")])
_SETTLED_AFTER = 2.0
"""Seconds after which a further change of a file is sure to change its times."""
_MOST_RECORDS = 4_000_000
_UNKNOWN = 0

States = NDArray[np.uint64]
"""(N,) numbers that are others once a file has been changed, 0 where that cannot be told."""


def states_of(paths: Sequence[str | None]) -> States:
    """The states of files, by size, times and place on the disk."""
    now = time.time()
    return np.fromiter((_state(path, now) for path in paths), np.uint64, len(paths))


def known_digests(states: States) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """The digests (N,) of files in these states, and which of them are known."""
    records = _records(seen_path(), _RECORD)
    places = np.searchsorted(records["state"], states)
    places[places == len(records)] = 0
    if not len(records):
        return np.zeros(len(states), "V16"), np.zeros(len(states), bool)
    return records["digest"][places], (records["state"][places] == states) & (states != _UNKNOWN)


def keep_digests(states: States, digests: NDArray[np.void]) -> None:
    """Keep what was learnt; where nothing can be written, it is learnt anew at the next start."""
    found = np.empty(len(states), _RECORD)
    found["state"], found["digest"] = states, digests
    _keep(seen_path(), found)


class WholeImages:
    """Image files that were looked at and found to be whole; what is found is kept when `keep` is called."""

    def __init__(self) -> None:
        self._known: States = _records(self._path(), _WHOLE)["state"]
        self._found: list[States] = []

    def know(self, states: States) -> NDArray[np.bool_]:
        """Which files in these states (N,) were found whole at an earlier start."""
        if not len(self._known):
            return np.zeros(len(states), bool)
        places = np.searchsorted(self._known, states)
        places[places == len(self._known)] = 0
        known: NDArray[np.bool_] = (self._known[places] == states) & (states != _UNKNOWN)
        return known

    def add(self, states: States) -> None:
        """Files in these states are whole."""
        self._found.append(states)

    def keep(self) -> None:
        """Keep what was added for the next start; where nothing can be written, that looks again."""
        found = np.empty(sum(map(len, self._found)), _WHOLE)
        if len(found):
            found["state"] = np.concatenate(self._found)
            _keep(self._path(), found)
        self._found = []

    @staticmethod
    def _path() -> Path:
        return Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_images.whole"


def seen_path() -> Path:
    """Where digests are kept."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_files.seen"


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process do what the others then find done; where no lock can be made, all do it.

    Args:
        path (`Path`): What will be made.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _records(path: Path, kind: np.dtype[np.void]) -> NDArray[np.void]:
    """What is kept, in the order of the states."""
    try:
        return np.fromfile(path, kind)
    except OSError:
        return np.empty(0, kind)


def _keep(path: Path, found: NDArray[np.void]) -> None:
    found = found[found["state"] != _UNKNOWN]
    if not len(found):
        return
    before = _records(path, found.dtype)
    together = np.concatenate([before, found]) if len(before) + len(found) <= _MOST_RECORDS else found
    _, first = np.unique(together["state"], return_index=True)
    try:
        with whole_file(path) as temporary:
            together[first].tofile(temporary)
    except OSError as error:
        _tell_unwritable(path, str(error.strerror))


@functools.cache
def _tell_unwritable(path: Path, reason: str) -> None:
    """Once, although each split tries."""
    logger.warning("%s: cannot be written (%s); files are read anew at each start", path, reason)


def _state(path: str | None, now: float) -> int:
    if path is None:
        return _UNKNOWN
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return _UNKNOWN
    if now - max(found.st_mtime, found.st_ctime) < _SETTLED_AFTER:
        return _UNKNOWN
    facts = f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    return int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=8).digest(), "little")
