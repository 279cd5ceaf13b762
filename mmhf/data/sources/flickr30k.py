"""The source `flickr30k`: Kaggle's folder, the original captions, Karpathy's splits, and the Hub's parquet files."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from mmhf.data.delimited import read_lines
from mmhf.data.readers import require_column
from mmhf.data.remote.images import image_files
from mmhf.data.remote.paths import AnyPath, RemotePath, data_path
from mmhf.data.sources.caption_hub import read_dataset
from mmhf.data.sources.captioned_images import CaptionedImages, keep_splits
from mmhf.data.sources.hub import load_hub_splits
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.sources.image_tree import is_hidden
from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.data.table import Caption, CaptionedSource
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import Flickr30kSection, ImageSplitSection

logger = logging.getLogger(__name__)

PARQUET_REVISIONS = {"nlphuji/flickr30k": "refs/convert/parquet"}
"""Repositories whose main revision is a loading script, which `datasets` no longer runs."""
_DEPTH = 3
# "2199200615.jpg| 4   A dog runs across the grass .": the second bar is missing.
_NUMBER_WITHOUT_BAR = re.compile(r"\s*(\d+)\s+(\S.*)")
_KARPATHY_SPLITS = {**SPLIT_OF_NAME, "restval": "train"}


def read_flickr30k(section: Flickr30kSection, splits: Collection[str] | None = None) -> CaptionedSource:
    """Read Flickr30k from a folder, or from the Hub when none is named.

    Args:
        section (`Flickr30kSection`):
            Where it is, in which form, and how to split it.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all.

    Returns:
        `dict[str, CaptionedRows]`: images named by their file, with all their captions.

    Raises:
        InputError: nothing of the kind is there, or a file of it cannot be read.
        UnreachableError: the Hub cannot be reached.
    """
    if section.path is None:
        revision = section.revision or PARQUET_REVISIONS.get(section.repo)
        found = _read_splits(load_hub_splits(section.repo, revision=revision), f"data set {section.repo}")
    else:
        folder = data_path(section.path, section.cloud)
        if not folder.is_dir():
            raise InputError(f"data.path: no such folder: {folder}")
        files = _caption_files(folder)
        found = _FORMATS[_format_of(section, files)].read(folder, files)
    if section.split is None and any(found.splits):
        source = found.cut_by_name(_KARPATHY_SPLITS)
    else:
        source = found.cut(section.split or ImageSplitSection())
    return keep_splits(source, splits, origin=found.origin)


class _Format(NamedTuple):
    pattern: re.Pattern[str]
    """Of the names of its files, in small letters."""
    read: Callable[[AnyPath, list[AnyPath]], CaptionedImages]


def _caption_files(folder: AnyPath) -> list[AnyPath]:
    """Files that could hold captions, those nearest to the folder first."""
    names = folder.listed() if isinstance(folder, RemotePath) else _walk(folder)
    wanted = [name for name in names if not name.lower().endswith((".jpg", ".jpeg")) and not is_hidden(name)]
    return [folder / name for name in sorted(wanted, key=lambda name: (name.count("/"), name))]


def _walk(folder: Path) -> Iterator[str]:
    for path, folders, names in os.walk(folder):
        inside = Path(path).relative_to(folder)
        folders[:] = [name for name in folders if len(inside.parts) < _DEPTH and not name.startswith(".")]
        yield from (str(inside / name) for name in names)


def _format_of(section: Flickr30kSection, files: list[AnyPath]) -> str:
    for name in (section.format,) if section.format else _FORMATS:
        if any(_FORMATS[name].pattern.fullmatch(path.name.lower()) for path in files):
            return name
    wanted = section.format or "dataset_flickr30k.json, results_20130124.token, results.csv or *.parquet"
    raise InputError(f"data.path: {section.path} has no captions of Flickr30k ({wanted})")


def _first(files: list[AnyPath], name: str) -> AnyPath:
    return next(path for path in files if _FORMATS[name].pattern.fullmatch(path.name.lower()))


class _Images:
    """The image files of a folder, however deep, by their bare names."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = folder
        self.path_of: dict[str, str] = {}
        # The Kaggle archive nests its folder twice; a copy that lies deeper counts less.
        for path in sorted(list_folder(folder, on_link_out="skip").images, key=lambda path: (path.count("/"), path)):
            self.path_of.setdefault(os.path.basename(path), path)
        if not self.path_of:
            raise InputError(f"data.path: {folder} has captions but no images")

    def collect(self, origin: AnyPath) -> CaptionedImages:
        """Captioned images whose names are bare; empty so far."""
        found = CaptionedImages(
            str(origin),
            lambda positions: image_files(self.folder, [self._path(found, position) for position in positions]),
        )
        return found

    def _path(self, found: CaptionedImages, position: int) -> str:
        name = found.ids[position]
        return self.path_of.get(name, name)

    def add_those_without_caption(self, found: CaptionedImages, captioned: set[str]) -> None:
        """Name the images that the captions are silent about."""
        for name in sorted(set(self.path_of) - captioned):
            found.add(name, [], row=len(found) + 1, name=name)


