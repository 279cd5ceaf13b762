"""Pictures that show nearly the same: thumbnails are compared, and what was found is kept in the data set cache."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from mmhf.data.digests import Digests
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.seen_files import one_at_a_time
from mmhf.files import whole_file

logger = logging.getLogger(__name__)

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
_FORMAT = 2
_ROWS_AT_ONCE = 8192


class ClosePair(NamedTuple):
    """Two contents that show nearly the same, each with its split, and how far their thumbnails are apart."""

    split: str
    content: int
    other_split: str
    other: int
    distance: float


class Alike(NamedTuple):
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

    def pairs(self, names: Sequence[str]) -> list[ClosePair]:
        """The pairs, with the names of their splits."""
        rows = zip(self.splits.tolist(), self.contents.tolist(), self.distances.tolist(), strict=True)
        return [
            ClosePair(names[one], content, names[other], twin, distance)
            for (one, other), (content, twin), distance in rows
        ]


def thumbnail(image: dict[str, Any]) -> np.ndarray | None:
    """A row's image as (12, 12, 3) values, None where it cannot be decoded."""
    try:
        picture = decode_image(image, least_side=_LEAST_SIDE)
    except BadImageError:  # found broken when the data was checked, or when it is decoded for training
        return None
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def find_alike(
    make: Callable[[], Iterable[np.ndarray | None]], digests: Digests, contents: Mapping[str, NDArray[np.int64]]
) -> Alike:
    """What thumbnails say of contents; from the data set cache where it was found out before.

    Args:
        make (`Callable`): Makes the thumbnail of each content, None where there is none, as `thumbnail` does.
        digests (`Digests`): Of the contents.
        contents (`Mapping[str, NDArray]`): Split → numbers of the contents in it.
    """
    key = hashlib.sha256(bytes([_FORMAT, _SIDE]) + digests.tobytes()).hexdigest()
    parts = hashlib.sha256(b"".join(split.encode() + each.tobytes() for split, each in contents.items()))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "mmhf_thumbnails"
    path = folder / f"{key}-{parts.hexdigest()[:16]}.npz"
    kept = _kept(path, Alike._fields)
    if kept is None:
        with one_at_a_time(path):
            if (kept := _kept(path, Alike._fields)) is None:
                pixels, present = _thumbnails(make, len(digests), folder / f"{key}.npz")
                found = _compare_all(pixels, present, list(contents.values()))
                _keep(path, found._asdict())
                return found
    return Alike(**kept)


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


def _thumbnails(
    make: Callable[[], Iterable[np.ndarray | None]], count: int, path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The thumbnails (N, 432), and which there are; from a file when all were there before."""
    if (kept := _kept(path, ("pixels", "present"))) is not None:
        return kept["pixels"], kept["present"]
    pixels = np.zeros((count, 3 * _SIDE * _SIDE), np.uint8)
    present = np.zeros(count, bool)
    for place, made in enumerate(make()):
        if made is not None:
            pixels[place], present[place] = made.ravel(), True
    _keep(path, {"pixels": pixels, "present": present})
    return pixels, present


def _compare_all(pixels: NDArray[np.uint8], present: NDArray[np.bool_], members: Sequence[NDArray[np.int64]]) -> Alike:
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
    return Alike(blank, np.concatenate(splits), np.concatenate(contents), np.concatenate(distances))


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
