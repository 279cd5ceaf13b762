"""Write the table of predictions: the input's columns, then the model's."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.errors import InputError

OUTPUT_SUFFIXES = (".csv", ".parquet")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise `InputError` if predictions cannot be written to this path, before any work is done."""
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; name it .csv or .parquet")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a .csv or .parquet file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name, or overwrite it")


def join_columns(inputs: Mapping[str, list[Any]], predictions: pa.Table) -> pa.Table:
    """Input columns and predictions side by side.

    An input column that has the name of a prediction, such as `label`, gets `input_` before it. Columns of bytes
    (images inside the table) are left out.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    taken = {*predictions.column_names, *inputs}
    for name, values in inputs.items():
        if any(_holds_bytes(value) for value in values):
            continue
        free = name
        while free in predictions.column_names or (free != name and free in taken):
            free = f"input_{free}"
        taken.add(free)
        columns[free] = _to_arrow(values)
    columns.update({name: predictions.column(name) for name in predictions.column_names})
    return pa.table(columns)


def write_table(table: pa.Table, path: Path, temporary: Path) -> None:
    """Write CSV or parquet, as the suffix of `path` says, to `temporary` and move it to `path` in one step."""
    if path.suffix.lower() == ".parquet":
        pq.write_table(table, temporary)
    else:
        _write_csv(table, temporary)
    temporary.replace(path)


def _write_csv(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            columns = [column.to_pylist() for column in batch.columns]
            writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value


def _holds_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _to_arrow(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # JSON lines may mix types in one column
        return pa.array([None if value is None else _as_string(value) for value in values], pa.string())


def _as_string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