def _read_csv(folder: AnyPath, files: list[AnyPath]) -> CaptionedImages:
    path = _first(files, "csv")
    lines = read_lines(path)
    header = [name.strip() for name in lines[0].split("|")] if lines else []
    if len(header) != 3:
        raise InputError(f"{path}: not Kaggle's results.csv (image_name| comment_number| comment); use source: table")
    return _read_lines(folder, path, lines[1:], _parse_csv)


def _read_token(folder: AnyPath, files: list[AnyPath]) -> CaptionedImages:
    path = _first(files, "token")
    return _read_lines(folder, path, read_lines(path), _parse_token)


def _read_lines(
    folder: AnyPath, path: AnyPath, lines: list[str], parse: Callable[[str, int], tuple[str, Caption] | str]
) -> CaptionedImages:
    images = _Images(folder)
    found = images.collect(path)
    named = set()
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parsed = parse(line, row)
        if isinstance(parsed, str):
            found.add_malformed(row, parsed)
            continue
        name, caption = parsed
        found.add(name, [caption], row=row, name=name)
        named.add(name)
    images.add_those_without_caption(found, named)
    return found


def _parse_csv(line: str, row: int) -> tuple[str, Caption] | str:
    fields = [field.strip() for field in line.split("|", maxsplit=2)]
    if len(fields) == 3 and fields[0]:
        return fields[0], Caption(fields[2], row)
    repaired = _NUMBER_WITHOUT_BAR.fullmatch(fields[1]) if len(fields) == 2 else None
    if repaired is None or not fields[0]:
        return f"{len(fields)} fields instead of 3" if fields[0] else "no image is named"
    note = f"no bar between number and comment; read as comment {repaired[1]}"
    return fields[0], Caption(repaired[2], row, note)


def _parse_token(line: str, row: int) -> tuple[str, Caption] | str:
    key, tab, text = line.partition("\t")
    name, _, number = key.strip().rpartition("#")
    if not tab or not name or not number.isdecimal():
        return f"not IMAGE#NUMBER, a tab and a caption: {line[:40]!r}"
    return name, Caption(text, row)


def _read_karpathy(folder: AnyPath, files: list[AnyPath]) -> CaptionedImages:
    path = _first(files, "karpathy")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a file of Karpathy's splits, which has a list `images`")
    images = _Images(folder)
    found = images.collect(path)
    for row, entry in enumerate(entries, start=1):
        parsed = _parse_entry(entry, row)
        if isinstance(parsed, str):
            found.add_malformed(row, parsed)
        else:
            name, split, captions = parsed
            found.add(name, captions, row=row, name=name, split=split)
    images.add_those_without_caption(found, set(found.ids))
    return found


def _parse_entry(entry: Any, row: int) -> tuple[str, str, list[Caption]] | str:
    try:
        captions = [Caption(sentence["raw"], row) for sentence in entry["sentences"]]
        name, split = entry["filename"], entry["split"]
    except (KeyError, TypeError) as error:
        return f"not an image of Karpathy's splits: {type(error).__name__} {error}"
    texts = [caption.text for caption in captions]
    if not all(isinstance(value, str) for value in (name, split, *texts)):
        return "filename, split or a sentence is not a text"
    return name, split, captions


def _read_parquet(folder: AnyPath, files: list[AnyPath]) -> CaptionedImages:
    paths = [str(path) for path in files if _FORMATS["parquet"].pattern.fullmatch(path.name.lower())]
    return _read_splits(load_hub_splits("parquet", data_files=paths), str(folder))


def _read_splits(loaded: Any, origin: str) -> CaptionedImages:
    """Both Hub forms: all rows in one split, whatever its name; the real one in the column `split`, where it is."""
    part = datasets.concatenate_datasets(list(loaded.values()))
    for column in ("image", "caption"):
        require_column(origin, column, part.features)
    optional = {name: name if name in part.features else None for name in ("filename", "split")}
    return read_dataset(
        part,
        origin=origin,
        image="image",
        captions=["caption"],
        id_column=optional["filename"],
        split_column=optional["split"],
    )


_FORMATS = {
    "karpathy": _Format(re.compile(r"dataset_flickr30k\.json"), _read_karpathy),
    "token": _Format(re.compile(r"results(_\d+)?\.token"), _read_token),
    "csv": _Format(re.compile(r"results\.csv"), _read_csv),
    "parquet": _Format(re.compile(r".*\.parquet"), _read_parquet),
}
"""In the order in which they are looked for: Karpathy's file has the usual splits, Kaggle's a broken row."""
