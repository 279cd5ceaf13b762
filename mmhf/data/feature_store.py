"""Features of samples, by what the samples contain, in memory-mapped files that several processes append to."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmhf.errors import InputError

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16
_DESCRIPTION = "store.json"
_RECORD = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("checksum", "<u8")])
_MIX = 0x9E3779B97F4A7C15
_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Digests = NDArray[np.void]
"""(N,) contents of samples, `DIGEST_BYTES` each."""


class DamagedStoreError(InputError):
    """A store's files are not what was written into them."""


@dataclass(frozen=True)
class FeatureLayout:
    """Shape and dtype of the features of one sample."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's features."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass
class _Segment:
    """What one process has appended: features one after the other, and beside them digests and checksums."""

    stem: Path
    num_rows: int
    features: NDArray[np.unsignedinteger] | None = None

    @property
    def feature_path(self) -> Path:
        return self.stem.with_suffix(".features")

    @property
    def record_path(self) -> Path:
        return self.stem.with_suffix(".records")


class FeatureStore:
    """Features of samples with one layout, found by the digest of what a sample contains.

    A row counts once its record is written, and that is after its features, so that a killed writer loses the batch
    in flight and nothing else. Each process appends to files of its own. A row is checked against its checksum when a
    process reads it for the first time.

    Args:
        folder (`Path`): Made if absent.
        layout (`FeatureLayout`): Of one sample.

    Raises:
        InputError: The folder holds features of another layout, or cannot be written.
    """

    def __init__(self, folder: Path, layout: FeatureLayout) -> None:
        self.folder = folder
        self.layout = layout
        self._writer: _Segment | None = None
        self._segments: list[_Segment] = []
        self._starts = np.zeros(1, dtype=np.int64)
        self._records = np.empty(0, dtype=_RECORD)
        self._order = np.empty(0, dtype=np.int64)
        self._keys = np.empty(0, dtype=np.uint64)
        self._verified = np.empty(0, dtype=bool)
        self._describe()
        self.refresh()

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "layout": self.layout}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a worker process opens the files itself

    @property
    def num_bytes(self) -> int:
        """Bytes of all features and their records."""
        return len(self) * (self.layout.row_bytes + _RECORD.itemsize)

    def refresh(self) -> None:
        """See what other processes have appended since."""
        stems = sorted(path.with_suffix("") for path in self.folder.glob("*.records"))
        self._segments = [_Segment(stem, _whole_rows(stem, self.layout)) for stem in stems]
        counts = [segment.num_rows for segment in self._segments]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        records = [np.fromfile(each.record_path, _RECORD, each.num_rows) for each in self._segments]
        known = len(self._records)
        self._records = np.concatenate(records) if records else np.empty(0, dtype=_RECORD)
        if len(self._records) != known:
            self._verified = np.zeros(len(self._records), dtype=bool)
        keys = _keys_of(self._records["digest"])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """Where the features of these samples are.

        Args:
            digests (`Digests`): (N,).

        Returns:
            `NDArray[np.int64]`: (N,) positions for `read`; -1 for a sample that is not here.
        """
        if not len(self):
            return np.full(len(digests), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._keys, _keys_of(digests)), len(self) - 1)
        positions = self._order[places]
        return np.where(self._records["digest"][positions] == digests, positions, -1)

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        """Features at positions that `find` gave.

        Returns:
            `Tensor`: (N, *layout.shape), a copy.

        Raises:
            DamagedStoreError: Bytes differ from those that were written.
        """
        which = np.searchsorted(self._starts, positions, side="right") - 1
        present = set(which.tolist())
        if len(present) == 1:
            index = present.pop()
            rows = self._features(index)[positions - self._starts[index]]
        else:
            width = int(np.prod(self.layout.shape))
            rows = np.empty((len(positions), width), dtype=_INTEGERS[self.layout.dtype.itemsize])
            for index in present:
                members = which == index
                rows[members] = self._features(index)[positions[members] - self._starts[index]]
        self._verify(positions, rows)
        return torch.from_numpy(rows).view(self.layout.dtype).reshape(-1, *self.layout.shape)

    def append(self, digests: Digests, features: Tensor) -> None:
        """Write the features of samples; what is here already is written again and does no harm.

        Args:
            digests (`Digests`): (N,).
            features (`Tensor`): (N, *layout.shape).

        Raises:
            InputError: The disk is full or the folder cannot be written.
        """
        rows = features.detach().to("cpu", self.layout.dtype).contiguous().view(torch.uint8).reshape(len(digests), -1)
        contents = rows.numpy()
        records = np.empty(len(digests), dtype=_RECORD)
        records["digest"], records["checksum"] = digests, _checksums(contents)
        if self._writer is None:
            self._writer = _Segment(self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}", 0)
        try:
            _append(self._writer.feature_path, contents.tobytes(), self._writer.num_rows * self.layout.row_bytes)
            _append(self._writer.record_path, records.tobytes(), self._writer.num_rows * _RECORD.itemsize)
        except OSError as error:
            raise InputError(
                f"{self.folder}: features cannot be stored ({error.strerror}); cache=off goes on"
            ) from error
        self._writer.num_rows += len(digests)

    def _features(self, index: int) -> NDArray[np.unsignedinteger]:
        segment = self._segments[index]
        if segment.features is None:
            mapped = np.memmap(
                segment.feature_path,
                dtype=_INTEGERS[self.layout.dtype.itemsize],
                mode="r",
                shape=(segment.num_rows, int(np.prod(self.layout.shape))),
            )
            segment.features = np.asarray(mapped)  # np.memmap itself is slow to index
        return segment.features

    def _verify(self, positions: NDArray[np.int64], rows: NDArray[np.unsignedinteger]) -> None:
        new = np.flatnonzero(~self._verified[positions])
        if not len(new):
            return
        wrong = _checksums(rows[new].view(np.uint8)) != self._records["checksum"][positions[new]]
        if wrong.any():
            place = positions[new[np.argmax(wrong)]]
            raise DamagedStoreError(f"{self.folder}: stored features are damaged (row {place}); delete the folder")
        self._verified[positions[new]] = True

    def _describe(self) -> None:
        path = self.folder / _DESCRIPTION
        own = {"shape": list(self.layout.shape), "dtype": str(self.layout.dtype)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                scratch = path.with_suffix(f".{uuid.uuid4().hex}")
                scratch.write_text(json.dumps(own))
                scratch.replace(path)
            os.utime(path)  # when it was last used, for `make_room`
        except OSError as error:
            raise InputError(
                f"{self.folder}: no store can be kept there ({error.strerror}); set cache: off"
            ) from error
        if json.loads(path.read_text()) != own:
            raise DamagedStoreError(f"{path}: not the layout {own}; delete the folder")


def make_room(root: Path, needed: int, *, max_bytes: int | None, keep: Path) -> None:
    """Remove the stores below a folder that were not used for the longest time, until new features fit.

    Args:
        root (`Path`): Holds the stores.
        needed (`int`): Bytes to come.
        max_bytes (`int`, *optional*): What all stores may take together; absent: what the disk has.
        keep (`Path`): The store that is being filled.

    Raises:
        InputError: There is not enough room even without the other stores.
    """
    root.mkdir(parents=True, exist_ok=True)
    others = sorted((path.parent for path in root.glob(f"*/{_DESCRIPTION}") if path.parent != keep), key=_last_used)
    while (lack := _lack(root, needed, max_bytes)) > 0:
        if not others:
            raise InputError(
                f"{root}: {lack:,} bytes short of room for new features; free the disk or raise cache.max_bytes"
            )
        oldest = others.pop(0)
        logger.warning("%s: removed to make room for new features", oldest)
        shutil.rmtree(oldest)


def digests_of(contents: Sequence[bytes]) -> Digests:
    """Digests as an array, from their bytes."""
    return np.frombuffer(b"".join(contents), dtype=_RECORD["digest"]).copy()


def _lack(root: Path, needed: int, max_bytes: int | None) -> int:
    lack = needed - shutil.disk_usage(root).free
    if max_bytes is not None:
        lack = max(lack, needed + sum(path.stat().st_size for path in root.glob("*/*")) - max_bytes)
    return lack


def _last_used(folder: Path) -> float:
    return (folder / _DESCRIPTION).stat().st_mtime


def _whole_rows(stem: Path, layout: FeatureLayout) -> int:
    records = stem.with_suffix(".records").stat().st_size // _RECORD.itemsize
    features = stem.with_suffix(".features")
    return min(records, features.stat().st_size // layout.row_bytes) if features.exists() else 0


def _keys_of(digests: Digests) -> NDArray[np.uint64]:
    """What digests are sorted by; of two that share a key, which 64 bits make rare, one is never found again."""
    halves = np.frombuffer(np.ascontiguousarray(digests).tobytes(), dtype="<u8").reshape(-1, DIGEST_BYTES // 8)
    return halves[:, 0] * np.uint64(_MIX) + halves[:, 1]


def _checksums(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A weighted sum of each row's words, modulo 2**64; the weights are odd, so that no changed word goes unseen."""
    num_bytes = rows.shape[1]
    word = next(size for size in (8, 4, 2, 1) if num_bytes % size == 0)
    words = np.ascontiguousarray(rows).view(_INTEGERS[word])
    weights = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(_MIX)
    return (words * weights).sum(axis=1, dtype=np.uint64)


def _append(path: Path, content: bytes, expected_size: int) -> None:
    """Write behind the rows that count; a write that failed halfway is overwritten."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(expected_size)
        file.write(content)
        file.truncate()
