"""`evaluation.json`: what stands behind metrics.json: definitions of its numbers, and tables by class or group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmhf.files import write_json

if TYPE_CHECKING:
    from mmhf.evaluation.classification import ClassificationEvaluation
    from mmhf.evaluation.subgroups import ColumnSubgroups, Subgroup

Tables = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def classification_tables(
    evaluation: ClassificationEvaluation, subgroups: Sequence[ColumnSubgroups] = ()
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The tables of one split of a classifier: by class, and by each column that was asked for."""
    tables: dict[str, Sequence[Mapping[str, Any]]] = {"By class": evaluation.per_class}
    for column in subgroups:
        tables[f"By {column.column}"] = [
            {"group": group.value, "rows": group.num_rows, **_values(group)} for group in column.groups
        ]
    return tables


def _not_empty(titled: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    return {title: list(rows) for title, rows in titled.items() if rows}


def _values(group: Subgroup) -> dict[str, float]:
    return {name: interval.value for name, interval in group.metrics.items()}


def write_details(path: str | Path, protocols: Mapping[str, str], tables: Tables | None = None) -> None:
    """Write the definitions of metrics and any tables, atomically; model cards are made of them.

    Args:
        path (`str` or `Path`): The file, usually `evaluation.json` in the run folder.
        protocols (`Mapping[str, str]`): Metric, without the split → the sentence that defines it.
        tables (`Mapping`, *optional*): Split → title, such as `By class` → rows of column → plain value.
    """
    kept = {split: _not_empty(titled) for split, titled in (tables or {}).items()}
    content = {"protocols": dict(protocols), "tables": kept}
    write_json(path, content)
