"""Images that are in the data twice: the same file, or the same picture saved, scaled or brightened anew."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import datasets
import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from mmhf.data.images import BadImageError, decode_image
from mmhf.data.table import SPLITS
from mmhf.files import whole_file, write_csv
from mmhf.parallel import map_in_threads

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SIDE = 12
"""Pixels a side of the thumbnails that are compared."""
_LEAST_SIDE = 4 * _SIDE
_MAX_RMS = 6.0
"""Root mean square difference, of 255, up to which two thumbnails show the same. 1,053 drawings saved anew as JPEG of
quality 20, halved, doubled or made 5 % brighter nearly all stay within it (median 0.5 to 4); different drawings begin
at 9.6."""
_MAX_DIFFERENCE = 48.0
"""Largest difference of a single value: a small object that moved."""
_BLANK_CONTRAST = 1.0
"""Standard deviation over a thumbnail, of 255, up to which an image is of one colour."""
_DIMENSIONS = 16
_NEIGHBOURS = 8
_CHUNK = 64
_FORMAT = 1
_SHOWN = 3
_PAIRS_AT_ONCE = 65_536
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

    Equal files are found by their SHA-256. Of others, thumbnails of 12 x 12 pixels are compared: two images are near
    duplicates when these differ by a root mean square of at most 6 of 255, less for images of little contrast. That
    survives JPEG compression, scaling and small changes of brightness, but neither cropping nor turning. Not all pairs
    are compared: candidates are an image's nearest 8 in each split by the 16 principal components of the thumbnails.
    These distances are never above the full ones, so that nothing is missed unless 8 others are nearer.

    Args:
        splits (`Mapping[str, Dataset]`):
            Rows as `load_data` gives them. Rows without an image, or whose image is broken, are passed over.
        near (`bool`, defaults to `True`):
            Compare what images show, not only files. Thumbnails are kept in the data set cache.

    Returns:
        `Duplicates`: n equal files are n - 1 pairs, the first with each other one; among near duplicates, equal files
        of a split are represented by their first. Images of one colour are pairs of kind `blank` where thumbnails are
        compared; they leak nothing.
    """
    rows = _Rows({split: splits[split] for split in SPLITS if split in splits})
    hashes = rows.map(_content_hash, range(len(rows)), "hashing images")
    numbers = {content: number for number, content in enumerate(dict.fromkeys(filter(None, hashes)))}
    contents = [-1 if content is None else numbers[content] for content in hashes]
    first_of: dict[int, int] = {}
    for row, content in enumerate(contents):
        if content >= 0:
            first_of.setdefault(content, row)
    places = _places(rows, contents)
    close: list[_ClosePair] = []
    blank: set[int] = set()
    if near and first_of:
        thumbnails = _thumbnails(rows, list(first_of.values()), b"".join(numbers))
        blank = set(np.flatnonzero(_contrast(thumbnails) <= _BLANK_CONTRAST).tolist())
        close = _close_pairs(thumbnails, places)
    pairs = [
        rows.pair("blank" if content in blank else "exact", first_of[content], row, 0.0)
        for row, content in enumerate(contents)
        if content >= 0 and first_of[content] != row
    ]
    for one, content, other, twin, distance in close:
        kind: DuplicateKind = "blank" if {content, twin} <= blank else "near"
        pairs.append(rows.pair(kind, places[one][content], places[other][twin], distance))
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


class _ClosePair(NamedTuple):
    split: str
    content: int
    other_split: str
    other: int
    distance: float


class _Rows:
    """The rows of all splits under running numbers, training rows first."""

    def __init__(self, tables: Mapping[str, datasets.Dataset]) -> None:
        self.images = {split: table.select_columns(["image"]) for split, table in tables.items()}
        self._columns = {
            split: table.select_columns(
                ["row", "id", "captions" if "captions" in table.column_names else "label"]
            ).with_format("arrow")[:]
            for split, table in tables.items()
        }
        self._splits = list(tables)
        self._ends = np.cumsum([len(table) for table in tables.values()])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._splits else 0

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

    def map(self, function: Callable[[dict[str, Any]], T], numbers: Sequence[int], label: str) -> list[T]:
        """Apply a function to the images of these rows, in threads."""
        chunks = list(self._chunks(numbers))

        def apply(chunk: tuple[str, list[int]]) -> list[T]:
            split, positions = chunk
            return [function(image) for image in self.images[split][positions]["image"]]

        results = map_in_threads(apply, chunks, label=label if len(numbers) > _PROGRESS_ABOVE else None)
        return [value for values in results for value in values]

    def _chunks(self, numbers: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        """Neighbours of one split."""
        chunk: list[int] = []
        current = ""
        for number in numbers:
            split, position = self.place(number)
            if chunk and (split != current or len(chunk) == _CHUNK):
                yield current, chunk
                chunk = []
            current = split
            chunk.append(position)
        if chunk:
            yield current, chunk


def _content_hash(image: dict[str, Any]) -> bytes | None:
    try:
        content = image["bytes"]
        if content is None and image["path"] is not None:
            content = Path(image["path"]).read_bytes()
    except (OSError, BadImageError):  # found broken when the data was checked
        return None
    return hashlib.sha256(content).digest() if content else None


def _thumbnail(image: dict[str, Any]) -> np.ndarray | None:
    try:
        picture = decode_image(image, least_side=_LEAST_SIDE)
    except BadImageError:  # found broken when the data was checked, or when it is decoded for training
        return None
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def _thumbnails(rows: _Rows, numbers: list[int], contents: bytes) -> np.ndarray:
    """The thumbnails of these rows (N, 432), NaN where there is none; from the cache when all were there before."""
    key = hashlib.sha256(bytes([_FORMAT, _SIDE]) + contents).hexdigest()
    path = Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_thumbnails" / f"{key}.npz"
    if path.exists():
        with np.load(path) as cached:
            pixels, present = cached["pixels"], cached["present"]
    else:
        found = rows.map(_thumbnail, numbers, "comparing images")
        present = np.array([thumbnail is not None for thumbnail in found])
        blank = np.zeros((_SIDE, _SIDE, 3), dtype=np.uint8)
        pixels = np.stack([blank if thumbnail is None else thumbnail for thumbnail in found])
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, pixels=pixels, present=present)
    flat: np.ndarray = pixels.reshape(len(pixels), -1).astype(np.float32)
    flat[~present] = np.nan
    return flat


