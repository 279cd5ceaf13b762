"""The source `image_folder`: a folder of images for each class, on disk, in an archive or behind a URL."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.columns import named_images
from mmhf.data.images import DataFolder, find_name_escape
from mmhf.data.remote.images import RemoteImages
from mmhf.data.remote.paths import RemotePath, data_path
from mmhf.data.sources.image_cache import (
    ARCHIVE_SUFFIXES,
    CachedImages,
    cache_archive,
    cache_remote_archive,
    is_archive,
)
from mmhf.data.sources.image_tree import HIDDEN, OUTSIDE, ImageTree, Listing, arrange, is_hidden
from mmhf.data.table import (
    NO_IMAGE,
    EmbeddedImages,
    ImageFiles,
    Images,
    Part,
    Reading,
    SourceTable,
    as_dataset,
    make_rows,
)
from mmhf.errors import InputError
from mmhf.recipe.data_sections import ImageFolderDataSection
from mmhf.recipe.row_sections import SplitSection

logger = logging.getLogger(__name__)


def read_image_folder(section: ImageFolderDataSection, reading: Reading) -> SourceTable:
    """Read class folders, or split folders of class folders.

    Args:
        section (`ImageFolderDataSection`):
            Where they are and how to split them.
        reading (`Reading`):
            What the task reads.

    Returns:
        `SourceTable`: the rows: the id is the path below `path`, rows are numbered by sorted path over all splits.

    Raises:
        InputError: there are no images, the folders fit no layout, a class is missing, or a column is asked for.
    """
    if reading.extra_columns:
        raise InputError(
            f"column {reading.extra_columns[0]!r} is asked for, but data.source 'image_folder' has no columns; "
            "fakeddit, table, clinical and hub have"
        )
    where, listing = _open(section)
    names = None if section.splits is None else {str(split): name for split, name in section.splits.items()}
    tree = arrange(listing, origin=section.path, folder=_start(listing, section), splits=names)
    _report(section, listing, tree)
    is_cut = "train" in tree.splits and (not tree.is_split or section.split is not None)
    found = sorted(
        (image.path, image.label, None if is_cut and split == "train" else split)
        for split, images in tree.splits.items()
        for image in images
    )
    paths = [path for path, _, _ in found]
    columns: dict[str, Any] = {
        "row": list(range(1, len(found) + 1)),
        "id": paths,
        "text": pa.nulls(len(found), pa.string()),
        "label": [label for _, label, _ in found],
        "split": [split for _, _, split in found],
        "fault": pa.nulls(len(found), pa.string()),
    }
    used: NDArray[np.int64] | None = None
    if isinstance(where, CachedImages):
        rows, used = _beside_cached_images(where, columns)
        images: Images = EmbeddedImages(datasets.Image(decode=False))
    else:
        rows = make_rows({**columns, "image": named_images(paths)})
        if isinstance(where, Path):
            images = ImageFiles(where, listed=True, follow_links=section.follow_links)
        else:
            images = RemoteImages(where, paths, listed=True)
    label_of = None
    if section.labels is not None:
        label_of = {unicodedata.normalize("NFC", folder): name for folder, name in section.labels.items()}
    else:
        label_of = {name: name for name in sorted(set(columns["label"]))}
    cut = section.split or SplitSection() if is_cut else None
    return SourceTable(rows, {None: Part(section.path, images)}, label_of, cut, used)


def _beside_cached_images(
    cached: CachedImages, columns: Mapping[str, Any]
) -> tuple[datasets.Dataset, NDArray[np.int64]]:
    """Rows beside the images of an archive, which stay in the cache in its order; and the place of each row."""
    place_of = {path: place for place, path in enumerate(cached.listing.images)}
    used = np.array([place_of[path] for path in columns["id"]], dtype=np.int64)
    row_of = np.zeros(len(cached.table), dtype=np.int64)
    row_of[used] = np.arange(len(used))
    is_unused = np.ones(len(row_of), dtype=bool)
    is_unused[used] = False
    table = make_rows({**columns, "image": [NO_IMAGE] * len(used)}).remove_columns("image").data.table
    rows = as_dataset(table.take(pa.array(row_of, mask=is_unused)))
    return datasets.concatenate_datasets([cached.table, rows], axis=1), used


def _open(section: ImageFolderDataSection) -> tuple[Path | RemotePath | CachedImages, Listing]:
    """A tree on disk, behind a URL, or copied out of an archive."""
    path = data_path(section.path, section.cloud)
    if isinstance(path, RemotePath) and is_archive(str(path)):
        cached = cache_remote_archive(path, folder=section.folder)
        return cached, cached.listing
    if isinstance(path, RemotePath) or path.is_dir():
        return path, list_folder(
            path, section.folder, on_link_out=section.on_bad_row, follow_links=section.follow_links
        )
    if not path.exists():
        raise InputError(f"data.path: no such folder or archive: {path}")
    if not is_archive(str(path)):
        raise InputError(f"data.path: {path} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
    cached = cache_archive(path, folder=section.folder)
    return cached, cached.listing


def list_folder(
    path: str | Path | RemotePath, start: str | None = None, *, on_link_out: str = "raise", follow_links: bool = False
) -> Listing:
    """List the images of a folder.

    Args:
        path (`str`, `Path` or `RemotePath`):
            The folder, which links in it may not leave.
        start (`str`, *optional*):
            The folder in it to begin with.
        on_link_out (`str`, defaults to `"raise"`):
            What to do with a folder that is a link out: `"raise"`, or `"skip"` to count it among what is ignored.
        follow_links (`bool`, defaults to `False`):
            Links may lead out of the folder.

    Returns:
        `Listing`: paths relative to `path`.

    Raises:
        InputError: there is no such folder, or a folder is a link that leads out of `path`, or to a folder around
            itself.
        UnreachableError: it is behind a URL and cannot be listed.
    """
    if isinstance(path, RemotePath):
        return _list_remote(path, start)
    root = DataFolder(path, follow_links=follow_links)
    if start is not None and (reason := root.find_escape(start)):
        raise InputError(f"data.folder: {reason.replace('image path', 'path')}")
    listing = Listing()
    waiting = [os.path.normpath(start) if start else ""]
    while waiting:
        folder = waiting.pop()
        if not os.path.isdir(root.path_of(folder)):
            raise InputError(f"data.folder: {root.path} has no folder {folder!r}")
        with os.scandir(root.path_of(folder)) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if not _is_text(name):
                    listing.ignored["with a name that is not UTF-8"] += 1
                elif not entry.is_dir():
                    if listing.takes(name):
                        listing.images.append(name)
                elif is_hidden(name):
                    listing.ignored[HIDDEN] += 1
                elif problem := _link_problem(root, entry, name):
                    if on_link_out == "raise":
                        raise InputError(
                            f"data.path: {problem}; data.on_bad_row=skip goes on without it, data.follow_links=true "
                            "follows it"
                        )
                    listing.ignored["links to folders elsewhere"] += 1
                else:
                    listing.folders.add(name)
                    waiting.append(name)
    return listing


def _list_remote(path: RemotePath, start: str | None) -> Listing:
    if start is not None and (reason := find_name_escape(start)):
        raise InputError(f"data.folder: {reason.replace('image path', 'path')}")
    names = path.listed(os.path.normpath(start) if start else "")
    if not names:
        raise InputError(f"data.folder: {path} has no folder {start!r}" if start else f"data.path: nothing at {path}")
    listing = Listing()
    listing.images += [name for name in names if listing.takes(name)]
    return listing


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # the bytes of a file name need not be UTF-8
        return False
    return True


def _link_problem(root: DataFolder, entry: os.DirEntry[str], name: str) -> str | None:
    if not entry.is_symlink():
        return None
    if root.find_link_out(name):
        return f"the folder {name} is a link out of {root.path}"
    real = os.path.realpath(entry.path)
    if any(os.path.realpath(root.path_of(str(around))) == real for around in PurePath(name).parents):
        return f"the folder {name} is a link to a folder that it lies in"
    return None


def _start(listing: Listing, section: ImageFolderDataSection) -> str | None:
    """`folder`, found also below the folders that wrap all that an archive holds."""
    if section.folder is None or not listing.images:
        return section.folder
    wanted = f"/{os.path.normpath(section.folder)}/"
    starts = {f"/{path}".partition(wanted)[0].lstrip("/") for path in listing.images if wanted in f"/{path}"}
    return os.path.join(min(starts, key=len), section.folder) if starts else section.folder


def _report(section: ImageFolderDataSection, listing: Listing, tree: ImageTree) -> None:
    """Log what was found and what was not used; an empty class is refused where bad rows are."""
    counts = ", ".join(f"{len(images)} in {split}" for split, images in tree.splits.items())
    logger.info("%s: %s", section.path, counts if tree.is_split else f"{len(tree.splits['train'])} images")
    ignored = listing.ignored + Counter({OUTSIDE: tree.outside})
    if ignored:
        named = ", ".join(f"{count} {reason}" for reason, count in sorted(ignored.items()))
        logger.warning("%s: ignored files: %s", section.path, named)
    if tree.empty:
        message = f"class folders without images: {', '.join(tree.empty)}"
        if section.on_bad_row == "raise":
            raise InputError(f"{section.path}: {message}; remove them, or go on with data.on_bad_row=skip")
        logger.warning("%s: %s", section.path, message)


READERS = {ImageFolderDataSection: read_image_folder}
