"""Which rows of a table are used: placeholders blanked, filters one after the other, each with the rows it left."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmhf.data.readers import TableFile, as_text
from mmhf.data.table import FilterStep
from mmhf.errors import InputError
from mmhf.recipe.data_sections import ConditionSection, FiltersSection, Scalar
from mmhf.recipe.nearest import did_you_mean, nearest_names

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]


class RowColumns(NamedTuple):
    """The columns that filters read by what they are."""

    label: str
    text: str | None
    label_of: Mapping[str, str] | None = None
    """Label value → label name, where the recipe merges or renames labels."""


def blank_placeholders(table: TableFile, placeholders: Sequence[str], *, keep: Iterable[str] = ()) -> None:
    """Read placeholders such as "No age information" as missing, in place.

    Args:
        table (`TableFile`):
            The table.
        placeholders (`Sequence[str]`):
            What counts as missing, in any case; `*` stands for anything.
        keep (`Iterable[str]`, *optional*):
            Columns to leave alone.
    """
    if not placeholders:
        return
    parts = [".*".join(re.escape(part) for part in text.strip().split("*")) for text in placeholders]
    pattern = re.compile("|".join(parts), re.IGNORECASE | re.DOTALL)
    for name in set(table.columns) - set(keep):
        values = table.columns[name]
        # Each distinct value is looked at once: most columns have few.
        strings = {value for value in values if isinstance(value, str)}
        blank = {value for value in strings if pattern.fullmatch(value.strip())}
        if blank:
            table.columns[name] = [None if isinstance(value, str) and value in blank else value for value in values]


def filter_tables(
    tables: Mapping[str, TableFile], filters: FiltersSection, columns: RowColumns
) -> tuple[dict[str, TableFile], list[FilterStep]]:
    """Keep the rows that pass all filters; rows that cannot be read stay, to be judged as such.

    Args:
        tables (`Mapping[str, TableFile]`):
            A table for each split that is given, or one that is yet to be cut.
        filters (`FiltersSection`):
            The recipe's filters.
        columns (`RowColumns`):
            Where label and text are.

    Returns:
        `tuple`: the tables with what is left, and how many rows each filter left over all of them; the first step
        counts those before any. No filters: no steps.

    Raises:
        InputError: a data set or a sub-source is in no row, or a filter leaves no row at all.
    """
    rows = _Rows(tables, columns)
    for name, mask in _masks(rows, filters):
        rows.keep(name, mask)
    if len(rows.steps) == 1:
        return dict(tables), []
    logger.info("%s: %s", rows.origin, describe_steps(rows.steps))
    return rows.tables(), rows.steps


def describe_steps(steps: Sequence[FilterStep]) -> str:
    """One line: the rows before and behind each filter."""
    return " → ".join(f"{step.rows:,} ({step.filter})" for step in steps)


class _Rows:
    """The rows of all tables in a line, and which of them are left."""

    def __init__(self, tables: Mapping[str, TableFile], columns: RowColumns) -> None:
        self._tables = tables
        self.columns = columns
        self.origin = ", ".join(dict.fromkeys(table.origin for table in tables.values()))
        self.left = np.ones(sum(len(table.rows) for table in tables.values()), dtype=bool)
        self._malformed = np.concatenate(
            [np.isin(np.arange(len(table.rows)), list(table.malformed)) for table in tables.values()]
        )
        self.steps = [FilterStep("all", len(self.left))]

    def texts(self, name: str) -> pd.Series:
        """A column as strings, None where a value is missing."""
        values = [as_text(value) for table in self._tables.values() for value in table.columns[name]]
        return pd.Series(values, dtype=object)

    def labels(self) -> pd.Series:
        """Label names; a value that the recipe does not name stays as it is."""
        values = self.texts(self.columns.label)
        label_of = self.columns.label_of
        return (
            values if label_of is None else pd.Series([label_of.get(value, value) for value in values], dtype=object)
        )

    def split_numbers(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self._tables)), [len(table.rows) for table in self._tables.values()])

    def keep(self, name: str, mask: Mask) -> None:
        self.left &= mask | self._malformed
        self.steps.append(FilterStep(name, int(self.left.sum())))
        if not self.left.any():
            raise InputError(
                f"{self.origin}: data.filters leave no row; those behind each: {describe_steps(self.steps)}"
            )

    def tables(self) -> dict[str, TableFile]:
        """The tables with the rows that are left."""
        ends = np.cumsum([len(table.rows) for table in self._tables.values()])
        parts = np.split(self.left, ends[:-1])
        return {
            split: table.select(np.flatnonzero(part).tolist())
            for (split, table), part in zip(self._tables.items(), parts, strict=True)
        }


def _masks(rows: _Rows, filters: FiltersSection) -> Iterable[tuple[str, Mask]]:
    """Each filter with its mask, made when those before it have been applied."""
    if filters.datasets is not None:
        names = rows.texts(filters.dataset_column)
        _require_values("datasets", filters.datasets, names, rows)
        yield f"datasets: {', '.join(filters.datasets)}", names.isin(filters.datasets).to_numpy()
    for dataset, sources in filters.sub_sources.items():
        is_other = (rows.texts(filters.dataset_column) != dataset).to_numpy()
        found = rows.texts(filters.sub_source_column)
        _require_values(f"sub_sources.{dataset}", sources, found[~is_other], rows)
        yield f"sub_sources.{dataset}: {', '.join(sources)}", is_other | found.isin(sources).to_numpy()
    for column, condition in filters.where.items():
        yield f"where.{column}: {_describe(condition)}", _meets(rows.texts(column), condition)
    if filters.has_text is not None and rows.columns.text is not None:
        present = rows.texts(rows.columns.text).notna().to_numpy()
        yield f"has_text: {str(filters.has_text).lower()}", present == filters.has_text
    if filters.fraction is not None:
        yield f"fraction: {filters.fraction:g}", _draw(rows, filters.fraction, filters.seed)
    if filters.min_samples_per_label is not None:
        labels = rows.labels()
        counts = labels[rows.left].value_counts()
        rare = counts.index[counts < filters.min_samples_per_label]
        yield f"min_samples_per_label: {filters.min_samples_per_label}", ~labels.isin(rare).to_numpy()


def _require_values(key: str, wanted: Sequence[str], values: pd.Series, rows: _Rows) -> None:
    present = [value for value in values.unique() if value is not None]
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


def _shown(value: Any) -> str:
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
        mask = mask | values.str.lower().isin(bools).to_numpy()
    numbers = [value for value in wanted if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers:
        mask = mask | np.isin(pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64), numbers)
    return mask


def _draw(rows: _Rows, fraction: float, seed: int) -> Mask:
    """Draw a share of each label's rows in each given split, rounded up, so that no label vanishes."""
    order = np.random.default_rng(seed).permutation(len(rows.left))
    order = order[rows.left[order]]
    drawn = pd.DataFrame({"label": rows.labels().to_numpy()[order], "split": rows.split_numbers()[order]})
    grouped = drawn.groupby(["label", "split"], dropna=False, sort=False)["split"]
    # Less a little: 0.7 · 10 is 7.000000000000001.
    wanted = np.ceil(fraction * grouped.transform("size").to_numpy() - 1e-6)
    chosen = order[grouped.cumcount().to_numpy() < wanted]
    mask = np.zeros(len(rows.left), dtype=bool)
    mask[chosen] = True
    return mask