def _places(rows: _Rows, contents: Sequence[int]) -> dict[str, dict[int, int]]:
    """Split → content → the first row that has it."""
    places: dict[str, dict[int, int]] = {split: {} for split in rows.images}
    for number, content in enumerate(contents):
        if content >= 0:
            places[rows.place(number)[0]].setdefault(content, number)
    return places


def _close_pairs(thumbnails: np.ndarray, places: Mapping[str, Mapping[int, int]]) -> list[_ClosePair]:
    """Pairs of contents that show the same."""
    present = ~np.isnan(thumbnails[:, 0])
    reduced = _principal_components(thumbnails, present)
    members = {
        split: np.array([content for content in contents if present[content]], dtype=np.int64)
        for split, contents in places.items()
    }
    members = {split: contents for split, contents in members.items() if len(contents)}
    trees = {split: cKDTree(reduced[contents]) for split, contents in members.items()}
    pairs = []
    for split, other_split in combinations_with_replacement(members, 2):
        first, second = _candidates(reduced, members[split], trees[other_split], members[other_split])
        if split == other_split:  # either can be among the nearest of the other
            both_ways = np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)
            first, second = np.unique(both_ways, axis=0).T
        first, second = first[first != second], second[first != second]
        distances, alike = _compare(thumbnails, first, second)
        found = zip(first[alike].tolist(), second[alike].tolist(), distances[alike].tolist(), strict=True)
        pairs += [_ClosePair(split, one, other_split, two, distance) for one, two, distance in found]
    return pairs


def _principal_components(thumbnails: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Distances between the rows of the result (N, 16) are at most those between thumbnails."""
    centred = (thumbnails - thumbnails[present].mean(axis=0)) if present.any() else thumbnails
    _, axes = np.linalg.eigh(np.cov(centred[present].T, bias=True)) if present.any() else (None, centred.T)
    return centred @ axes[:, -_DIMENSIONS:].astype(np.float32)


def _candidates(
    reduced: np.ndarray, contents: np.ndarray, tree: cKDTree, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each content its nearest among the others, as two arrays of equal length."""
    radius = _MAX_RMS * np.sqrt(3 * _SIDE * _SIDE)
    _, nearest = tree.query(reduced[contents], k=list(range(1, _NEIGHBOURS + 2)), distance_upper_bound=1.001 * radius)
    rows, ranks = np.nonzero(nearest < len(others))
    first, second = contents[rows], others[nearest[rows, ranks]]
    return first, second


def _compare(thumbnails: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square differences of pairs, and whether they are so small that both show the same."""
    distances = np.empty(len(first))
    alike = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        one, two = thumbnails[first[part]], thumbnails[second[part]]
        distances[part] = np.sqrt(np.mean((one - two) ** 2, axis=1))
        contrast = np.minimum(_contrast(one), _contrast(two))
        # Pictures of little contrast are all close to each other.
        limit = np.minimum(_MAX_RMS, 1 + contrast / 8)
        alike[part] = (distances[part] <= limit) & (np.abs(one - two).max(axis=1) <= _MAX_DIFFERENCE)
    return distances, alike


def _contrast(thumbnails: np.ndarray) -> np.ndarray:
    pixels = thumbnails.reshape(len(thumbnails), -1, 3)
    contrast: np.ndarray = np.sqrt(pixels.var(axis=1).mean(axis=1))
    return contrast


def _leaks(
    rows: _Rows,
    contents: Sequence[int],
    places: Mapping[str, Mapping[int, int]],
    close: Sequence[_ClosePair],
    blank: Collection[int],
) -> dict[int, DuplicateImage]:
    twins: dict[int, int] = {}
    for pair in close:
        if pair.split == "train" and pair.other_split != "train":
            twins.setdefault(pair.content, places[pair.other_split][pair.other])
    for split in ("validation", "test"):
        twins.update(places.get(split, {}))
    return {
        rows.place(number)[1]: rows.image_of(twins[content])
        for number, content in enumerate(contents)
        if rows.place(number)[0] == "train" and content in twins and content not in blank
    }
