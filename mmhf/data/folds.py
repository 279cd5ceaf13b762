"""The folds of a cross-validation: the rows of training and validation, cut by the rules of `data.split`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.columns import codes_of, number_rows
from mmhf.data.splits import assign_rows
from mmhf.data.table import GROUP_COLUMN
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import ImageSplitSection
from mmhf.recipe.row_sections import FoldSection, SplitSection

POOLED = ("train", "validation")
"""The splits whose rows are cut."""


def take_fold(
    splits: Mapping[str, datasets.Dataset],
    fold: FoldSection,
    rules: SplitSection | ImageSplitSection,
    label_names: Sequence[str],
) -> dict[str, datasets.Dataset]:
    """Pool the rows of training and validation, and cut them anew.

    Args:
        splits (`Mapping[str, Dataset]`):
            Loaded rows; those of groups have `GROUP_COLUMN`.
        fold ([`FoldSection`]):
            The fold that is validated on.
        rules (`SplitSection` or `ImageSplitSection`):
            `stratify` and `seed` are read.
        label_names (`Sequence[str]`):
            For messages.

    Returns:
        `dict[str, Dataset]`: the splits with `train` and `validation` of this fold, without `GROUP_COLUMN`.

    Raises:
        InputError: there are fewer rows, groups or rows of a class than folds.
    """
    pool = datasets.concatenate_datasets([splits[name] for name in POOLED if name in splits])
    names = [name for name in ("label", "labels", GROUP_COLUMN) if name in pool.column_names]
    columns = pool.select_columns(names).with_format("arrow")[:] if names else pa.table({})
    labels = _as_values(columns)
    groups = columns.column(GROUP_COLUMN) if GROUP_COLUMN in names else None
    if isinstance(rules, SplitSection) and rules.stratify and labels is not None:
        _require_classes(fold.of, _rows_of_labels(columns, len(label_names)), label_names)
    fold_of = fold_numbers(rules, fold.of, [""] * len(pool) if labels is None else labels, groups)
    is_own = fold_of == fold.number - 1
    others = {name: rows for name, rows in splits.items() if name not in POOLED}
    cut = {"train": pool.select(np.flatnonzero(~is_own)), "validation": pool.select(np.flatnonzero(is_own)), **others}
    return {name: rows if groups is None else rows.remove_columns(GROUP_COLUMN) for name, rows in cut.items()}


def fold_numbers(
    rules: SplitSection | ImageSplitSection,
    num_folds: int,
    labels: Sequence[str | None] | pa.ChunkedArray,
    groups: Sequence[str | None] | pa.ChunkedArray | None = None,
) -> NDArray[np.int64]:
    """Cut rows into folds of equal size.

    Without groups, the folds' sizes differ by a row at most, and so do their rows of each class. Groups are whole, and
    spread so that the folds come as close to that as large groups let them.

    Args:
        rules, labels, groups:
            As `split_positions` takes them.
        num_folds (`int`):
            How many.

    Returns:
        `NDArray` of shape `(N,)`: the fold of each row, from 0.

    Raises:
        InputError: there are fewer rows or groups than folds, or a fold would be empty.
    """
    _require(num_folds, len(labels), "rows")
    if groups is not None:
        _require(num_folds, len(np.unique(number_rows(codes_of(groups)[0]))), "groups")
        if not (isinstance(labels, pa.ChunkedArray) and pa.types.is_list(labels.type)):
            # A list of one counts as a row, too, so that groups of rare classes do not all go to the first fold.
            values = pa.array(codes_of(labels)[0].astype(str), pa.string())
            labels = pa.chunked_array([pa.ListArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32), values)])
    assigned = assign_rows(rules, np.full(num_folds, 1.0 / num_folds), labels, groups)
    empty = np.flatnonzero(np.bincount(assigned, minlength=num_folds) == 0)
    if len(empty):
        raise InputError(f"{num_folds} folds: fold {empty[0] + 1} has no rows; choose fewer folds")
    return assigned


def _as_values(columns: pa.Table) -> pa.ChunkedArray | None:
    """Class ids as texts, several of a row as a list of them; None where rows have neither."""
    if "label" in columns.column_names:
        return columns.column("label").cast(pa.string())
    if "labels" not in columns.column_names:
        return None
    has = _has_label(columns)
    rows, ids = np.nonzero(has)
    starts = np.searchsorted(rows, np.arange(len(has) + 1)).astype(np.int32)
    return pa.chunked_array([pa.ListArray.from_arrays(starts, pa.array(ids.astype(str), pa.string()))])


def _has_label(columns: pa.Table) -> NDArray[np.number]:
    """(N, labels) of rows with several labels: what is not 0 is there."""
    given = columns.column("labels").combine_chunks()
    matrix: NDArray[np.number] = given.flatten().to_numpy(zero_copy_only=False).reshape(len(given), -1)
    return matrix


def _rows_of_labels(columns: pa.Table, num_labels: int) -> NDArray[np.int64]:
    """How many rows have each label."""
    if "label" in columns.column_names:
        return np.bincount(np.asarray(columns.column("label")), minlength=num_labels)
    counts: NDArray[np.int64] = np.count_nonzero(_has_label(columns), axis=0)
    return counts


def _require(num_folds: int, count: int, what: str) -> None:
    if count < num_folds:
        raise InputError(f"{num_folds} folds: {what} to train and validate on: {count}; choose fewer folds")


def _require_classes(num_folds: int, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Without it, a fold's model would be measured on a class of which it saw no row, or not at all."""
    present = np.flatnonzero(counts)
    rarest = int(present[counts[present].argmin()])
    if counts[rarest] < num_folds:
        raise InputError(
            f"{num_folds} folds: the label {names[rarest]!r} has {counts[rarest]} rows to train and validate on, and "
            "each fold needs one; choose fewer folds, leave the label out with data.filters.min_samples_per_label, or "
            "set data.split.stratify=false where the source has it"
        )


def named_by_split(table: pa.Table) -> pa.Table:
    """Rows whose ids say which split they come from, as `train/17`, where the given splits have ids in common.

    Args:
        table (`pa.Table`):
            A source's rows, with `id` and `split`.
    """
    ids, splits = table.column("id"), table.column("split")
    first, second = (ids.filter(pc.fill_null(pc.equal(splits, name), False)) for name in POOLED)
    if not pc.any(pc.is_in(second, value_set=first.combine_chunks())).as_py():
        return table
    named = pc.coalesce(pc.binary_join_element_wise(splits, ids, "/"), ids)
    return table.set_column(table.column_names.index("id"), "id", named)
