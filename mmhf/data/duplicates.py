"""Duplicate images: the same file, or the same picture saved again, scaled or brightened."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from mmhf.data.digests import Digests, digest_images, digests_of, is_readable
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.seen_files import one_at_a_time
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
_FORMAT = 2
_SHOWN = 3
_ROWS_AT_ONCE = 8192
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
    places = {split: _first_places(rows, contents, split) for split in rows.images}
    close: list[_ClosePair] = []
    blank: set[int] = set()
    if near and len(digests):
        alike = _alike(rows, first_of, digests, places)
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


class _ClosePair(NamedTuple):
    split: str
    content: int
    other_split: str
    other: int
    distance: float


class _Places(NamedTuple):
    """The contents in one split, in their order, and the first row of each."""

    contents: NDArray[np.int64]
    rows: NDArray[np.int64]

    def row_of(self, content: int) -> int:
        return int(self.rows[np.searchsorted(self.contents, content)])


class _Alike(NamedTuple):
    """What thumbnails say of P pairs of contents.

    Attributes:
        blank (`NDArray`): Contents of one colour.
        splits, contents (`NDArray`): (P, 2) numbers of the splits, and of the contents in them, that show the same.
        distances (`NDArray`): (P,).
    """

    blank: NDArray[np.int64]
    splits: NDArray[np.int64]
    contents: NDArray[np.int64]
    distances: NDArray[np.float64]

    def pairs(self, names: Sequence[str]) -> list[_ClosePair]:
        rows = zip(self.splits.tolist(), self.contents.tolist(), self.distances.tolist(), strict=True)
        return [
            _ClosePair(names[one], content, names[other], twin, distance)
            for (one, other), (content, twin), distance in rows
        ]


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


def _first_places(rows: _Rows, contents: NDArray[np.int64], split: str) -> _Places:
    span = rows.span(split)
    found, first = np.unique(contents[span], return_index=True)
    return _Places(found[found >= 0], first[found >= 0] + span.start)


def _alike(rows: _Rows, first_of: NDArray[np.int64], digests: Digests, places: Mapping[str, _Places]) -> _Alike:
    """What thumbnails say of the contents; from the data set cache where it was found out before."""
    key = hashlib.sha256(bytes([_FORMAT, _SIDE]) + digests.tobytes()).hexdigest()
    parts = hashlib.sha256(b"".join(split.encode() + each.contents.tobytes() for split, each in places.items()))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_thumbnails"
    path = folder / f"{key}-{parts.hexdigest()[:16]}.npz"
    kept = _kept(path, _Alike._fields)
    if kept is None:
        with one_at_a_time(path):
            if (kept := _kept(path, _Alike._fields)) is None:
                pixels, present = _thumbnails(rows, first_of, folder / f"{key}.npz")
                found = _compare_all(pixels, present, [each.contents for each in places.values()])
                _keep(path, found._asdict())
                return found
    return _Alike(**kept)


def _kept(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The arrays of a file in the cache; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path) as kept:
            return {name: kept[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s: is damaged (%s); images are compared anew", path, error)
        return None


def _keep(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle`
    except OSError as error:
        logger.warning("%s: cannot be written (%s); images are compared anew at each start", path, error.strerror)


def _thumbnails(rows: _Rows, numbers: NDArray[np.int64], path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The thumbnails (N, 432) of these rows, and which there are; from a file when all were there before."""
    if (kept := _kept(path, ("pixels", "present"))) is not None:
        return kept["pixels"], kept["present"]
    pixels = np.zeros((len(numbers), 3 * _SIDE * _SIDE), np.uint8)
    present = np.zeros(len(numbers), bool)
    for place, thumbnail in enumerate(rows.map(_thumbnail, numbers, "comparing images")):
        if thumbnail is not None:
            pixels[place], present[place] = thumbnail.ravel(), True
    _keep(path, {"pixels": pixels, "present": present})
    return pixels, present


def _thumbnail(image: dict[str, Any]) -> np.ndarray | None:
    try:
        picture = decode_image(image, least_side=_LEAST_SIDE)
    except BadImageError:  # found broken when the data was checked, or when it is decoded for training
        return None
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def _compare_all(
    pixels: NDArray[np.uint8], present: NDArray[np.bool_], members: Sequence[NDArray[np.int64]]
) -> _Alike:
    """Which thumbnails are of one colour, and which show the same, within and across splits."""
    flat = np.concatenate(
        [np.zeros(0, bool), *(_contrast(part.astype(np.float32)) <= _BLANK_CONTRAST for part in _blocks(pixels))]
    )
    reduced = _principal_components(pixels, present)
    numbered = {number: contents[present[contents]] for number, contents in enumerate(members)}
    numbered = {number: contents for number, contents in numbered.items() if len(contents)}
    trees = {number: cKDTree(reduced[contents]) for number, contents in numbered.items()}
    splits, contents, distances = [np.zeros((0, 2), np.int64)], [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for one, other in combinations_with_replacement(numbered, 2):
        first, second = _candidates(reduced, numbered[one], trees[other], numbered[other])
        if one == other:  # either can be among the nearest of the other
            both_ways = np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)
            first, second = np.unique(both_ways, axis=0).T
        first, second = first[first != second], second[first != second]
        found, alike = _compare(pixels, first, second)
        contents.append(np.stack([first[alike], second[alike]], axis=1))
        splits.append(np.tile([one, other], (int(alike.sum()), 1)))
        distances.append(found[alike])
    blank = np.flatnonzero(flat & present)
    return _Alike(blank, np.concatenate(splits), np.concatenate(contents), np.concatenate(distances))


def _blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _principal_components(pixels: NDArray[np.uint8], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distances between the rows of the result (N, 16) are at most those between thumbnails."""
    if not present.any():
        return np.zeros((len(pixels), _DIMENSIONS), np.float32)
    mean = pixels[present].mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = np.zeros((pixels.shape[1], pixels.shape[1]))
    for part in _blocks(np.flatnonzero(present)):
        centred = pixels[part] - mean
        spread += centred.T @ centred
    axes = np.linalg.eigh(spread)[1][:, -_DIMENSIONS:].astype(np.float32)
    return np.concatenate([(part - mean) @ axes for part in _blocks(pixels)])


def _candidates(
    reduced: np.ndarray, contents: np.ndarray, tree: cKDTree, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each content its nearest among the others, as two arrays of equal length."""
    radius = 1.001 * _MAX_RMS * np.sqrt(3 * _SIDE * _SIDE)
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in _blocks(contents):
        _, nearest = tree.query(reduced[part], k=list(range(1, _NEIGHBOURS + 2)), distance_upper_bound=radius)
        rows, ranks = np.nonzero(nearest < len(others))
        first.append(part[rows])
        second.append(others[nearest[rows, ranks]])
    return np.concatenate(first), np.concatenate(second)


def _compare(pixels: NDArray[np.uint8], first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square differences of pairs, and whether they are so small that both show the same."""
    distances = np.empty(len(first))
    alike = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        one, two = (pixels[each[part]].astype(np.float32) for each in (first, second))
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
    contents: NDArray[np.int64],
    places: Mapping[str, _Places],
    close: Sequence[_ClosePair],
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
