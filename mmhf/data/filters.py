"""Which rows of a source are used: placeholders blanked, filters one after the other, each with the rows it left."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.conventions import as_text
from mmhf.data.columns import codes_of
from mmhf.data.table import FilterStep, extra_column
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.row_sections import ConditionSection, FiltersSection, Scalar

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]


def blank_placeholders(table: pa.Table, placeholders: Sequence[str], *, keep: Iterable[str] = ()) -> pa.Table:
    """Read placeholders such as "No age information" as missing.

    Args:
        table (`pa.Table`):
            The table.
        placeholders (`Sequence[str]`):
            What counts as missing, in any case; `*` stands for anything.
        keep (`Iterable[str]`, *optional*):
            Columns to leave alone, beside those that are no texts.

    Returns:
        `pa.Table`: the table with null in these places.
    """
    if not placeholders:
        return table
    parts = [".*".join(re.escape(part) for part in text.strip().split("*")) for text in placeholders]
    pattern = re.compile("|".join(parts), re.IGNORECASE | re.DOTALL)
    for number, name in enumerate(table.column_names):
        if name in keep or not pa.types.is_string(table.schema.field(name).type):
            continue
        # Each distinct value is looked at once: most columns have few.
        codes, values = codes_of(table.column(name))
        blank = np.array([bool(pattern.fullmatch(value.strip())) for value in values], dtype=bool)
        if blank.any():
            kept = pa.array(np.where(blank, -1, np.arange(len(values)))[codes], mask=(codes < 0) | blank[codes])
            table = table.set_column(number, name, pa.array(values, pa.string()).take(kept))
    return table


def filter_rows(
    table: pa.Table, filters: FiltersSection, *, origin: str, label_of: Mapping[str, str] | None = None
) -> tuple[NDArray[np.int64], list[FilterStep]]:
    """Choose the rows that pass all filters; rows that cannot be read stay, to be judged as such.

    Args:
        table (`pa.Table`):
            The columns of a source but `image`.
        filters (`FiltersSection`):
            The recipe's filters.
        origin (`str`):
            The data, for messages.
        label_of (`Mapping[str, str]`, *optional*):
            Label value → label name, where the recipe merges or renames labels.

    Returns:
        `tuple`: the positions of the rows that are left, and how many each filter left; the first step counts those
        before any. No filters: no steps.

    Raises:
        InputError: a data set or a sub-source is in no row, a column is not there, or a filter leaves no row at all.
    """
    rows = _Rows(table, origin, label_of)
    for name, mask in _masks(rows, filters):
        rows.keep(name, mask)
    if len(rows.steps) == 1:
        return np.arange(len(table)), []
    logger.info("%s: %s", origin, describe_steps(rows.steps))
    return np.flatnonzero(rows.left), rows.steps


def describe_steps(steps: Sequence[FilterStep]) -> str:
    """One line: the rows before and behind each filter."""
    return " → ".join(f"{step.rows:,} ({step.filter})" for step in steps)


class _Rows:
    """The rows of a table, and which of them are left."""

    def __init__(self, table: pa.Table, origin: str, label_of: Mapping[str, str] | None) -> None:
        self.table = table
        self.origin = origin
        self.label_of = label_of
        self.left = np.ones(len(table), dtype=bool)
        self._malformed = table.column("fault").is_valid().to_numpy()
        self.steps = [FilterStep("all", len(table))]

    def distinct(self, column: str) -> tuple[NDArray[np.int64], pd.Series]:
        """The number of each row's value among the distinct ones of a column, the last of which is None."""
        name = extra_column(column)
        if name not in self.table.column_names:
            raise InputError(
                f"{self.origin}: data.filters ask for the column {column!r}, but the source has no columns"
            )
        codes, values = codes_of(self.table.column(name))
        return np.where(codes < 0, len(values), codes), pd.Series([*values, None], dtype=object)

    def labels(self) -> NDArray[np.int64]:
        """Numbers of label names, -1 for none; a value that the recipe does not name stays as it is."""
        if "label" not in self.table.column_names:
            return np.full(len(self.table), -1)
        codes, values = codes_of(self.table.column("label"))
        if self.label_of is None:
            return codes
        merged, _ = codes_of([self.label_of.get(value, value) for value in values])
        return np.append(merged, -1)[codes]

    def keep(self, name: str, mask: Mask) -> None:
        self.left &= mask | self._malformed
        self.steps.append(FilterStep(name, int(self.left.sum())))
        if not self.left.any():
            raise InputError(
                f"{self.origin}: data.filters leave no row; those behind each: {describe_steps(self.steps)}"
            )


