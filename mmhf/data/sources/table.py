"""The source `table`: any CSV, TSV, JSONL or parquet file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmhf.data.rows import SPLITS, EmbeddedImages, ImageColumn, ImageFiles, LabelledRows, SourceData
from mmhf.data.sources.table_files import TableFile, as_text, read_table
from mmhf.data.splits import SPLIT_OF_NAME, split_positions
from mmhf.errors import InputError
from mmhf.recipe.schema import TableDataSection


def read_table_source(
    section: TableDataSection, splits: Collection[str] | None = None, *, extra_columns: Sequence[str] = ()
) -> SourceData:
    """Read tables and cut them into splits.

    Args:
        section (`TableDataSection`):
            Files, columns and how to split.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all. The labels are those of all splits either way.
        extra_columns (`Sequence[str]`, *optional*):
            Further columns to keep.

    Returns:
        `SourceData`: the rows.

    Raises:
        InputError: a file or a column is missing, or a wanted split is not there.
    """
    tables = _cut(section, extra_columns) if section.path is not None else _separate(section, extra_columns)
    rows = {split: _rows(table, section, extra_columns) for split, table in tables.items()}
    label_of = section.labels or {value: value for value in sort_labels(_labels(rows.values()))}
    for split in splits or ():
        if split not in rows:
            raise InputError(f"data: no split {split!r}; there is {', '.join(rows)}")
    return SourceData(
        {split: rows[split] for split in SPLITS if split in (splits or rows) and split in rows}, label_of
    )


def sort_labels(values: Iterable[str]) -> list[str]:
    """Put label values in the order of their class ids: by number when all are numbers, else by letter."""
    distinct = sorted(set(values))
    if all(_is_number(value) for value in distinct):
        return sorted(distinct, key=float)
    return distinct


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _labels(sources: Iterable[LabelledRows]) -> list[str]:
    return [label for source in sources for label in source.labels if label is not None]


def _separate(section: TableDataSection, extra_columns: Sequence[str]) -> dict[str, TableFile]:
    paths = {"train": section.train, "validation": section.validation, "test": section.test}
    return {
        split: read_table(path, _columns(section, extra_columns)) for split, path in paths.items() if path is not None
    }


def _columns(section: TableDataSection, extra_columns: Sequence[str]) -> list[str | None]:
    columns = section.columns
    return [columns.image, columns.text, columns.label, columns.id, *extra_columns]


def _cut(section: TableDataSection, extra_columns: Sequence[str]) -> dict[str, TableFile]:
    assert section.path is not None
    if section.split_column is not None:
        table = read_table(section.path, [*_columns(section, extra_columns), section.split_column])
        return _cut_by_column(table, section.split_column)
    group_by = section.split.group_by
    table = read_table(section.path, [*_columns(section, extra_columns), group_by])
    labels = [as_text(value) for value in table.columns[section.columns.label]]
    groups = None if group_by is None else [as_text(value) for value in table.columns[group_by]]
    return {split: table.select(rows) for split, rows in split_positions(section.split, labels, groups).items()}


def _cut_by_column(table: TableFile, column: str) -> dict[str, TableFile]:
    positions: dict[str, list[int]] = {}
    unassigned: dict[int, str] = {}
    for position, value in enumerate(table.columns[column]):
        name = SPLIT_OF_NAME.get((as_text(value) or "").lower())
        if name is None:
            unassigned[position] = table.malformed.get(
                position, f"{column} is {value!r}, not train, validation or test"
            )
        # A row of no split is listed with the first one, so that it is named somewhere.
        positions.setdefault(name or "train", []).append(position)
    table.malformed.update(unassigned)
    return {split: table.select(positions[split]) for split in SPLITS if split in positions}


def _rows(table: TableFile, section: TableDataSection, extra_columns: Sequence[str]) -> LabelledRows:
    columns = section.columns
    ids = [None] * len(table.rows) if columns.id is None else [as_text(value) for value in table.columns[columns.id]]
    texts = [None] * len(table.rows) if columns.text is None else table.columns[columns.text]
    malformed = dict(table.malformed)
    for position, text in enumerate(texts):
        if isinstance(text, list | dict):
            malformed.setdefault(position, f"{columns.text} is a {type(text).__name__}, not a text")
    root = Path(section.image_root) if section.image_root else Path(table.origin).parent
    if not root.is_dir():
        raise InputError(f"data.image_root: no such folder: {root}")
    return LabelledRows(
        origin=table.origin,
        rows=table.rows,
        ids=[name or str(row) for name, row in zip(ids, table.rows, strict=True)],
        texts=[as_text(text) for text in texts],
        labels=[as_text(label) for label in table.columns[columns.label]],
        images=_image_column(table.columns[columns.image], root),
        malformed=malformed,
        extras={name: [as_text(value) for value in table.columns[name]] for name in extra_columns},
    )


def _image_column(values: list[Any], root: Path) -> ImageColumn:
    contents = [value.get("bytes") if isinstance(value, dict) else value for value in values]
    if any(isinstance(content, bytes) for content in contents):
        return EmbeddedImages([content if isinstance(content, bytes) else None for content in contents])
    paths = [value.get("path") if isinstance(value, dict) else as_text(value) for value in values]
    return ImageFiles(root, paths)
