"""Tables of any format as columns of values, with the number of each row in its file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.data.delimited import read_delimited, read_lines
from mmhf.data.remote.paths import AnyPath
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

_ROWS_AT_ONCE = 4096


@dataclass
class TableFile:
    """Some columns of a table; a row that could not be read has None in each."""

    origin: str
    columns: dict[str, list[Any]]
    rows: list[int]
    """Row numbers as a user looks them up: from 1, the header not counted."""
    malformed: dict[int, str] = field(default_factory=dict)
    """Position → why the row cannot be read."""

    def select(self, positions: list[int]) -> TableFile:
        """Return the rows at these positions."""
        columns = {name: [values[position] for position in positions] for name, values in self.columns.items()}
        malformed = {new: self.malformed[old] for new, old in enumerate(positions) if old in self.malformed}
        return TableFile(self.origin, columns, [self.rows[position] for position in positions], malformed)


class Wanted(NamedTuple):
    """Columns to read from a table (None: all), and those to read only where they are there."""

    columns: Sequence[str] | None
    optional: Sequence[str]

    def found_in(self, origin: str, names: Collection[str]) -> list[str]:
        """Return those that the table has; a missing one that is not optional is an error."""
        if self.columns is None:
            return list(dict.fromkeys(name for name in names if name))
        for name in self.columns:
            require_column(origin, name, names)
        return list(dict.fromkeys([*self.columns, *(name for name in self.optional if name in names)]))

    def completed(self, columns: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
        """Add the optional columns that were not there."""
        return {**{name: [None] * count for name in self.optional}, **columns}


def require_column(origin: str, name: str, columns: Iterable[str]) -> None:
    """Check that a table has a column.

    Args:
        origin (`str`):
            The table, for the message.
        name (`str`):
            The column.
        columns (`Iterable[str]`):
            What the table has.

    Raises:
        InputError: it has no such column; the message names the nearest.
    """
    names = [column for column in columns if column]
    if name not in names:
        guess = did_you_mean(nearest_names(name, names))
        raise InputError(f"{origin}: no column {name!r}{guess} (columns: {', '.join(names)})")


def read_table(
    path: str | AnyPath, columns: Sequence[str | None] | None = None, *, optional: Sequence[str] = ()
) -> TableFile:
    """Read columns of a table by the ending of its name: `.csv`, `.tsv`, `.jsonl` or `.parquet`.

    Args:
        path (`str`, `Path` or `RemotePath`):
            The file.
        columns (`Sequence[str | None]`, *optional*):
            The columns to read; None, for a column that the user did not name, is left out. Absent: all that have a
            name.
        optional (`Sequence[str]`, *optional*):
            Columns to read where they are there; where not, they are None throughout.

    Returns:
        `TableFile`: CSV and TSV values are strings as written, an empty field is None.

    Raises:
        InputError: the file is missing, of another kind, damaged as a whole, or lacks a column.
    """
    path = Path(path) if isinstance(path, str) else path
    readers: dict[str, Callable[[AnyPath, Wanted], TableFile]] = {
        ".csv": lambda file, wanted: _read_separated(file, wanted, ","),
        ".tsv": lambda file, wanted: _read_separated(file, wanted, "\t"),
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of table; expected a name that ends in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    named = None if columns is None else [name for name in columns if name is not None]
    return reader(path, Wanted(named, optional))


def as_text(value: Any) -> str | None:
    """Write a table's value as a string: whole floats as integers, booleans in lower case, missing values as None."""
    if isinstance(value, str):  # first, since nearly all values are
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _read_separated(path: AnyPath, wanted: Wanted, separator: str) -> TableFile:
    header, records = read_delimited(path, separator)
    places = {name: header.index(name) for name in wanted.found_in(str(path), header)}
    columns: dict[str, list[Any]] = {name: [] for name in places}
    malformed: dict[int, str] = {}
    blank = [""] * len(header)
    count = 0
    # By columns, many rows at a time: a third faster than row by row, and without keeping the other columns.
    while batch := list(islice(records, _ROWS_AT_ONCE)):
        for number, record in enumerate(batch):
            if isinstance(record, str):
                malformed[count + number] = record
                batch[number] = blank
        for name, place in places.items():
            columns[name] += [record[place] or None for record in batch]
        count += len(batch)
    return TableFile(str(path), wanted.completed(columns, count), list(range(1, count + 1)), malformed)


def _read_json_lines(path: AnyPath, wanted: Wanted) -> TableFile:
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    records: list[dict[str, Any]] = []
    malformed: dict[int, str] = {}
    for position, (_, line) in enumerate(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            record = None
            malformed[position] = f"not JSON: {error.msg} at character {error.pos + 1}"
        if not isinstance(record, dict):
            malformed.setdefault(position, "not a JSON object")
            record = {}
        records.append(record)
    found = wanted.found_in(str(path), dict.fromkeys(name for record in records for name in record))
    columns = {name: [record.get(name) for record in records] for name in found}
    return TableFile(str(path), wanted.completed(columns, len(lines)), [number for number, _ in lines], malformed)


def _read_parquet(path: AnyPath, wanted: Wanted) -> TableFile:
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else pa.BufferReader(path.read_bytes()))
        found = wanted.found_in(str(path), file.schema_arrow.names)
        table = file.read(columns=found)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {str(error).splitlines()[0]}") from error
    columns = {name: table.column(name).to_pylist() for name in found}
    return TableFile(str(path), wanted.completed(columns, table.num_rows), list(range(1, table.num_rows + 1)))
