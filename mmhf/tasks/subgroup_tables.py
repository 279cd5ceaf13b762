"""The columns by whose values a task reports its numbers, and tables of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.table import extra_column
from mmhf.evaluation.subgroups import MISSING
from mmhf.recipe.data_sources import JoinedDataSection
from mmhf.recipe.schema import RecipeBase


def subgroup_columns(recipe: RecipeBase) -> list[str]:
    """The column that says which of several joined data sets a row is of, and those that the recipe names."""
    of_dataset = [recipe.data.column] if isinstance(recipe.data, JoinedDataSection) else []
    return list(dict.fromkeys([*of_dataset, *recipe.evaluation.subgroups]))


def subgroup_values(recipe: RecipeBase, rows: object) -> dict[str, list[str]]:
    """Column → its value in each row of a split, by whose values numbers are reported; none of a stream."""
    if not isinstance(rows, datasets.Dataset):
        return {}
    columns = {name: rows[extra_column(name)][:] for name in subgroup_columns(recipe)}
    return {name: [MISSING if value is None else value for value in values] for name, values in columns.items()}


def tables_by_value(
    columns: Mapping[str, Sequence[str]], measure: Callable[[NDArray[np.int64]], Mapping[str, float] | None]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """A table for each column, by its title: the numbers of each of its values, that of most rows first.

    Args:
        columns (`Mapping[str, Sequence[str]]`):
            Column → its value in each row of a split.
        measure (`Callable`):
            Places of some rows → their numbers; None where nothing can be measured of them.
    """
    tables: dict[str, Sequence[Mapping[str, Any]]] = {}
    for column, given in columns.items():
        names, value_of, counts = np.unique(np.asarray(given, dtype=object), return_inverse=True, return_counts=True)
        rows = []
        for value in np.argsort(-counts, kind="stable").tolist():
            numbers = measure(np.flatnonzero(value_of == value))
            if numbers is not None:
                rows.append({column: names[value], "rows": int(counts[value]), **numbers})
        if rows:
            tables[f"By {column}"] = rows
    return tables
