"""Where in a tree of files the splits, the classes and their images are."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
    + (".mpo", ".avif", ".jp2", ".tga", ".ico")
)
HIDDEN, NO_IMAGE_FILE, OUTSIDE = "hidden", "not images", "outside class folders"
_SHOWN = 5


@dataclass
class Listing:
    """The files of a tree, as paths from its root with `/` between the parts."""

    images: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    """Folders, at least those that may be empty."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Why files are not looked at → how many."""

    def takes(self, path: str) -> bool:
        """Whether a file is an image by its name; others are counted here."""
        if is_hidden(path):
            self.ignored[HIDDEN] += 1
        elif posixpath.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
            self.ignored[NO_IMAGE_FILE] += 1
        else:
            return True
        return False


class LabelledImage(NamedTuple):
    """An image and the name of its class folder."""

    path: str
    label: str


@dataclass
class ImageTree:
    """The images of a tree by split."""

    splits: dict[str, list[LabelledImage]]
    """Split → its images, sorted by path; `train` alone when `is_split` is not set."""
    is_split: bool
    """The tree has split folders."""
    empty: list[str]
    """Class folders without an image."""
    outside: int
    """Images that are in no class folder, and not used."""


@dataclass
class _Folder:
    path: str
    images: list[str] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)

    def holds_images(self) -> bool:
        return bool(self.images) or any(folder.holds_images() for folder in self.folders.values())

    def with_images(self) -> list[_Folder]:
        return [folder for folder in self.folders.values() if folder.holds_images()]

    def name(self) -> str:
        return posixpath.basename(self.path)


def is_hidden(path: str) -> bool:
    """Whether a file or one of its folders is hidden, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def arrange(
    listing: Listing, *, origin: str, folder: str | None = None, splits: Mapping[str, str] | None = None
) -> ImageTree:
    """Find the splits and classes of a tree.

    Folders that only wrap another one are passed through. The tree has splits when `splits` says so, or when it has
    folders with the names of splits that have class folders themselves; a class may thus be called `train`, and file
    names play no role.

    Args:
        listing (`Listing`):
            The files.
        origin (`str`):
            The tree, for messages.
        folder (`str`, *optional*):
            Where in the tree to begin.
        splits (`Mapping[str, str]`, *optional*):
            Our split → its folder.

    Returns:
        `ImageTree`: the images.

    Raises:
        InputError: there are none, or the folders fit no layout.
    """
    root = _start(_build(listing), origin, folder)
    if not root.holds_images():
        ignored = ", ".join(f"{count} {reason}" for reason, count in sorted(listing.ignored.items()))
        raise InputError(f"{origin}: no images in it" + (f" (other files: {ignored})" if ignored else ""))
    split_folders = _named_splits(root, origin, splits) if splits else _find_splits(root := _unwrap(root), origin)
    tree = ImageTree({}, bool(split_folders), [], len(root.images))
    for split, part in (split_folders or {"train": root}).items():
        tree.splits[split] = _classes(part, origin, tree.empty)
        tree.outside += 0 if part is root else len(part.images)
    if not any(tree.splits.values()):
        raise InputError(f"{origin}: its {tree.outside} images are in no class folder; make a folder for each class")
    return tree


def _build(listing: Listing) -> _Folder:
    root = _Folder("")

    def folder_at(path: str) -> _Folder:
        at = root
        for part in path.split("/") if path else ():
            if part not in at.folders:
                at.folders[part] = _Folder(posixpath.join(at.path, part))
            at = at.folders[part]
        return at

    for path in sorted(listing.folders):
        if not is_hidden(path):
            folder_at(path)
    for path in sorted(listing.images):
        folder_at(posixpath.dirname(path)).images.append(path)
    return root


def _start(root: _Folder, origin: str, folder: str | None) -> _Folder:
    for part in posixpath.normpath(folder).split("/") if folder else ():
        if part not in root.folders:
            guess = did_you_mean(nearest_names(part, list(root.folders)))
            raise InputError(f"data.folder: {origin} has no folder {folder!r}{guess} ({_contents(root)})")
        root = root.folders[part]
    return root


def _contents(folder: _Folder) -> str:
    return f"{folder.path or 'it'} has {_some(sorted(folder.folders))}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "no folders") + more


def _unwrap(root: _Folder) -> _Folder:
    while not root.images and len(root.folders) == 1:
        [only] = root.folders.values()
        if not only.with_images() or only.name().lower() in SPLIT_OF_NAME:
            break
        root = only
    return root


def _named_splits(root: _Folder, origin: str, splits: Mapping[str, str]) -> dict[str, _Folder]:
    found = {}
    for split, name in splits.items():
        at = root
        for part in posixpath.normpath(name).split("/"):
            if part not in at.folders:
                guess = did_you_mean(nearest_names(part, list(at.folders)))
                raise InputError(f"data.splits.{split}: {origin} has no folder {name!r}{guess} ({_contents(at)})")
            at = at.folders[part]
        found[split] = at
    return found


def _find_splits(root: _Folder, origin: str) -> dict[str, _Folder]:
    named = {folder.name(): folder for folder in root.with_images() if folder.name().lower() in SPLIT_OF_NAME}
    with_classes = [name for name, folder in named.items() if folder.with_images()]
    if not with_classes:
        return {}
    way_out = "say in data.splits which folder is which split"
    others = [folder.name() for folder in root.with_images() if folder.name() not in named]
    if others:
        raise InputError(f"{origin}: beside the split folders {_some(named)} there are {_some(others)}; {way_out}")
    found: dict[str, _Folder] = {}
    for name, folder in named.items():
        split = SPLIT_OF_NAME[name.lower()]
        if split in found:
            raise InputError(f"{origin}: {found[split].name()} and {name} are both {split}; {way_out}")
        if name not in with_classes:
            raise InputError(f"{origin}: the images in {name} are in no class folder, so without labels; {way_out}")
        found[split] = folder
    return found


def _classes(part: _Folder, origin: str, empty: list[str]) -> list[LabelledImage]:
    images: list[LabelledImage] = []
    for folder in part.folders.values():
        if nested := folder.with_images():
            inner = _some(child.name() for child in nested)
            raise InputError(
                f"{origin}: {folder.path} has folders with images ({inner}), a class folder has none; "
                f"if these are the classes, set data.folder to {folder.path}"
            )
        if not folder.images:
            empty.append(folder.path)
        # A name typed on a Mac and the same name typed elsewhere can differ in how accents are encoded.
        label = unicodedata.normalize("NFC", folder.name())
        images += [LabelledImage(path, label) for path in folder.images]
    return sorted(images)
