"""What a file, folder or name is, and the `data:` section that reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmhf.data.discovery.findings import Finding
from mmhf.data.discovery.folders import (
    caption_files,
    class_folders,
    fakeddit,
    flickr30k,
    look_at_archive,
    look_at_tars,
    with_caption_files,
)
from mmhf.data.discovery.roles import Ask
from mmhf.data.discovery.tables import choose_table, look_at_data_set, look_at_tables, metadata_tables, split_files
from mmhf.data.sources.fakeddit import FILES as FAKEDDIT_FILES
from mmhf.data.sources.flickr30k import has_captions_of_flickr30k
from mmhf.data.sources.image_cache import is_archive
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.sources.image_tree import arrange
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.parquet$")


def look_at(data: str, *, ask: Ask, derived: Path, label: str | None = None) -> Finding:
    """Find out what data is.

    Args:
        data (`str`): A table, a folder, an archive, or the name of a data set of the Hub.
        ask (`Ask`): Decides where two readings are possible.
        derived (`Path`): Where a table will be written, if the data needs one that it lacks.
        label (`str`, *optional*): The column of the label.

    Raises:
        InputError: it is not there, or nothing that can be trained on; the message says what was looked for.
    """
    path = Path(data)
    if "://" in data:
        raise InputError(f"{data}: only local files and data sets of the Hub are looked at; docs/cloud.md has recipes")
    if path.is_file():
        if is_archive(data):
            return look_at_archive(path)
        if path.suffix.lower() in _TABLES:
            return look_at_tables(split_files(path), ask, derived, label)
        raise InputError(f"{data}: not a table ({', '.join(_TABLES)}), a folder or an archive of images")
    if path.is_dir():
        return _look_at_folder(path, ask, derived, label)
    if _HUB_NAME.fullmatch(data) and not Path(data.partition("/")[0]).is_dir():
        return look_at_data_set(data, ask, label)
    beside = path.parent if path.parent.is_dir() else Path()
    near = did_you_mean(nearest_names(str(path), [str(each) for each in sorted(beside.iterdir())]))
    raise InputError(f"{data}: no such file or folder{near}")


def _look_at_folder(path: Path, ask: Ask, derived: Path, label: str | None) -> Finding:
    inside = sorted(each.name for each in path.iterdir())
    if FAKEDDIT_FILES["train"] in inside:
        return fakeddit(path)
    if {"dataset_dict.json", "state.json"} & set(inside):
        return look_at_data_set(str(path), ask, label)
    if (tables := metadata_tables(path)) is not None:
        return look_at_tables(tables, ask, derived, label, folder=path)
    if has_captions_of_flickr30k(path):
        return flickr30k(path)
    names = [name for name in inside if (path / name).is_file()]
    if tars := [name for name in names if name.endswith(".tar")]:
        return look_at_tars(path, tars)
    if any(_SHARD.search(each.name) for each in [*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        return look_at_data_set(str(path), ask, label)
    tables_here = [path / name for name in names if os.path.splitext(name)[1].lower() in _TABLES]
    if tables_here:
        return look_at_tables(choose_table(tables_here, ask), ask, derived, label)
    listing = list_folder(path, on_link_out="skip")
    if not listing.images:
        raise InputError(
            f"{path}: no table ({', '.join(_TABLES)}), no tars and no images in it; mmhf init wants the folder or "
            "file that has them"
        )
    captions = caption_files(path, listing.images)
    if 2 * len(captions) > len(listing.images):
        return with_caption_files(path, captions, derived)
    return class_folders(path, arrange(listing, origin=str(path)), path)
