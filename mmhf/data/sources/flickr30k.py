"""The source `flickr30k`: Kaggle's folder, the original captions, Karpathy's splits, and the Hub's parquet files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from mmhf.data.captions import join_captions
from mmhf.data.columns import encodable, named_images
from mmhf.data.delimited import read_lines
from mmhf.data.hub_datasets import DatasetColumns, load_hub_splits, read_dataset
from mmhf.data.readers import require_column
from mmhf.data.remote.paths import AnyPath, RemotePath, data_path
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.sources.image_tree import is_hidden
from mmhf.data.sources.table import images_below
from mmhf.data.splits import SPLIT_OF_NAME, name_splits
from mmhf.data.table import CAPTIONS_TYPE, NOTES_TYPE, EmbeddedImages, Part, Reading, SourceTable, as_dataset
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import Flickr30kSection, ImageSplitSection

PARQUET_REVISIONS = {"nlphuji/flickr30k": "refs/convert/parquet"}
"""Repositories whose main revision is a loading script, which `datasets` no longer runs."""
_DEPTH = 3
# "2199200615.jpg| 4   A dog runs across the grass .": the second bar is missing.
_NUMBER_WITHOUT_BAR = re.compile(r"\s*(\d+)\s+(\S.*)")
_KARPATHY_SPLITS = {**SPLIT_OF_NAME, "restval": "train"}


def read_flickr30k(section: Flickr30kSection, reading: Reading) -> SourceTable:
    """Read Flickr30k from a folder, or from the Hub when none is named.

    Args:
        section (`Flickr30kSection`):
            Where it is, in which form, and how to split it.
        reading (`Reading`):
            What the task reads.

    Returns:
        `SourceTable`: images named by their file, with all their captions.

    Raises:
        InputError: nothing of the kind is there, a file of it cannot be read, or a column is asked for.
        UnreachableError: the Hub cannot be reached.
    """
    for name in reading.extra_columns:
        raise InputError(f"column {name!r} is asked for, but data.source 'flickr30k' has none; table and hub have")
    if section.path is None:
        revision = section.revision or PARQUET_REVISIONS.get(section.repo)
        source = _read_splits(load_hub_splits(section.repo, revision=revision), section, f"data set {section.repo}")
    else:
        folder = data_path(section.path, section.cloud)
        if not folder.is_dir():
            raise InputError(f"data.path: no such folder: {folder}")
        files = _caption_files(folder)
        kind = _format_of(section, files)
        if kind == "parquet":
            paths = [str(path) for path in files if _FORMATS[kind].fullmatch(path.name.lower())]
            source = _read_splits(load_hub_splits("parquet", data_files=paths), section, str(folder))
        else:
            path = next(path for path in files if _FORMATS[kind].fullmatch(path.name.lower()))
            source = _read_captions(kind, path, folder, section)
    return source


def has_captions_of_flickr30k(folder: Path) -> bool:
    """Whether a folder has one of the data set's own caption files: Karpathy's, the original one, or Kaggle's."""
    for path in _caption_files(folder):
        name = path.name.lower()
        if _FORMATS["karpathy"].fullmatch(name) or _FORMATS["token"].fullmatch(name):
            return True
        if _FORMATS["csv"].fullmatch(name) and read_lines(path)[:1] and read_lines(path)[0].count("|") == 2:
            return True
    return False


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
        if any(_FORMATS[name].fullmatch(path.name.lower()) for path in files):
            return name
    wanted = section.format or "dataset_flickr30k.json, results_20130124.token, results.csv or *.parquet"
    raise InputError(f"data.path: {section.path} has no captions of Flickr30k ({wanted})")


def _read_captions(kind: str, path: AnyPath, folder: AnyPath, section: Flickr30kSection) -> SourceTable:
    """Read a file of captions, and find its images."""
    rows = list({"karpathy": _read_karpathy, "token": _read_token, "csv": _read_csv}[kind](path))
    path_of: dict[str, str] = {}
    # The Kaggle archive nests its folder twice; a copy that lies deeper counts less.
    for found in sorted(
        list_folder(folder, on_link_out="skip", follow_links=section.follow_links).images,
        key=lambda name: (name.count("/"), name),
    ):
        path_of.setdefault(os.path.basename(found), found)
    if not path_of:
        raise InputError(f"data.path: {folder} has captions but no images")
    captioned = {row.name for row in rows}
    start = len(captioned - {None}) + sum(row.name is None for row in rows)
    silent = sorted(set(path_of) - captioned)
    rows += [_CaptionRow(number, name, []) for number, name in enumerate(silent, start=start + 1)]
    names = pa.array([row.name for row in rows], pa.string())
    use_splits = kind == "karpathy" and section.split is None
    splits, faults = (
        pa.array([row.split for row in rows], pa.string()),
        pa.array([row.fault for row in rows], pa.string()),
    )
    if use_splits:
        named, wrong = name_splits(splits, faults, "the split", _KARPATHY_SPLITS)
        # An image that the captions are silent about is in no split; it is listed with the first.
        is_silent = pa.array([not row.captions for row in rows])
        splits, faults = named, pc.if_else(is_silent, faults, wrong)
    else:
        splits = pa.nulls(len(rows), pa.string())
    columns = {
        "row": pa.array([row.number for row in rows], pa.int64()),
        "id": pc.coalesce(names, pa.array([str(row.number) for row in rows], pa.string())),
        "image": named_images([path_of.get(row.name, row.name) if row.name else None for row in rows]),
        "captions": pa.array([row.captions for row in rows], CAPTIONS_TYPE),
        "split": splits,
        "fault": faults,
        "notes": pa.array([[{"row": row.number, "note": row.note}] if row.note else None for row in rows], NOTES_TYPE),
    }
    table = join_captions(pa.table(columns), names)
    part = Part(str(path), images_below(folder, table.column("image"), follow_links=section.follow_links))
    cut = None if use_splits else section.split or ImageSplitSection()
    return SourceTable(as_dataset(table), {None: part}, cut=cut)


