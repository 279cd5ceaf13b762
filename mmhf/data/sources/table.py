"""The source `table`: any CSV, TSV, JSONL or parquet file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from mmhf.data.filters import RowColumns, blank_placeholders, filter_tables
from mmhf.data.readers import TableFile, as_text, read_table
from mmhf.data.remote.images import image_files
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.splits import SPLIT_OF_NAME, require_groups_apart, require_samples, split_positions
from mmhf.data.table import SPLITS, EmbeddedImages, ImageColumn, LabelledRows, SourceData
from mmhf.errors import InputError
from mmhf.recipe.schema import ColumnsSection, FilteredDataSection, SplitSection, TableDataSection

UNCUT = "all"
"""Stands for the split of a table that is yet to be cut."""


class TableLayout(NamedTuple):
    """Where a table has what models see."""

    columns: ColumnsSection
    image_root: AnyPath | None = None
    """Folder of the images; None: the table's own."""
    extra_columns: Sequence[str] = ()
    """Further columns to keep."""


def read_table_source(
    section: TableDataSection, splits: Collection[str] | None = None, *, extra_columns: Sequence[str] = ()
) -> SourceData:
    """Read tables, keep the rows that pass the filters, and cut them into splits.

    Args:
        section (`TableDataSection`):
            Files, columns, filters and how to split.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all. The labels are those of all splits either way.
        extra_columns (`Sequence[str]`, *optional*):
            Further columns to keep.

    Returns:
        `SourceData`: the rows.

    Raises:
        InputError: a file or a column is missing, a filter leaves nothing, a group is in two splits that are given, a
            label has too few rows in a split, or a wanted split is not there.
    """
    root = None if section.image_root is None else data_path(section.versioned(section.image_root), section.cloud)
    layout = TableLayout(section.columns, root, extra_columns)
    return cut_tables(_read(section, extra_columns), section, layout, splits)


def cut_tables(
    tables: dict[str, TableFile],
    section: FilteredDataSection,
    layout: TableLayout,
    splits: Collection[str] | None = None,
) -> SourceData:
    """Keep the rows of tables that pass the filters, and cut the table `UNCUT`.

    Args:
        tables (`dict[str, TableFile]`):
            A table for each split, or the one `UNCUT`.
        section (`FilteredDataSection`):
            Placeholders, filters, labels and how to split.
        layout (`TableLayout`):
            Where the tables have what models see.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all.

    Returns:
        `SourceData`: the rows.

    Raises:
        InputError: as `read_table_source`.
    """
    columns = layout.columns
    for table in tables.values():
        blank_placeholders(table, section.missing, keep=[columns.image])
    tables, steps = filter_tables(tables, section.filters, RowColumns(columns.label, columns.text, section.labels))
    given = UNCUT not in tables
    if not given:
        tables = _cut(tables[UNCUT], section.split, columns.label)
    elif section.split.group_by is not None:
        require_groups_apart(tables, section.split.group_by)
    # A folder is listed once for all splits.
    roots = {origin: layout.image_root or data_path(origin, section.cloud).parent for origin in _origins(tables)}
    rows = {split: _rows(table, layout, roots[table.origin]) for split, table in tables.items()}
    label_of = section.labels or {value: value for value in sort_labels(_labels(rows.values()))}
    require_samples(rows, label_of, section.filters, given=given)
    for split in splits or ():
        if split not in rows:
            raise InputError(f"data: no split {split!r}; there is {', '.join(rows)}")
    chosen = {split: rows[split] for split in SPLITS if split in (splits or rows) and split in rows}
    return SourceData(chosen, label_of, steps)


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


def _read(section: TableDataSection, extra_columns: Sequence[str]) -> dict[str, TableFile]:
    names = section.columns
    columns = [names.image, names.text, names.label, names.id, section.split.group_by, section.split_column]
    columns += [*section.filters.columns(), *extra_columns]
    paths = {UNCUT: section.path, "train": section.train, "validation": section.validation, "test": section.test}
    tables = {
        split: read_table(data_path(section.versioned(path), section.cloud), columns)
        for split, path in paths.items()
        if path is not None
    }
    return tables if section.split_column is None else _cut_by_column(tables[UNCUT], section.split_column)


def _cut(table: TableFile, section: SplitSection, label: str) -> dict[str, TableFile]:
    labels = [as_text(value) for value in table.columns[label]]
    group_by = section.group_by
    groups = None if group_by is None else [as_text(value) for value in table.columns[group_by]]
    return {split: table.select(rows) for split, rows in split_positions(section, labels, groups).items()}


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


def _origins(tables: dict[str, TableFile]) -> set[str]:
    return {table.origin for table in tables.values()}


def _rows(table: TableFile, layout: TableLayout, root: AnyPath) -> LabelledRows:
    columns = layout.columns
    ids = [None] * len(table.rows) if columns.id is None else [as_text(value) for value in table.columns[columns.id]]
    texts = [None] * len(table.rows) if columns.text is None else table.columns[columns.text]
    malformed = dict(table.malformed)
    for position, text in enumerate(texts):
        if isinstance(text, list | dict):
            malformed.setdefault(position, f"{columns.text} is a {type(text).__name__}, not a text")
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
        extras={name: [as_text(value) for value in table.columns[name]] for name in layout.extra_columns},
    )


def _image_column(values: list[Any], root: AnyPath) -> ImageColumn:
    contents = [value.get("bytes") if isinstance(value, dict) else value for value in values]
    if any(isinstance(content, bytes) for content in contents):
        return EmbeddedImages([content if isinstance(content, bytes) else None for content in contents])
    paths = [value.get("path") if isinstance(value, dict) else as_text(value) for value in values]
    return image_files(root, paths)
