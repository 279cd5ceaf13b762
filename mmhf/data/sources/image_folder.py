"""The source `image_folder`: a folder of images for each class, on disk, in an archive or behind a URL."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

from mmhf.data.images import DataFolder, find_name_escape
from mmhf.data.remote.images import RemoteImages
from mmhf.data.remote.paths import RemotePath, data_path
from mmhf.data.sources.hub import HubImages
from mmhf.data.sources.image_cache import (
    ARCHIVE_SUFFIXES,
    CachedImages,
    cache_archive,
    cache_remote_archive,
    is_archive,
)
from mmhf.data.sources.image_tree import HIDDEN, OUTSIDE, ImageTree, LabelledImage, Listing, arrange, is_hidden
from mmhf.data.splits import split_positions
from mmhf.data.table import SPLITS, ImageColumn, ImageFiles, LabelledRows, SourceData
from mmhf.errors import InputError
from mmhf.recipe.schema import ImageFolderDataSection, SplitSection

logger = logging.getLogger(__name__)


class FolderImages(ImageFiles):
    """Images found in a folder: their names may be anything, but links must not lead out of it."""

    def _find_escape(self, name: str) -> str | None:
        return self.folder.find_link_out(name)


def read_image_folder(section: ImageFolderDataSection, splits: Collection[str] | None = None) -> SourceData:
    """Read class folders, or split folders of class folders.

    Args:
        section (`ImageFolderDataSection`):
            Where they are and how to split them.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all. Cuts and labels are those of all splits either way.

    Returns:
        `SourceData`: the rows: the id is the path below `path`, rows are numbered by sorted path over all splits, and
        texts are absent.

    Raises:
        InputError: there are no images, the folders fit no layout, or a class or a wanted split is missing.
    """
    images = _open(section)
    names = None if section.splits is None else {str(split): name for split, name in section.splits.items()}
    tree = arrange(images.listing, origin=section.path, folder=_start(images.listing, section), splits=names)
    _report(section, images.listing, tree)
    parts = _cut(section, tree)
    for split in splits or ():
        if split not in parts:
            raise InputError(f"data.path: {section.path} has no split {split!r}; there is {', '.join(parts)}")
    numbers = {image.path: number for number, image in enumerate(sorted(sum(parts.values(), [])), start=1)}
    kept = [split for split in SPLITS if split in parts and (splits is None or split in splits)]
    return SourceData(
        {split: _rows(section, parts[split], images, numbers) for split in kept}, _label_map(section, parts)
    )


class _Images:
    """The images of a tree on disk, behind a URL, or copied out of an archive."""

    def __init__(self, listing: Listing, where: Path | RemotePath | CachedImages) -> None:
        self.listing = listing
        self._where = where

    def column(self, paths: Sequence[str]) -> ImageColumn:
        if isinstance(self._where, RemotePath):
            return RemoteImages(self._where, paths, listed=True)
        if isinstance(self._where, Path):
            return FolderImages(self._where, paths)
        positions = {path: position for position, path in enumerate(self.listing.images)}
        return HubImages(self._where.table, "image", [positions[path] for path in paths])


def _open(section: ImageFolderDataSection) -> _Images:
    path = data_path(section.path, section.cloud)
    if isinstance(path, RemotePath) and is_archive(str(path)):
        cached = cache_remote_archive(path, folder=section.folder)
        return _Images(cached.listing, cached)
    if isinstance(path, RemotePath) or path.is_dir():
        return _Images(list_folder(path, section.folder, on_link_out=section.on_bad_row), path)
    if not path.exists():
        raise InputError(f"data.path: no such folder or archive: {path}")
    if not is_archive(str(path)):
        raise InputError(f"data.path: {path} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
    cached = cache_archive(path, folder=section.folder)
    return _Images(cached.listing, cached)


def list_folder(path: str | Path | RemotePath, start: str | None = None, *, on_link_out: str = "raise") -> Listing:
    """List the images of a folder.

    Args:
        path (`str`, `Path` or `RemotePath`):
            The folder, which links in it may not leave.
        start (`str`, *optional*):
            The folder in it to begin with.
        on_link_out (`str`, defaults to `"raise"`):
            What to do with a folder that is a link out: `"raise"`, or `"skip"` to count it among what is ignored.

    Returns:
        `Listing`: paths relative to `path`.

    Raises:
        InputError: there is no such folder, or a folder is a link that leads out of `path`, or to a folder around
            itself.
        UnreachableError: it is behind a URL and cannot be listed.
    """
    if isinstance(path, RemotePath):
        return _list_remote(path, start)
    root = DataFolder(path)
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
                        raise InputError(f"data.path: {problem}; data.on_bad_row=skip goes on without it")
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


def _cut(section: ImageFolderDataSection, tree: ImageTree) -> dict[str, list[LabelledImage]]:
    """Cut the splits that have no folder out of the training images."""
    if tree.is_split and (section.split is None or "train" not in tree.splits):
        return tree.splits
    wanted = section.split or SplitSection()
    has_folder: dict[str, float] = {split: 0.0 for split in ("validation", "test") if split in tree.splits}
    images = tree.splits["train"]
    cut = split_positions(wanted.model_copy(update=has_folder), [image.label for image in images])
    return {**tree.splits, **{split: [images[position] for position in cut[split]] for split in cut}}


def _label_map(section: ImageFolderDataSection, parts: dict[str, list[LabelledImage]]) -> dict[str, str]:
    if section.labels is not None:
        return {unicodedata.normalize("NFC", folder): name for folder, name in section.labels.items()}
    return {name: name for name in sorted({image.label for images in parts.values() for image in images})}


def _rows(
    section: ImageFolderDataSection, images: Sequence[LabelledImage], source: _Images, numbers: dict[str, int]
) -> LabelledRows:
    paths = [image.path for image in images]
    return LabelledRows(
        origin=section.path,
        rows=[numbers[path] for path in paths],
        ids=paths,
        texts=[None] * len(paths),
        labels=[image.label for image in images],
        images=source.column(paths),
    )
