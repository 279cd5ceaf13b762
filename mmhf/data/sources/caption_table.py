"""The source `table` of images with captions: CSV, TSV, JSONL and parquet files, and folders with metadata."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from mmhf.data.readers import TableFile, as_text, read_table
from mmhf.data.remote.images import image_files
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.sources.captioned_images import CaptionedImages, captions_in, image_key, keep_splits
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.data.table import Caption, CaptionedSource, EmbeddedImages, ImageColumn
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionTableSection

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read_caption_table(section: CaptionTableSection, splits: Collection[str] | None = None) -> CaptionedSource:
    """Read tables, or folders with metadata, and cut them into splits.

    Args:
        section (`CaptionTableSection`):
            Files, columns and how to split.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all.

    Returns:
        `dict[str, CaptionedRows]`: an image for each that the tables name, and for each in a metadata file's folder.

    Raises:
        InputError: a file, folder or column is missing, or a wanted split is not there.
    """
    named = {"train": section.train, "validation": section.validation, "test": section.test}
    given = {split: data_path(path, section.cloud) for split, path in named.items() if path is not None}
    paths = given or _split_folders(section)
    if paths:
        source = {split: _read(_table_at(path), section).select() for split, path in paths.items()}
    else:
        assert section.path is not None
        images = _read(_table_at(data_path(section.path, section.cloud)), section)
        source = images.cut_by_name() if section.split_column else images.cut(section.split)
    return keep_splits(source, splits, origin=f"data.path: {section.path}" if section.path else "data")


def _split_folders(section: CaptionTableSection) -> dict[str, AnyPath]:
    """Folders with the names of splits that have metadata, when the folder itself has none."""
    assert section.path is not None
    path = data_path(section.path, section.cloud)
    if not path.is_dir() or _metadata_in(path) is not None:
        return {}
    found: dict[str, AnyPath] = {}
    folders: list[AnyPath] = sorted(path.iterdir(), key=lambda folder: folder.name)
    for folder in folders:
        split = SPLIT_OF_NAME.get(folder.name.lower())
        if split is None or not folder.is_dir() or _metadata_in(folder) is None:
            continue
        if split in found:
            raise InputError(f"data.path: {found[split]} and {folder} are both {split}; name one as data.{split}")
        found[split] = folder
    return found


def _metadata_in(folder: AnyPath) -> AnyPath | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def _table_at(path: AnyPath) -> AnyPath:
    if not path.is_dir():
        return path
    metadata = _metadata_in(path)
    if metadata is None:
        raise InputError(f"data.path: the folder {path} has none of {', '.join(METADATA_FILES)}")
    return metadata


def _read(path: AnyPath, section: CaptionTableSection) -> CaptionedImages:
    is_metadata = path.name in METADATA_FILES
    columns = section.columns
    image = columns.image or ("file_name" if is_metadata else "image")
    captions = [columns.captions] if isinstance(columns.captions, str) else columns.captions
    table = read_table(path, [image, *captions, columns.id, section.split_column])
    root = data_path(section.image_root, section.cloud) if section.image_root else path.parent
    if not root.is_dir():
        raise InputError(f"data.image_root: no such folder: {root}")
    values: list[Any] = []
    images = CaptionedImages(str(path), lambda positions: _column([values[place] for place in positions], root))
    for position, row in enumerate(table.rows):
        _add_row(images, values, table, position, row, (image, captions, columns.id, section.split_column))
    if is_metadata and all(isinstance(value, str | None) for value in values):
        _add_images_without_row(images, values, root)
    return images


def _add_row(
    images: CaptionedImages,
    values: list[Any],
    table: TableFile,
    position: int,
    row: int,
    columns: tuple[str, list[str], str | None, str | None],
) -> None:
    image_column, caption_columns, id_column, split_column = columns
    value = table.columns[image_column][position]
    split = None if split_column is None else as_text(table.columns[split_column][position])
    problem = table.malformed.get(position)
    captions: list[Caption] = []
    try:
        for column in caption_columns if problem is None else ():
            captions += captions_in(table.columns[column][position], row)
    except ValueError as error:
        problem = str(error)
    if len(caption_columns) > 1:
        # Many columns are a way to write fewer captions for some images; only the last one that is left is empty.
        captions = [caption for caption in captions if caption.text is not None] or captions[:1]
    if problem is not None:
        images.add_malformed(row, problem, split=split)
        values.append(None)
        return
    key = image_key(value)
    name = None if id_column is None else as_text(table.columns[id_column][position])
    added = images.add(key, captions, row=row, name=name or (key if isinstance(key, str) else None), split=split)
    if added is not None:
        values.append(value)


def _add_images_without_row(images: CaptionedImages, values: list[Any], folder: AnyPath) -> None:
    """Name the images of a folder that its metadata is silent about."""
    named = {os.path.normpath(value) for value in values if value}
    for path in sorted(set(list_folder(folder, on_link_out="skip").images) - named):
        images.add(path, [], row=len(values) + 1, name=path)
        values.append(path)


def _column(values: list[Any], root: AnyPath) -> ImageColumn:
    contents = [value.get("bytes") if isinstance(value, dict) else value for value in values]
    if any(isinstance(content, bytes) for content in contents):
        return EmbeddedImages([content if isinstance(content, bytes) else None for content in contents])
    return image_files(root, [value.get("path") if isinstance(value, dict) else as_text(value) for value in values])
