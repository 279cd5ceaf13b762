"""Duplicate images: the same file, or the same picture saved again, scaled or brightened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.digests import Digests, digest_images, digests_of, is_readable
from mmhf.data.table import SPLITS
from mmhf.data.thumbnails import ClosePair, find_alike, thumbnail
from mmhf.files import write_csv
from mmhf.parallel import map_in_threads

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 64
_SHOWN = 3
_PROGRESS_ABOVE = 20_000


DuplicateKind = Literal["exact", "near", "blank"]
"""The same file, nearly the same picture, or two images of one colour, which show nothing at all."""


class DuplicateImage(NamedTuple):
    """One of two images that are the same."""

    split: str
    row: int
    id: str


class DuplicatePair(NamedTuple):
    """Two images that are the same."""

    kind: DuplicateKind
    first: DuplicateImage
    second: DuplicateImage
    same_label: bool
    """They have the same class, or the same captions."""
    distance: float
    """Root mean square difference of the thumbnails, of 255; 0 for equal files."""

    @property
    def crosses_splits(self) -> bool:
        """One is in another split than the other."""
        return self.first.split != self.second.split


def write_duplicates(path: str | Path, pairs: Sequence[DuplicatePair]) -> None:
    """Write pairs as CSV, those across splits first: kind, both images' split and id, same_label, distance.

    Args:
        path (`str` or `Path`): The file.
        pairs (`Sequence[DuplicatePair]`): What `LoadedData.duplicates` holds.
    """
    rows = [
        [pair.kind, pair.first.split, pair.first.id, pair.second.split, pair.second.id]
        + [pair.same_label, f"{pair.distance:.3f}"]
        for pair in pairs
    ]
    write_csv(path, ["kind", "split", "id", "other_split", "other_id", "same_label", "distance"], rows)


@dataclass
class Duplicates:
    """What is in the data twice."""

    pairs: list[DuplicatePair]
    """Pairs across splits first."""
    leaks: dict[int, DuplicateImage]
    """Position in the training split → the image of validation or test that is the same."""
    what_is_said: Literal["labels", "captions"] = "labels"
    """What `DuplicatePair.same_label` compares."""


def find_duplicates(splits: Mapping[str, datasets.Dataset], *, near: bool = True) -> Duplicates:
    """Find images that are there twice, within and across splits.

    Equal files are found by their digests. Of others, thumbnails of 12 x 12 pixels are compared: two images are near
    duplicates when these differ by a root mean square of at most 6 of 255, less for images of little contrast. That
    survives JPEG compression, scaling and small changes of brightness, but neither cropping nor turning. Not all pairs
    are compared: candidates are an image's nearest 8 in each split by the 16 principal components of the thumbnails.
    These distances are never above the full ones, so that nothing is missed unless 8 others are nearer.

    Args:
        splits (`Mapping[str, Dataset]`):
            Rows as `load_data` gives them. Rows without an image, or whose image is broken, are passed over.
        near (`bool`, defaults to `True`):
            Compare what images show, not only files. Thumbnails, and the pairs that were found, are kept in the data
            set cache; of several processes one makes them, and the others wait.

    Returns:
        `Duplicates`: n equal files are n - 1 pairs, the first with each other one; among near duplicates, equal files
        of a split are represented by their first. Images of one colour are pairs of kind `blank` where thumbnails are
        compared; they leak nothing.
    """
    rows = _Rows({split: splits[split] for split in SPLITS if split in splits})
    contents, first_of, digests = _contents(rows)
    places = {}
    for split in rows.images:
        span = rows.span(split)
        found, first = np.unique(contents[span], return_index=True)
        places[split] = _Places(found[found >= 0], first[found >= 0] + span.start)
    close: list[ClosePair] = []
    blank: set[int] = set()
    if near and len(digests):
        alike = find_alike(
            lambda: rows.map(thumbnail, first_of, "comparing images"),
            digests,
            {split: each.contents for split, each in places.items()},
        )
        close, blank = alike.pairs(list(rows.images)), set(alike.blank.tolist())
    readable = np.flatnonzero(contents >= 0)
    repeated = readable[first_of[contents[readable]] != readable]
    pairs = [
        rows.pair("blank" if content in blank else "exact", int(first_of[content]), row, 0.0)
        for row, content in zip(repeated.tolist(), contents[repeated].tolist(), strict=True)
    ]
    for one, content, other, twin, distance in close:
        kind: DuplicateKind = "blank" if {content, twin} <= blank else "near"
        pairs.append(rows.pair(kind, places[one].row_of(content), places[other].row_of(twin), distance))
    pairs.sort(key=lambda pair: (not pair.crosses_splits, pair.kind, pair.first, pair.second))
    captioned = any("captions" in table.column_names for table in splits.values())
    return Duplicates(pairs, _leaks(rows, contents, places, close, blank), "captions" if captioned else "labels")


def describe_duplicates(duplicates: Duplicates) -> str:
    """Count duplicates in a sentence, with the pairs that matter most as examples."""
    counts = []
    for kind in get_args(DuplicateKind):
        pairs = [pair for pair in duplicates.pairs if pair.kind == kind]
        across = sum(pair.crosses_splits for pair in pairs)
        differing = sum(not pair.same_label for pair in pairs)
        if kind == "blank" and not pairs:
            continue
        counts.append(
            f"{len(pairs)} {kind} ({across} across splits, {differing} with different {duplicates.what_is_said})"
        )
    shown = [f"{pair.first.id} = {pair.second.id}" for pair in duplicates.pairs[:_SHOWN]]
    leaks = f"; {len(duplicates.leaks)} training images are in validation or test, too" if duplicates.leaks else ""
    return f"duplicate images: {', '.join(counts)}{leaks}; such as {', '.join(shown)}"


class _Places(NamedTuple):
    """The contents in one split, in their order, and the first row of each."""

    contents: NDArray[np.int64]
    rows: NDArray[np.int64]

    def row_of(self, content: int) -> int:
        return int(self.rows[np.searchsorted(self.contents, content)])


class _Rows:
    """The rows of all splits under running numbers, training rows first."""

    def __init__(self, tables: Mapping[str, datasets.Dataset]) -> None:
        self.images = {split: table.select_columns(["image"]) for split, table in tables.items()}
        self._columns = {
            split: table.select_columns(
                ["row", "id", next(name for name in ("captions", "labels", "label") if name in table.column_names)]
            ).with_format("arrow")[:]
            for split, table in tables.items()
        }
        self._splits = list(tables)
        self._ends = np.cumsum([len(table) for table in tables.values()])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._splits else 0

    def span(self, split: str) -> slice:
        """The running numbers of a split."""
        if split not in self._splits:
            return slice(0, 0)
        at = self._splits.index(split)
        return slice(int(self._ends[at - 1]) if at else 0, int(self._ends[at]))

    def place(self, number: int) -> tuple[str, int]:
        """The split and the position in it."""
        at = int(np.searchsorted(self._ends, number, side="right"))
        return self._splits[at], number - int(self._ends[at - 1] if at else 0)

    def image_of(self, number: int) -> DuplicateImage:
        split, position = self.place(number)
        rows, ids, _ = self._columns[split].columns
        return DuplicateImage(split, rows[position].as_py(), ids[position].as_py())

    def pair(self, kind: DuplicateKind, first: int, second: int, distance: float) -> DuplicatePair:
        said = [self._columns[split].column(2)[position] for split, position in map(self.place, (first, second))]
        return DuplicatePair(kind, self.image_of(first), self.image_of(second), said[0].equals(said[1]), distance)

    def map(self, function: Callable[[dict[str, Any]], T], numbers: NDArray[np.int64], label: str) -> Iterator[T]:
        """Apply a function to the images of these rows, ascending, in threads; results come in their order."""
        owners = np.searchsorted(self._ends, numbers, side="right")
        chunks = [
            (split, inside[start : start + _CHUNK])
            for at, split in enumerate(self._splits)
            for inside in [numbers[owners == at] - self.span(split).start]
            for start in range(0, len(inside), _CHUNK)
        ]

        def apply(chunk: tuple[str, NDArray[np.int64]]) -> list[T]:
            split, positions = chunk
            return [function(image) for image in self.images[split][positions.tolist()]["image"]]

        results = map_in_threads(apply, chunks, label=label if len(numbers) > _PROGRESS_ABOVE else None)
        return (value for values in results for value in values)


def _contents(rows: _Rows) -> tuple[NDArray[np.int64], NDArray[np.int64], Digests]:
    """The number of each row's content, -1 for none; the first row of each content, in whose order they are numbered;
    and their digests."""
    parts = [digest_images(table, range(len(table))) for table in rows.images.values()]
    digests = np.concatenate([digests_of([]), *parts])
    readable = np.flatnonzero(is_readable(digests))
    _, first, inverse = np.unique(digests[readable].view("S16"), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first))
    contents = np.full(len(digests), -1, np.int64)
    contents[readable] = rank[inverse]
    first_of = readable[first[order]]
    return contents, first_of, digests[first_of]


def _leaks(
    rows: _Rows,
    contents: NDArray[np.int64],
    places: Mapping[str, _Places],
    close: Sequence[ClosePair],
    blank: Collection[int],
) -> dict[int, DuplicateImage]:
    train = contents[rows.span("train")]
    twins: dict[int, int] = {}
    for pair in close:
        if pair.split == "train" and pair.other_split != "train":
            twins.setdefault(pair.content, places[pair.other_split].row_of(pair.other))
    for split in ("validation", "test"):
        if split in places:
            shared = np.intersect1d(train, places[split].contents).tolist()
            twins.update({content: places[split].row_of(content) for content in shared})
    return {
        position: rows.image_of(twins[content])
        for position, content in enumerate(train.tolist())
        if content in twins and content not in blank
    }
