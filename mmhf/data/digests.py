"""Digests of what samples contain, by which stored features and embeddings of theirs are found again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.images import BadImageError

DIGEST_BYTES = 16
Digests = NDArray[np.void]
"""(N,) digests of `DIGEST_BYTES` each."""

_ROWS_AT_ONCE = 512
_THREADS = 4


def digests_of(contents: Sequence[bytes]) -> Digests:
    """Digests as an array, from their bytes."""
    return np.frombuffer(b"".join(contents), dtype=f"V{DIGEST_BYTES}").copy()


def digest_images(table: datasets.Dataset, positions: Sequence[int]) -> Digests:
    """Digests of the encoded images of some rows; files are read whole, several at a time.

    An image that cannot be read has the digest of its path, a missing one that of `NO_IMAGE`.

    Args:
        table (`datasets.Dataset`): Rows with `image`.
        positions (`Sequence[int]`): Which rows.
    """
    images = table.select_columns(["image"])
    found: list[bytes] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            found += pool.map(_image_digest, images[positions[start : start + _ROWS_AT_ONCE]]["image"])
    return digests_of(found)


def digest_texts(texts: Iterable[str | None]) -> Digests:
    """Digests of texts; a missing text has that of the empty one."""
    return digests_of([_digest((text or "").encode()) for text in texts])


def _image_digest(image: dict[str, Any] | None) -> bytes:
    image = image or {"path": None, "bytes": None}
    try:
        content = image["bytes"]
        if content is not None:
            return _digest(content)
        return _digest(Path(image["path"]).read_bytes()) if image["path"] is not None else _digest(b"no image")
    except (OSError, BadImageError):  # it will not be decoded either, and so nothing is ever stored for it
        return _digest(f"unreadable: {image['path']}".encode())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


NO_IMAGE_DIGEST = digests_of([_digest(b"no image")])[0]
"""Of a row that names no image."""
