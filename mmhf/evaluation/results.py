"""The files of an evaluation: `metrics.json`, the numbers, and `evaluation.json`, what stands behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmhf.files import read_json_object, write_csv, write_json

if TYPE_CHECKING:
    from mmhf.evaluation.subgroups import ColumnSubgroups

Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]
SplitTables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Title, such as `By class` → rows of column → plain value."""
Tables = Mapping[str, SplitTables]
"""Split → its tables."""


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


def subgroup_tables(subgroups: Sequence[ColumnSubgroups]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """A table for each column whose subgroups were measured."""
    return {
        f"By {column.column}": [
            {
                "group": group.value,
                "rows": group.num_rows,
                **{name: interval.value for name, interval in group.metrics.items()},
            }
            for group in column.groups
        ]
        for column in subgroups
    }


def write_details(
    path: str | Path,
    protocols: Mapping[str, str],
    tables: Tables | None = None,
    *,
    baselines: Baselines | None = None,
) -> None:
    """Write the definitions of metrics, any tables and baselines, atomically; model cards are made of them.

    Args:
        path (`str` or `Path`): The file, usually `evaluation.json` in the run folder.
        protocols (`Mapping[str, str]`): Metric, without the split → the sentence that defines it.
        tables (`Tables`, *optional*): Beside the metrics.
        baselines (`Mapping`, *optional*): Split → name → metric → value.
    """
    kept = {
        split: {title: list(rows) for title, rows in titled.items() if rows}
        for split, titled in (tables or {}).items()
    }
    content: dict[str, Any] = {"protocols": dict(protocols), "tables": kept}
    if baselines and any(baselines.values()):
        content["baselines"] = {split: dict(named) for split, named in baselines.items() if named}
    write_json(path, content)


def read_baselines(path: str | Path) -> dict[str, dict[str, dict[str, float]]]:
    """The baselines in a file of `write_details`: split → name → metric → value; none where it has none."""
    if not Path(path).is_file():
        return {}
    found = read_json_object(Path(path)).get("baselines", {})
    return found if isinstance(found, dict) else {}


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
