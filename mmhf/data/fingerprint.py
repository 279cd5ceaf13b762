"""What data a model was trained on, as one hash a split."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Mapping

import datasets

from mmhf.data.remote.images import parse_reference

_BATCH = 1024


def fingerprint_splits(splits: Mapping[str, object]) -> dict[str, str]:
    """Hash the rows of each split.

    Ids, texts, labels, captions and the bytes of embedded images count; of image files the name and size, so that the
    same data in another folder has the same hash.

    Args:
        splits (`Mapping[str, Dataset]`):
            What `load_data` gives.

    Returns:
        `dict[str, str]`: split → 64 hexadecimal digits, or `"streamed"` for a stream, which is not read for this.
    """
    return {
        name: _fingerprint(table) if isinstance(table, datasets.Dataset) else "streamed"
        for name, table in splits.items()
    }


def _fingerprint(table: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    columns = [name for name in ("text", "label", "captions") if name in table.column_names]
    stored = table.with_format("arrow")  # images behind URLs would be fetched otherwise
    for start in range(0, len(table), _BATCH):
        batch = stored[start : start + _BATCH].to_pydict()
        for name, image, *said in zip(
            batch["id"], batch["image"], *(batch[column] for column in columns), strict=True
        ):
            digest.update(json.dumps([name, *said, _image_key(image)]).encode())
    return digest.hexdigest()


def _image_key(image: dict[str, str | bytes | None]) -> list[str | int] | None:
    content, path = image["bytes"], image["path"]
    if isinstance(content, bytes):
        return [hashlib.sha256(content).hexdigest()]
    if path is None:
        return None
    if "://" in str(path):
        url, file = parse_reference(str(path))
        return [posixpath.basename(url), file.size] if file is not None and file.size is not None else [url]
    return [os.path.basename(str(path)), os.stat(path).st_size]
