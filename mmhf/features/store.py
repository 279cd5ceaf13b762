"""Features of samples, by what the samples contain, in memory-mapped files that several processes append to."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmhf.data.digests import DIGEST_BYTES, Digests
from mmhf.errors import InputError
from mmhf.files import write_json

logger = logging.getLogger(__name__)

_DESCRIPTION = "store.json"
_RECORD = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("checksum", "<u8")])
_ROWS_AT_ONCE = 1 << 14
_MIX = 0x9E3779B97F4A7C15
_SEGMENT_BITS = 40
_ROW_MASK = (1 << _SEGMENT_BITS) - 1
_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


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
    num_rows: int = 0
    features: NDArray[np.unsignedinteger] | None = None
    is_kept: bool = False
    """Whether it lies in memory alone, because it could not be written."""
    _records: NDArray[np.void] = field(default_factory=lambda: np.empty(0, dtype=_RECORD))
    _verified: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def records(self) -> NDArray[np.void]:
        return self._records[: self.num_rows]

    @property
    def verified(self) -> NDArray[np.bool_]:
        return self._verified[: self.num_rows]

    @property
    def feature_path(self) -> Path:
        return self.stem.with_suffix(".features")

    @property
    def record_path(self) -> Path:
        return self.stem.with_suffix(".records")

    def extend(self, records: NDArray[np.void], *, verified: bool = False) -> None:
        end = self.num_rows + len(records)
        if end > len(self._records):  # room for as many again, so that appending stays cheap
            more = max(end, 2 * self.num_rows) - self.num_rows
            self._records = np.concatenate([self.records, np.empty(more, dtype=_RECORD)])
            self._verified = np.concatenate([self.verified, np.zeros(more, dtype=bool)])
        self._records[self.num_rows : end] = records
        self._verified[self.num_rows : end] = verified
        self.num_rows = end


class FeatureStore:
    """Features of samples with one layout, found by the digest of what a sample contains.

    A row counts once its record is written, and that is after its features, so that a killed writer loses the batch
    in flight and nothing else. Each process appends to files of its own. A row is checked against its checksum when a
    process reads it for the first time. Positions stay what they are as long as the store is open.

    Args:
        folder (`Path`): Made if absent. One that cannot be written is read.
        layout (`FeatureLayout`): Of one sample.

    Raises:
        DamagedStoreError: The folder holds features of another layout.
        InputError: There is no store, and none can be made.
    """

    def __init__(self, folder: Path, layout: FeatureLayout) -> None:
        self.folder = folder
        self.layout = layout
        self.is_writable = True
        self._writer: int | None = None
        self._segments: list[_Segment] = []
        self._describe()
        self.refresh()

    def __len__(self) -> int:
        return sum(segment.num_rows for segment in self._segments)

    def __getstate__(self) -> dict[str, object]:
        # A worker process maps the files itself; the order of the segments is what positions stand for.
        segments = [
            each if each.is_kept else replace(each, features=None, _verified=np.zeros_like(each.verified))
            for each in self._segments
        ]
        return {**vars(self), "is_writable": False, "_writer": None, "_segments": segments}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._index()

    @property
    def num_bytes(self) -> int:
        """Bytes of all features and their records."""
        return len(self) * (self.layout.row_bytes + _RECORD.itemsize)

    def refresh(self) -> None:
        """See what other processes have appended since, and find what this one has."""
        known = {segment.stem: segment for segment in self._segments}
        for path in sorted(self.folder.glob("*.records")):
            segment = known.get(path.with_suffix(""))
            if segment is None:
                segment = _Segment(path.with_suffix(""))
                self._segments.append(segment)
            done = segment.num_rows
            written = segment.record_path.stat().st_size // _RECORD.itemsize
            features = segment.feature_path
            whole = min(written, features.stat().st_size // self.layout.row_bytes) if features.exists() else 0
            if (more := whole - done) > 0:
                segment.extend(np.fromfile(segment.record_path, _RECORD, more, offset=done * _RECORD.itemsize))
        if self.is_writable and (self.folder / _DESCRIPTION).exists():
            os.utime(self.folder / _DESCRIPTION)
        self._index()

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """Where the features of these samples are.

        Args:
            digests (`Digests`): (N,).

        Returns:
            `NDArray[np.int64]`: (N,) positions for `read`; -1 for a sample that is not here.
        """
        if not len(self._keys):
            return np.full(len(digests), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._keys, _keys_of(digests)), len(self._keys) - 1)
        positions = self._rows[places]
        found = np.empty(len(digests), dtype=_RECORD["digest"])
        for index, members in _by_segment(positions):
            found[members] = self._segments[index].records["digest"][positions[members] & _ROW_MASK]
        return np.where(found == digests, positions, -1)

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        """Features at positions that `find` or `append` gave.

        Returns:
            `Tensor`: (N, *layout.shape), a copy.

        Raises:
            DamagedStoreError: Bytes differ from those that were written.
        """
        groups = _by_segment(positions)
        if len(groups) == 1:
            rows = self._read_segment(groups[0][0], positions & _ROW_MASK)
        else:
            rows = np.empty((len(positions), self._width), dtype=_INTEGERS[self.layout.dtype.itemsize])
            for index, members in groups:
                rows[members] = self._read_segment(index, positions[members] & _ROW_MASK)
        return torch.from_numpy(rows).view(self.layout.dtype).reshape(-1, *self.layout.shape)

    def append(self, digests: Digests, features: Tensor) -> NDArray[np.int64]:
        """Write the features of samples; what is here already is written again and does no harm.

        Args:
            digests (`Digests`): (N,).
            features (`Tensor`): (N, *layout.shape).

        Returns:
            `NDArray[np.int64]`: (N,) positions for `read`.

        Raises:
            InputError: The disk is full or the folder cannot be written.
        """
        contents = self._as_bytes(features, len(digests))
        records = np.empty(len(digests), dtype=_RECORD)
        records["digest"], records["checksum"] = digests, _checksums(contents)
        if self._writer is None:
            self._writer = len(self._segments)
            self._segments.append(_Segment(self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"))
        segment = self._segments[self._writer]
        first = segment.num_rows
        try:
            _append(segment.feature_path, contents.tobytes(), first * self.layout.row_bytes)
            _append(segment.record_path, records.tobytes(), first * _RECORD.itemsize)
        except OSError as error:
            raise InputError(f"{self.folder}: features cannot be stored ({error.strerror})") from error
        segment.extend(records, verified=True)
        return (self._writer << _SEGMENT_BITS) + np.arange(first, first + len(digests))

    def keep(self, digests: Digests, features: Tensor) -> None:
        """Hold the features of samples in memory, as long as the store is open.

        Args:
            digests (`Digests`): (N,).
            features (`Tensor`): (N, *layout.shape).
        """
        contents = self._as_bytes(features, len(digests))
        segment = _Segment(Path("memory"), features=contents.view(_INTEGERS[self.layout.dtype.itemsize]), is_kept=True)
        records = np.empty(len(digests), dtype=_RECORD)
        records["digest"], records["checksum"] = digests, 0
        segment.extend(records, verified=True)
        self._segments.append(segment)
        self._index()

    def damaged(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows' bytes are not what was written; those that are, are not looked at again.

        Args:
            positions (`NDArray[np.int64]`): (N,), such as a process's share of those that will be read.
        """
        wrong = np.zeros(len(positions), dtype=bool)
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            part = positions[start : start + _ROWS_AT_ONCE]
            for index, members in _by_segment(part):
                segment, rows = self._segments[index], part[members] & _ROW_MASK
                unknown = ~segment.verified[rows]
                try:
                    bad = np.zeros(len(rows), dtype=bool)
                    bad[unknown] = self._wrong(segment, rows[unknown], self._features(segment)[rows[unknown]])
                except (OSError, ValueError, IndexError):  # the files are gone, or shorter than they were
                    bad = np.ones(len(rows), dtype=bool)
                segment.verified[rows[~bad]] = True
                wrong[start : start + _ROWS_AT_ONCE][members] = bad
        return wrong

    def drop(self, digests: Digests) -> None:
        """Forget the features of samples, here and, where the folder can be written, for all."""
        positions = self.find(digests)
        for position in positions[positions >= 0].tolist():
            segment, row = self._segments[position >> _SEGMENT_BITS], position & _ROW_MASK
            segment.records["digest"][row] = bytes(DIGEST_BYTES)
            try:
                with segment.record_path.open("r+b") as file:
                    file.seek(row * _RECORD.itemsize)
                    file.write(bytes(DIGEST_BYTES))
            except OSError as error:
                logger.warning("%s: a damaged row stays in it (%s)", segment.record_path, error.strerror)
        self._index()

    def _as_bytes(self, features: Tensor, num_rows: int) -> NDArray[np.uint8]:
        rows = features.detach().to("cpu", self.layout.dtype).contiguous()
        return rows.view(torch.uint8).reshape(num_rows, -1).numpy()

    @property
    def _width(self) -> int:
        return int(np.prod(self.layout.shape))

    def _index(self) -> None:
        digests = [segment.records["digest"] for segment in self._segments]
        rows = [(index << _SEGMENT_BITS) + np.arange(segment.num_rows) for index, segment in enumerate(self._segments)]
        keys = _keys_of(np.concatenate(digests)) if digests else np.empty(0, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._rows = np.concatenate(rows)[order] if rows else np.empty(0, dtype=np.int64)

    def _read_segment(self, index: int, rows: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        segment = self._segments[index]
        try:
            found = self._features(segment)[rows]
        except (OSError, ValueError) as error:  # removed, or cut short, since it was opened
            raise DamagedStoreError(f"{self.folder}: stored features are gone ({error})") from error
        if not segment.verified[rows].all():
            wrong = self._wrong(segment, rows, found)
            if wrong.any():
                place = int(rows[np.argmax(wrong)])
                raise DamagedStoreError(
                    f"{segment.feature_path}: stored features are damaged (row {place}); delete the folder"
                )
            segment.verified[rows] = True
        return found

    @staticmethod
    def _wrong(segment: _Segment, rows: NDArray[np.int64], contents: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
        differ: NDArray[np.bool_] = _checksums(contents.view(np.uint8)) != segment.records["checksum"][rows]
        return differ

    def _features(self, segment: _Segment) -> NDArray[np.unsignedinteger]:
        if segment.features is None or len(segment.features) < segment.num_rows:
            mapped = np.memmap(
                segment.feature_path,
                dtype=_INTEGERS[self.layout.dtype.itemsize],
                mode="r",
                shape=(segment.num_rows, self._width),
            )
            segment.features = np.asarray(mapped)  # np.memmap itself is slow to index
        return segment.features

    def _describe(self) -> None:
        path = self.folder / _DESCRIPTION
        own = {"shape": list(self.layout.shape), "dtype": str(self.layout.dtype)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(path, own)
            os.utime(path)  # when it was last used, for `make_room`
        except OSError as error:
            if not path.is_file():
                raise InputError(
                    f"{self.folder}: no store can be kept there ({error.strerror}); set cache: off"
                ) from error
            logger.warning("%s: cannot be written (%s), so it is only read", self.folder, error.strerror)
            self.is_writable = False
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise DamagedStoreError(f"{path}: is damaged ({error}); delete the folder") from error
        if found != own:
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
    described = sorted(root.glob(f"*/{_DESCRIPTION}"), key=lambda path: path.stat().st_mtime)  # when last used
    others = [path.parent for path in described if path.parent != keep]
    while True:
        lack = needed - shutil.disk_usage(root).free
        if max_bytes is not None:
            lack = max(lack, needed + sum(path.stat().st_size for path in root.glob("*/*")) - max_bytes)
        if lack <= 0:
            return
        if not others:
            raise InputError(
                f"{root}: {lack:,} bytes short of room for new features; free the disk or raise cache.max_bytes"
            )
        oldest = others.pop(0)
        logger.warning("%s: removed to make room for new features", oldest)
        shutil.rmtree(oldest)


def _by_segment(positions: NDArray[np.int64]) -> list[tuple[int, NDArray[np.bool_] | slice]]:
    """Number of each segment that positions are in, and which they are."""
    segments = positions >> _SEGMENT_BITS
    first = int(segments[0]) if len(segments) else 0
    if (segments == first).all():
        return [(first, slice(None))]
    return [(int(index), segments == index) for index in np.unique(segments)]


def _keys_of(digests: Digests) -> NDArray[np.uint64]:
    """What digests are sorted by; of two that share a key, which 64 bits make rare, one is never found again."""
    halves = np.frombuffer(np.ascontiguousarray(digests).tobytes(), dtype="<u8").reshape(-1, DIGEST_BYTES // 8)
    keys: NDArray[np.uint64] = halves[:, 0] * np.uint64(_MIX) + halves[:, 1]
    return keys


def _checksums(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A weighted sum of each row's words, modulo 2**64; the weights are odd, so that no changed word goes unseen."""
    num_bytes = rows.shape[1]
    word = next(size for size in (8, 4, 2, 1) if num_bytes % size == 0)
    words = np.ascontiguousarray(rows).view(_INTEGERS[word])
    weights = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(_MIX)
    sums: NDArray[np.uint64] = (words * weights).sum(axis=1, dtype=np.uint64)
    return sums


def _append(path: Path, content: bytes, expected_size: int) -> None:
    """Write behind the rows that count; a write that failed halfway is overwritten."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(expected_size)
        file.write(content)
        file.truncate()
