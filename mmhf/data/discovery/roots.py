"""Finds the folder below which the images of a table lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmhf.data.images import DataFolder, find_name_escape

_SAMPLED = 60
_MOST_FOLDERS = 400
_DEPTH = 3
ValueT = TypeVar("ValueT")


class ImageRoot(NamedTuple):
    """A folder, and how many of the names that were tried are files below it."""

    folder: Path
    found: int
    tried: int


def sample(values: Sequence[ValueT], count: int = _SAMPLED) -> list[ValueT]:
    """Values from all over a column."""
    step = max(len(values) // count, 1)
    return list(values[::step][:count])


def nearest_root(names: Sequence[str], beside: Path, *, ending: str = "") -> ImageRoot:
    """The folder below which most of these images are.

    Args:
        names (`Sequence[str]`): As a table has them: relative to some folder, or absolute.
        beside (`Path`): Where to begin: this folder and those in it, then the one around it and those in that.
        ending (`str`, defaults to `""`): What the names lack, such as `.jpg`.

    Returns:
        `ImageRoot`: of equally good folders the nearest; `beside` itself with 0 found where there is none.
    """
    tried = [f"{name}{ending}" for name in sample(names)]
    best = ImageRoot(beside, 0, len(tried))
    if tried and all(os.path.isabs(name) for name in tried):
        there = [name for name in tried if os.path.isfile(name)]
        common = os.path.commonpath([os.path.dirname(name) for name in there]) if there else beside
        return ImageRoot(Path(common), len(there), len(tried))
    for folder in _folders_around(beside):
        root = DataFolder(folder, follow_links=True)
        found = 0
        for name in tried:
            relative = root.find_name(name)
            found += not find_name_escape(relative) and os.path.isfile(root.path_of(relative))
        if found > best.found:
            best = ImageRoot(folder, found, len(tried))
        if found == len(tried):
            break
    return best


def _folders_around(folder: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for start in (folder, folder.absolute().parent):
        for found in _folders_below(start):
            if found.absolute() not in seen:
                seen.add(found.absolute())
                yield found


def _folders_below(start: Path) -> Iterator[Path]:
    """A folder and those in it, the nearest first."""
    waiting, given = [(start, 0)], 0
    while waiting and given < _MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        yield folder
        given += 1
        if depth == _DEPTH:
            continue
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            continue
        waiting += [(folder / name, depth + 1) for name in inside]
