"""Digests of what samples contain, by which stored features and embeddings of theirs are found again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.images import BadImageError
from mmhf.data.seen_files import keep_digests, known_digests, one_at_a_time, seen_path, states_of
from mmhf.data.table import DIGEST_COLUMN, IMAGE_FEATURE

DIGEST_BYTES = 16
Digests = NDArray[np.void]
"""(N,) digests of `DIGEST_BYTES` each."""

_ROWS_AT_ONCE = 512
_FILES_AT_ONCE = 32
_THREADS = 4


def digests_of(contents: Sequence[bytes]) -> Digests:
    """Digests as an array, from their bytes."""
    return np.frombuffer(b"".join(contents), dtype=f"V{DIGEST_BYTES}").copy()


def digest_images(table: datasets.Dataset, positions: Sequence[int]) -> Digests:
    """Digests of the encoded images of some rows; those that the rows have themselves are taken.

    Files are read whole, several at a time, unless they are known from before and have not changed; where several
    processes ask for the same at once, one reads and the others wait. An image that cannot be read has a digest of
    its path, a missing one `NO_IMAGE_DIGEST`.

    Args:
        table (`datasets.Dataset`): Rows with `image`, and perhaps `digest`.
        positions (`Sequence[int]`): Which rows.
    """
    if DIGEST_COLUMN in table.column_names:
        kept = table.select_columns([DIGEST_COLUMN]).with_format("arrow")
        return digests_of(kept[list(positions)].column(0).to_pylist())
    images = table.select_columns(["image"])
    parts: list[Digests] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        paths = _local_paths(images, positions) if table.features["image"] == IMAGE_FEATURE else None
        if paths is not None:
            return _digest_files(paths, pool)
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            given = images[positions[start : start + _ROWS_AT_ONCE]]["image"]
            parts.append(digests_of(list(pool.map(_image_digest, given))))
    return np.concatenate(parts) if parts else digests_of([])


def is_readable(digests: Digests) -> NDArray[np.bool_]:
    """Which digests are of contents, and not of images that are missing or cannot be read."""
    halves = digests.view("<u8").reshape(-1, 2)
    readable: NDArray[np.bool_] = (halves[:, 0] != 0) & (halves != np.frombuffer(_NO_IMAGE, "<u8")).any(axis=1)
    return readable


def _local_paths(images: datasets.Dataset, positions: Sequence[int]) -> pa.ChunkedArray | None:
    """The paths of images that are files; None where some are in the table."""
    stored = images.with_format("arrow")
    paths = [pa.nulls(0, pa.string())]
    for start in range(0, len(positions), _ROWS_AT_ONCE):
        column = stored[positions[start : start + _ROWS_AT_ONCE]].column("image").combine_chunks()
        if pc.any(pc.is_valid(column.field("bytes"))).as_py():
            return None
        paths.append(column.field("path"))
    return pa.chunked_array(paths)


def _digest_files(paths: pa.ChunkedArray, pool: ThreadPoolExecutor) -> Digests:
    # Arrow holds the paths, and threads get many at once: as strings and one by one a path would take 2 KB.
    states = np.concatenate([states_of([]), *(states_of(chunk.to_pylist()) for chunk in paths.chunks)])
    digests, is_known = known_digests(states)
    if is_known.all():
        return digests

    def read(places: NDArray[np.int64]) -> list[bytes]:
        return [_image_digest({"path": path, "bytes": None}) for path in paths.take(pa.array(places)).to_pylist()]

    with one_at_a_time(seen_path()):
        digests, is_known = known_digests(states)
        lacking = np.flatnonzero(~is_known)
        batches = [lacking[start : start + _FILES_AT_ONCE] for start in range(0, len(lacking), _FILES_AT_ONCE)]
        digests[lacking] = np.concatenate([digests_of([]), *map(digests_of, pool.map(read, batches))])
        keep_digests(states[lacking], digests[lacking])
    return digests


def digest_texts(texts: Iterable[str | None]) -> Digests:
    """Digests of texts; a missing text has that of the empty one."""
    return digests_of([digest_content((text or "").encode()) for text in texts])


def combined_digests(parts: Sequence[Digests]) -> Digests:
    """(N,) digests of what consists of several contents, whose digests are (N,) each."""
    bytes_of_parts = [part.view(np.uint8).reshape(-1, DIGEST_BYTES) for part in parts]
    return digests_of([digest_content(row.tobytes()) for row in np.concatenate(bytes_of_parts, axis=1)])


def _image_digest(image: dict[str, Any] | None) -> bytes:
    image = image or {"path": None, "bytes": None}
    try:
        content = image["bytes"]
        if content is not None:
            return digest_content(content)
        return digest_content(Path(image["path"]).read_bytes()) if image["path"] is not None else _NO_IMAGE
    except (OSError, BadImageError):  # it will not be decoded either, and so nothing is ever stored for it
        name = f"{image['path']}".encode(errors="surrogateescape")
        return bytes(8) + hashlib.blake2b(name, digest_size=DIGEST_BYTES - 8).digest()


def digest_content(content: bytes) -> bytes:
    """The digest of an image's or a text's bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


_NO_IMAGE = digest_content(b"no image")
NO_IMAGE_DIGEST = digests_of([_NO_IMAGE])[0]
"""Of a row that names no image."""
