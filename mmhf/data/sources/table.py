"""The source `table`: CSV, TSV, JSONL and parquet files, and folders with metadata, with labels or captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mmhf.data.captions import caption_array, content_keys, join_captions
from mmhf.data.columns import IMAGE_TYPE, image_array, named_images, text_array
from mmhf.data.readers import Batch, Values, read_batches
from mmhf.data.remote.images import RemoteImages
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.splits import SPLIT_OF_NAME, name_splits
from mmhf.data.table import (
    CAPTIONS_TYPE,
    NOTES_TYPE,
    ImageFiles,
    Images,
    Part,
    Reading,
    SourceTable,
    extra_column,
    make_rows,
)
from mmhf.data.targets import RowTarget, row_target
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionTableSection
from mmhf.recipe.data_sections import TableDataSection
from mmhf.recipe.row_sections import SplitSection
from mmhf.recipe.sections import SplitName

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Roles(NamedTuple):
    """The columns of a table that have a role."""

    image: str
    label: str | None = None
    """Of what is learnt, unless `target` has columns of its own."""
    text: str | None = None
    captions: Sequence[str] = ()
    id: str | None = None
    split: str | None = None
    extra: Sequence[str] = ()
    """Columns that filters, cuts and tasks read."""
    target: RowTarget | None = None
    """What is learnt of a row, where it has a label."""

    def named(self) -> list[str | None]:
        """All of them."""
        return [self.image, *self.labels(), self.text, *self.captions, self.id, self.split, *self.extra]

    def labels(self) -> list[str]:
        """Those of what is learnt."""
        if self.target is None or self.label is None:
            return []
        return self.target.columns_read(self.label)


def read_table_source(section: TableDataSection | CaptionTableSection, reading: Reading) -> SourceTable:
    """Read tables, or folders with metadata.

    Args:
        section (`TableDataSection` or `CaptionTableSection`):
            Files, columns, and how to split.
        reading (`Reading`):
            What the task reads.

    Returns:
        `SourceTable`: a row for each of the tables; where captions are read, for each image that the tables name, and
        for each in a metadata file's folder.

    Raises:
        InputError: a file, folder or column is missing.
    """
    named: list[tuple[SplitName, str | None]]
    named = [("train", section.train), ("validation", section.validation), ("test", section.test)]
    given = {split: _path(section, path) for split, path in named if path is not None}
    files: dict[SplitName | None, AnyPath] = dict((given or _split_folders(section)).items())
    if not files:
        assert section.path is not None
        files[None] = _path(section, section.path)
    tables: list[pa.Table] = []
    parts: dict[str | None, Part] = {}
    for split, path in files.items():
        table, parts[split] = _read_file(_table_at(path), section, reading, split)
        tables.append(table)
    cut = section.split if None in files and section.split_column is None else None
    joined = pa.concat_tables(tables)
    rows = make_rows({name: joined.column(name) for name in joined.column_names})
    return SourceTable(rows, parts, label_of=getattr(section, "labels", None), cut=cut)


def _path(section: TableDataSection | CaptionTableSection, path: str) -> AnyPath:
    return data_path(section.versioned(path) if isinstance(section, TableDataSection) else path, section.cloud)


def _split_folders(section: TableDataSection | CaptionTableSection) -> dict[SplitName, AnyPath]:
    """Folders with the names of splits that have metadata, when the folder itself has none."""
    assert section.path is not None
    path = _path(section, section.path)
    if not path.is_dir() or _metadata_in(path) is not None:
        return {}
    found: dict[SplitName, AnyPath] = {}
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


def _read_file(
    path: AnyPath, section: TableDataSection | CaptionTableSection, reading: Reading, split: SplitName | None
) -> tuple[pa.Table, Part]:
    is_metadata = path.name in METADATA_FILES
    columns, cut = section.columns, section.split
    extra = [*section.filters.columns(), *reading.extra_columns]
    if isinstance(cut, SplitSection) and cut.group_by is not None:
        extra.append(cut.group_by)
    if isinstance(section, CaptionTableSection):
        captions = section.columns.caption_columns()
        image = columns.image or ("file_name" if is_metadata else "image")
        roles = Roles(image, captions=captions, id=columns.id, split=section.split_column, extra=extra)
    else:
        own = section.columns
        target = row_target(section)
        roles = Roles(own.image, own.label, own.text, (), own.id, section.split_column, extra, target)
    batches = read_batches(path, roles.named())
    roots = section.image_root
    given = (None if split is None else roots.get(split)) if isinstance(roots, dict) else roots
    root = path.parent if given is None else _path(section, given)
    if not root.is_dir():
        raise InputError(f"data.image_root: no such folder: {root}")
    table = read_roles(batches, roles, split)
    if roles.captions:
        images = table.column("image")
        keys = content_keys(images)
        if roles.id is None:
            paths = pc.if_else(pc.is_null(images.combine_chunks().field("bytes")), keys, pa.scalar(None, pa.string()))
            ids = pc.coalesce(paths, table.column("id").combine_chunks())
            table = table.set_column(table.column_names.index("id"), "id", ids)
        table = join_captions(table, keys, [extra_column(name) for name in reading.extra_columns])
        if is_metadata and not table.column("image").combine_chunks().field("bytes").is_valid().to_numpy(False).any():
            table = _with_images_without_row(table, root, split, follow_links=section.follow_links)
    return table, Part(str(path), images_below(root, table.column("image"), follow_links=section.follow_links))


def images_below(root: AnyPath, images: pa.ChunkedArray, *, follow_links: bool) -> Images:
    """Where the images are that a table names below a folder, on disk or behind a URL."""
    if isinstance(root, Path):
        return ImageFiles(root, follow_links=follow_links)
    names = [name for chunk in images.chunks for name in chunk.field("path").to_pylist()]
    return RemoteImages(root, names)


def read_roles(batches: Sequence[Batch], roles: Roles, split: str | None = None) -> pa.Table:
    """Make a source's columns of a table's.

    Args:
        batches (`Sequence[Batch]`):
            The table.
        roles (`Roles`):
            Its columns.
        split (`str`, *optional*):
            The split of all rows; absent: the column's, or none yet.
    """
    return pa.concat_tables([_read_batch(batch, roles, split) for batch in batches])


def _read_batch(batch: Batch, roles: Roles, split: str | None) -> pa.Table:
    count = len(batch)
    faults = dict(batch.faults)
    numbers = pa.array(batch.rows, pa.int64())
    columns: dict[str, pa.Array] = {"row": numbers}
    ids = pa.nulls(count, pa.string()) if roles.id is None else text_array(batch.columns[roles.id])
    columns["id"] = pc.coalesce(ids, numbers.cast(pa.string()))
    columns["image"] = image_array(batch.columns[roles.image])
    if roles.target is not None:
        cells = {name: batch.columns[name] for name in roles.labels()}
        columns[roles.target.column], unread = roles.target.read_cells(cells)
        faults = {**unread, **faults}
    if roles.text is not None:
        _name_lists(batch.columns[roles.text], roles.text, "a text", faults)
        columns["text"] = text_array(batch.columns[roles.text])
    elif roles.label is not None:
        columns["text"] = pa.nulls(count, pa.string())
    if roles.captions:
        captions, unread = caption_array([batch.columns[name] for name in roles.captions])
        faults = {**unread, **faults}
        if faults:
            usable = pa.array([position not in faults for position in range(count)])
            captions = pc.if_else(usable, captions, pa.array([[]] * count, CAPTIONS_TYPE))
            empty = pa.StructArray.from_arrays(
                [pa.nulls(count, each.type) for each in IMAGE_TYPE], fields=list(IMAGE_TYPE)
            )
            columns["image"] = pc.if_else(usable, columns["image"], empty)
        columns["captions"] = captions
    for name in dict.fromkeys(roles.extra):
        columns[extra_column(name)] = text_array(batch.columns[name])
    reasons = pa.array([faults.get(position) for position in range(count)], pa.string())
    if roles.split is not None:
        given = text_array(batch.columns[roles.split])
        what = "the split" if roles.captions else roles.split
        columns["split"], reasons = name_splits(given, reasons, what)
    else:
        columns["split"] = pa.array([split] * count, pa.string())
    columns["fault"] = reasons
    notes = [
        [{"row": row, "note": batch.notes[position]}] if position in batch.notes else None
        for position, row in enumerate(batch.rows)
    ]
    columns["notes"] = pa.array(notes, NOTES_TYPE)
    return pa.table(columns)


def _name_lists(values: Values, column: str, expected: str, faults: dict[int, str]) -> None:
    """Name the rows of a column that hold lists or objects."""
    if isinstance(values, pa.Array):
        if not pa.types.is_nested(values.type):
            return
        values = values.to_pylist()
    for position, value in enumerate(values):
        if isinstance(value, list | dict):
            faults.setdefault(position, f"{column} is a {type(value).__name__}, not {expected}")


def _with_images_without_row(table: pa.Table, folder: AnyPath, split: str | None, *, follow_links: bool) -> pa.Table:
    """Add the images of a folder that its metadata is silent about."""
    paths = pc.struct_field(table.column("image").combine_chunks(), "path").to_pylist()
    named = {os.path.normpath(path) for path in paths if path}
    silent = sorted(set(list_folder(folder, on_link_out="skip", follow_links=follow_links).images) - named)
    if not silent:
        return table
    count = len(silent)
    added = {
        "row": pa.array(range(len(table) + 1, len(table) + count + 1), pa.int64()),
        "id": pa.array(silent, pa.string()),
        "image": named_images(silent),
        "captions": pa.array([[]] * count, CAPTIONS_TYPE),
        "split": pa.array([split] * count, pa.string()),
    }
    columns = [added[field.name] if field.name in added else pa.nulls(count, field.type) for field in table.schema]
    return pa.concat_tables([table, pa.table(columns, schema=table.schema)])


READERS = {TableDataSection: read_table_source, CaptionTableSection: read_table_source}
