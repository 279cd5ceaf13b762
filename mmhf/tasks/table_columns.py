"""How the columns of a recipe's table are scaled and coded: learnt from the training rows, and checked in all."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.bad_examples import BadExample
from mmhf.data.columns import codes_of
from mmhf.data.loading import LoadedData
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.models.fusion.column_features import CategoryColumn, ColumnFeatures, NumberColumn, as_number
from mmhf.recipe.fusion_recipe import TableColumnsSection

logger = logging.getLogger(__name__)

_SHOWN = 3
_USUAL_CATEGORIES = 8
_ROWS_AT_ONCE = 4096


def check_numbers(section: TableColumnsSection, data: LoadedData) -> None:
    """Refuse texts in columns of numbers, in any split.

    Raises:
        InputError: there are some; the message has the first of them.
    """
    for split, table in data.splits.items():
        if not isinstance(table, datasets.Dataset):
            raise InputError(
                f"model.columns: read all rows beforehand, and {split} is a stream; set data.streaming: false"
            )
        for name in section.numbers:
            codes, values = codes_of(_column(table, name))
            wrong = {code: value for code, value in enumerate(values) if not _is_number(value)}
            if not wrong:
                continue
            rows = np.flatnonzero(np.isin(codes, list(wrong)))
            first = table.select_columns(["row", "id"])[int(rows[0])]
            shown = ", ".join(map(repr, list(wrong.values())[:_SHOWN]))
            raise InputError(
                f"model.columns.numbers: {name}: {len(rows):,} of {len(table):,} rows of {split} have no number, as "
                f"{shown} (row {first['row']}, id {first['id']}); write placeholders into data.missing, or name the "
                "column in categories"
            )


def fit_columns(section: TableColumnsSection, data: LoadedData) -> ColumnFeatures:
    """What the training rows say of the columns.

    Numbers get the median and the interquartile range, as scikit-learn's `RobustScaler`; categories are those that
    occur, sorted.

    Raises:
        InputError: a column is empty or constant, or says nothing because each value occurs once.
    """
    table = data.splits["train"]
    assert isinstance(table, datasets.Dataset)
    numbers = []
    for name in section.numbers:
        values = _numbers(table, name)
        known = values[~np.isnan(values)]
        _refuse_silent(f"model.columns.numbers: {name}", np.unique(known).tolist(), len(known), len(values))
        low, center, high = np.percentile(known, [25, 50, 75])
        # As in scikit-learn: what more than half of the rows agree in is not divided by 0.
        scale = float(high - low) if high - low >= 10 * np.finfo(np.float64).eps else 1.0
        numbers.append(NumberColumn(name, float(center), scale, len(known) < len(values)))
    categories = []
    for name in section.categories:
        where = f"model.columns.categories: {name}"
        codes, found = codes_of(_column(table, name))
        counts = np.bincount(codes[codes >= 0], minlength=len(found))
        _refuse_silent(where, found, int(counts.sum()), len(codes))
        if len(found) == counts.sum() and len(found) > _USUAL_CATEGORIES:
            raise InputError(
                f"{where}: has {len(found):,} values in {len(found):,} training rows, each of them once, so that none "
                "says anything of another row; leave it out"
            )
        kept = sorted(value for value, count in zip(found, counts.tolist(), strict=True) if count >= section.min_rows)
        if not kept:
            raise InputError(f"{where}: no value has {section.min_rows} training rows (model.columns.min_rows)")
        categories.append(CategoryColumn(name, tuple(kept), bool((codes < 0).any())))
    return ColumnFeatures(numbers, categories)


def name_unmet(features: ColumnFeatures, data: LoadedData, *, splits: Sequence[str]) -> list[BadExample]:
    """The rows of some splits with a value that the training rows never had, and what it is read as; also logged."""
    listed = []
    for split in splits:
        table = data.splits[split]
        assert isinstance(table, datasets.Dataset)
        for name in features.names:
            codes, values = codes_of(_column(table, name))
            present = features.usual_row()
            notes = ["; ".join(features.notes({**present, name: value})) for value in (*values, None)]
            rows = np.flatnonzero(np.array([bool(note) for note in notes])[codes])
            if not len(rows):
                continue
            counts = np.bincount(codes[rows] % len(notes), minlength=len(notes))
            most = np.argsort(-counts, kind="stable")[:_SHOWN]
            shown = "; ".join(f"{notes[code]} ({counts[code]:,} rows)" for code in most if counts[code])
            logger.warning("%s: %d rows have what no training row has: %s", split, len(rows), shown)
            named = table.select_columns(["row", "id"]).select(rows)
            listed += [
                BadExample(split, row, row_id, notes[code])
                for row, row_id, code in zip(named["row"], named["id"], codes[rows].tolist(), strict=True)
            ]
    return listed


def column_matrix(features: ColumnFeatures, table: datasets.Dataset) -> NDArray[np.float32]:
    """(N, width) of all rows of a table."""
    columns = {name: _column(table, name).to_pylist() for name in features.names}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    parts = [features.encode(rows[at : at + _ROWS_AT_ONCE]).numpy() for at in range(0, len(rows), _ROWS_AT_ONCE)]
    return np.concatenate(parts)


def planned_columns(section: TableColumnsSection) -> ColumnFeatures:
    """Stands for what the training rows will say, where there are none: shapes can be planned with it."""
    values = tuple(map(str, range(_USUAL_CATEGORIES)))
    return ColumnFeatures(
        [NumberColumn(name, 0.0, 1.0, True) for name in section.numbers],
        [CategoryColumn(name, values, True) for name in section.categories],
    )


def _refuse_silent(where: str, values: Sequence[object], num_known: int, num_rows: int) -> None:
    if not values:
        raise InputError(f"{where}: no training row has a value; leave it out")
    if len(values) == 1 and num_known == num_rows:
        raise InputError(f"{where}: is {values[0]} in every training row, which says nothing; leave it out")


def _numbers(table: datasets.Dataset, name: str) -> NDArray[np.float64]:
    codes, values = codes_of(_column(table, name))
    numbers = [as_number(value) for value in values]
    return np.array([np.nan if number is None else number for number in (*numbers, None)], dtype=np.float64)[codes]


def _is_number(value: str) -> bool:
    try:
        as_number(value)
    except ValueError:
        return False
    return True


def _column(table: datasets.Dataset, name: str) -> pa.ChunkedArray:
    key = extra_column(name)
    return table.select_columns([key]).with_format("arrow")[:].column(key)
