"""The files of an evaluation: `metrics.json`, the numbers, and `evaluation.json`, what stands behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmhf.files import write_csv, write_json

if TYPE_CHECKING:
    from mmhf.evaluation.classification import ClassificationEvaluation
    from mmhf.evaluation.subgroups import ColumnSubgroups

Tables = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def write_metrics(path: str | Path, by_split: Mapping[str, Mapping[str, float]]) -> None:
    """Write `{"validation_accuracy": 0.91, ...}`, atomically.

    Args:
        path (`str` or `Path`): the file, usually `metrics.json` in the run folder.
        by_split (`Mapping[str, Mapping[str, float]]`): split name -> metric name, without the split -> value. A value
            that is not finite (the loss of a diverged run) is written as null, because JSON has no NaN.
    """
    flat = {
        f"{split}_{name}": (value if isinstance(value, int) else float(value)) if math.isfinite(value) else None
        for split, metrics in by_split.items()
        for name, value in metrics.items()
    }
    write_json(path, flat)


def classification_tables(
    evaluation: ClassificationEvaluation, subgroups: Sequence[ColumnSubgroups] = ()
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The tables of one split of a classifier: by class, and by each column that was asked for."""
    tables: dict[str, Sequence[Mapping[str, Any]]] = {"By class": evaluation.per_class}
    for column in subgroups:
        tables[f"By {column.column}"] = [
            {
                "group": group.value,
                "rows": group.num_rows,
                **{name: interval.value for name, interval in group.metrics.items()},
            }
            for group in column.groups
        ]
    return tables


def write_details(path: str | Path, protocols: Mapping[str, str], tables: Tables | None = None) -> None:
    """Write the definitions of metrics and any tables, atomically; model cards are made of them.

    Args:
        path (`str` or `Path`): The file, usually `evaluation.json` in the run folder.
        protocols (`Mapping[str, str]`): Metric, without the split → the sentence that defines it.
        tables (`Mapping`, *optional*): Split → title, such as `By class` → rows of column → plain value.
    """
    kept = {
        split: {title: list(rows) for title, rows in titled.items() if rows}
        for split, titled in (tables or {}).items()
    }
    content = {"protocols": dict(protocols), "tables": kept}
    write_json(path, content)


def write_subgroups(path: str | Path, by_split: Mapping[str, Sequence[ColumnSubgroups]]) -> None:
    """Write every subgroup's metrics as CSV: split, column, value, rows, metric, value, low, high; atomically."""
    rows = [
        [split, each.column, group.value, group.num_rows, metric]
        + [f"{number:.6f}" for number in (interval.value, interval.low, interval.high)]
        for split, columns in by_split.items()
        for each in columns
        for group in each.groups
        for metric, interval in group.metrics.items()
    ]
    write_csv(path, ["split", "column", "group", "rows", "metric", "value", "low", "high"], rows)