def _masks(rows: _Rows, filters: FiltersSection) -> Iterable[tuple[str, Mask]]:
    """Each filter with its mask, made when those before it have been applied."""
    if filters.datasets is not None:
        codes, names = rows.distinct(filters.dataset_column)
        _require_values("datasets", filters.datasets, names, rows)
        yield f"datasets: {', '.join(filters.datasets)}", names.isin(filters.datasets).to_numpy()[codes]
    for dataset, sources in filters.sub_sources.items():
        codes, names = rows.distinct(filters.dataset_column)
        is_other = (names != dataset).to_numpy()[codes]
        codes, found = rows.distinct(filters.sub_source_column)
        _require_values(f"sub_sources.{dataset}", sources, found[np.unique(codes[~is_other])], rows)
        yield f"sub_sources.{dataset}: {', '.join(sources)}", is_other | found.isin(sources).to_numpy()[codes]
    for column, condition in filters.where.items():
        codes, values = rows.distinct(column)
        yield f"where.{column}: {_describe(condition)}", _meets(values, condition)[codes]
    if filters.has_text is not None and "text" in rows.table.column_names:
        present = rows.table.column("text").is_valid().to_numpy()
        yield f"has_text: {str(filters.has_text).lower()}", present == filters.has_text
    if filters.fraction is not None:
        yield f"fraction: {filters.fraction:g}", _draw(rows, filters.fraction, filters.seed)
    if filters.min_samples_per_label is not None:
        labels = rows.labels()
        counts = np.bincount(labels[rows.left & (labels >= 0)], minlength=labels.max(initial=0) + 1)
        rare = (counts > 0) & (counts < filters.min_samples_per_label)
        yield f"min_samples_per_label: {filters.min_samples_per_label}", ~(rare[labels] & (labels >= 0))


def _require_values(key: str, wanted: Sequence[str], values: pd.Series, rows: _Rows) -> None:
    present = [value for value in values if value is not None]
    for value in wanted:
        if value not in present:
            guess = did_you_mean(nearest_names(value, present))
            listed = ", ".join(sorted(present)[:20])
            raise InputError(f"{rows.origin}: data.filters.{key}: no row has {value!r}{guess} (there is {listed})")


def _describe(condition: ConditionSection | list[Scalar | None] | Scalar) -> str:
    if isinstance(condition, ConditionSection):
        given = [
            (name, value) for name, value in condition if value is not None and value is not False and value != []
        ]
        return ", ".join(f"{name} {_shown(value)}" for name, value in given)
    return _shown(condition)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value)
    return "null" if value is None else as_text(value) or ""


def _meets(values: pd.Series, condition: ConditionSection | list[Scalar | None] | Scalar) -> Mask:
    if not isinstance(condition, ConditionSection):
        return _is_one_of(values, condition if isinstance(condition, list) else [condition])
    mask = np.ones(len(values), dtype=bool)
    if condition.min is not None or condition.max is not None:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
        low = -np.inf if condition.min is None else condition.min
        high = np.inf if condition.max is None else condition.max
        mask &= (numbers >= low) & (numbers <= high)
    if condition.exclude:
        mask &= ~_is_one_of(values, condition.exclude)
    return mask | values.isna().to_numpy() if condition.or_missing else mask


def _is_one_of(values: pd.Series, wanted: Sequence[Scalar | None]) -> Mask:
    """Strings are compared as they are, `true` and `false` in any case, numbers by their value (`1` is `1.0`)."""
    mask = values.isin([value for value in wanted if isinstance(value, str)]).to_numpy()
    if None in wanted:
        mask = mask | values.isna().to_numpy()
    bools = [str(value).lower() for value in wanted if isinstance(value, bool)]
    if bools:
        mask = mask | values.astype("string").str.lower().isin(bools).to_numpy()
    numbers = [value for value in wanted if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers:
        mask = mask | np.isin(pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64), numbers)
    return mask


def _draw(rows: _Rows, fraction: float, seed: int) -> Mask:
    """Draw a share of each label's rows in each given split, rounded up, so that no label vanishes."""
    order = np.random.default_rng(seed).permutation(len(rows.left))
    order = order[rows.left[order]]
    splits, _ = codes_of(rows.table.column("split"))
    drawn = pd.DataFrame({"label": rows.labels()[order], "split": splits[order]})
    grouped = drawn.groupby(["label", "split"], sort=False)["split"]
    # Less a little: 0.7 · 10 is 7.000000000000001.
    wanted = np.ceil(fraction * grouped.transform("size").to_numpy() - 1e-6)
    chosen = order[grouped.cumcount().to_numpy() < wanted]
    mask = np.zeros(len(rows.left), dtype=bool)
    mask[chosen] = True
    return mask
