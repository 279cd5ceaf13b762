"""Whether the files that data was read from are as they were."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from mmhf.data.sources.image_tree import IMAGE_SUFFIXES, is_hidden
from mmhf.recipe.data_sections import ClinicalDataSection, DataSectionBase, FilteredDataSection

_NAMING_KEYS = {"path", "train", "validation", "test", "image_root"}
_TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".token")


def source_state(section: DataSectionBase, images: Iterable[str], folders: Collection[str]) -> str | None:
    """A digest that changes with the source: by names, sizes and times of its files; of class folders, also of what
    has come in.

    Args:
        section (`DataSectionBase`): Names the source. What lies behind URLs or on the Hub is not asked.
        images (`Iterable[str]`): Full paths of its image files.
        folders (`Collection[str]`): The folders that these are in.

    Returns:
        `str` or `None`: Nothing where none of the files is on this machine.
    """
    sections = section.of_one_source()
    named = sorted({path for each in sections for path in _named_paths(each)})
    below = sorted({*named, *(each for folder in folders for each in _way_to(folder, named))})
    digest, is_here = hashlib.blake2b(digest_size=16), not named
    for path in (*named, *(table for folder in below for table in _tables_in(folder)), *images):
        facts = _facts(path)
        is_here = is_here or facts is not None
        digest.update(f"{path}\0{facts}\n".encode(errors="surrogateescape"))
    if any(each.source == "image_folder" for each in sections):
        for folder in below:
            names = "\0".join(_folders_and_images(folder))
            digest.update(f"{folder}\0{names}\n".encode(errors="surrogateescape"))
    return digest.hexdigest() if is_here else None


def _named_paths(section: DataSectionBase) -> set[str]:
    """Local files and folders that a section names."""
    given = section.model_dump(include=_NAMING_KEYS).values()
    texts = [text for each in given for text in (each.values() if isinstance(each, dict) else [each])]
    paths = [each for text in texts for each in (text if isinstance(text, list) else [text]) if each is not None]
    if isinstance(section, FilteredDataSection):
        paths = [section.versioned(path) for path in paths]
    if isinstance(section, ClinicalDataSection):
        paths += [posixpath.join(section.versioned(section.path), table.table) for table in section.tables.values()]
    local = [os.path.realpath(path) for path in paths if "://" not in path]
    # `hub` also names repositories by `path`.
    return {path for path in local if section.source != "hub" or os.path.exists(path)}


def _way_to(folder: str, named: Collection[str]) -> Iterator[str]:
    """A folder and those above it, up to one that the section names."""
    for root in named:
        if folder == root or folder.startswith(root.rstrip(os.sep) + os.sep):
            while folder != root:
                yield folder
                folder = os.path.dirname(folder)


def _facts(path: str) -> str | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    # A folder's times change with whatever is written into it.
    return "folder" if os.path.isdir(path) else f"{found.st_size} {found.st_mtime_ns}"


def _tables_in(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(each.path for each in entries if Path(each.name).suffix.lower() in _TABLE_SUFFIXES)


def _folders_and_images(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(
            each.name
            for each in entries
            if not is_hidden(each.name) and (each.is_dir() or Path(each.name).suffix.lower() in IMAGE_SUFFIXES)
        )