class _CaptionRow(NamedTuple):
    """A row of a file of captions, as it is read."""

    number: int
    name: str | None
    captions: list[str]
    split: str | None = None
    fault: str | None = None
    note: str | None = None


def _read_csv(path: AnyPath) -> Iterator[_CaptionRow]:
    lines = read_lines(path)
    header = [name.strip() for name in lines[0].split("|")] if lines else []
    if len(header) != 3:
        raise InputError(f"{path}: not Kaggle's results.csv (image_name| comment_number| comment); use source: table")
    return (_parse_csv(line, row) for row, line in enumerate(lines[1:], start=1) if line.strip())


def _read_token(path: AnyPath) -> Iterator[_CaptionRow]:
    return (_parse_token(line, row) for row, line in enumerate(read_lines(path), start=1) if line.strip())


def _parse_csv(line: str, row: int) -> _CaptionRow:
    fields = [field.strip() for field in line.split("|", maxsplit=2)]
    if len(fields) == 3 and fields[0]:
        return _CaptionRow(row, fields[0], [fields[2]])
    repaired = _NUMBER_WITHOUT_BAR.fullmatch(fields[1]) if len(fields) == 2 else None
    if repaired is None or not fields[0]:
        fault = f"{len(fields)} fields instead of 3" if fields[0] else "no image is named"
        return _CaptionRow(row, None, [], fault=fault)
    note = f"no bar between number and comment; read as comment {repaired[1]}"
    return _CaptionRow(row, fields[0], [repaired[2]], note=note)


def _parse_token(line: str, row: int) -> _CaptionRow:
    key, tab, text = line.partition("\t")
    name, _, number = key.strip().rpartition("#")
    if not tab or not name or not number.isdecimal():
        return _CaptionRow(row, None, [], fault=f"not IMAGE#NUMBER, a tab and a caption: {line[:40]!r}")
    return _CaptionRow(row, name, [text])


def _read_karpathy(path: AnyPath) -> Iterator[_CaptionRow]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a file of Karpathy's splits, which has a list `images`")
    return (_parse_entry(entry, row) for row, entry in enumerate(entries, start=1))


def _parse_entry(entry: Any, row: int) -> _CaptionRow:
    try:
        captions = [sentence["raw"] for sentence in entry["sentences"]]
        name, split = entry["filename"], entry["split"]
    except (KeyError, TypeError) as error:
        fault = f"not an image of Karpathy's splits: {type(error).__name__} {error}"
        return _CaptionRow(row, None, [], fault=fault)
    if not all(isinstance(value, str) for value in (name, split, *captions)):
        return _CaptionRow(row, None, [], fault="filename, split or a sentence is not a text")
    return _CaptionRow(row, name, [encodable(text) or "" for text in captions], split)


def _read_splits(loaded: Any, section: Flickr30kSection, origin: str) -> SourceTable:
    """Both Hub forms: all rows in one split, whatever its name; the real one in the column `split`, where it is."""
    part = datasets.concatenate_datasets(list(loaded.values()))
    for column in ("image", "caption"):
        require_column(origin, column, part.features)
    split_column = "split" if "split" in part.features and section.split is None else None
    columns = DatasetColumns(
        "image", ["caption"], id="filename" if "filename" in part.features else None, split=split_column
    )
    rows, used = read_dataset(part, columns, origin=origin, split_names=_KARPATHY_SPLITS)
    images = EmbeddedImages(datasets.Image(decode=False))
    cut = None if split_column else section.split or ImageSplitSection()
    return SourceTable(rows, {None: Part(origin, images)}, cut=cut, used=used)


_FORMATS = {
    "karpathy": re.compile(r"dataset_flickr30k\.json"),
    "token": re.compile(r"results(_\d+)?\.token"),
    "csv": re.compile(r"results\.csv"),
    "parquet": re.compile(r".*\.parquet"),
}
"""Names of their files, in small letters, in the order in which they are looked for: Karpathy's file has the usual
splits, Kaggle's a broken row."""

READERS = {Flickr30kSection: read_flickr30k}
