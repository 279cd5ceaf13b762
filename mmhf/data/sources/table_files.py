"""Tables of any format as columns of values, with the number of each row in its file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.data.sources.delimited import read_delimited, read_lines
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names


@dataclass
class TableFile:
    """A table in memory, column by column; a row that could not be read has None in every column."""

    origin: str
    columns: dict[str, list[Any]]
    rows: list[int]
    """Row numbers as a user looks them up: from 1, the header not counted."""
    malformed: dict[int, str] = field(default_factory=dict)
    """Position → why the row cannot be read."""

    def column(self, name: str) -> list[Any]:
        """Return a column's values.

        Raises:
            InputError: there is no such column.
        """
        require_column(self.origin, name, self.columns)
        return self.columns[name]

    def select(self, positions: list[int]) -> TableFile:
        """Return the rows at these positions."""
        columns = {name: [values[position] for position in positions] for name, values in self.columns.items()}
        malformed = {new: self.malformed[old] for new, old in enumerate(positions) if old in self.malformed}
        return TableFile(self.origin, columns, [self.rows[position] for position in positions], malformed)


def require_column(origin: str, name: str, columns: Any) -> None:
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


def read_table(path: str | Path) -> TableFile:
    """Read a table by the ending of its name: `.csv`, `.tsv`, `.jsonl` or `.parquet`.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `TableFile`: CSV and TSV values are strings as written, an empty field is None.

    Raises:
        InputError: the file is missing, of another kind, or damaged as a whole.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], TableFile]] = {
        ".csv": lambda file: _read_separated(file, ","),
        ".tsv": lambda file: _read_separated(file, "\t"),
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of table; expected a name that ends in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return reader(path)


def as_text(value: Any) -> str | None:
    """Write a table's value as a string: whole floats as integers, booleans in lower case, missing values as None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _read_separated(path: Path, separator: str) -> TableFile:
    header, records = read_delimited(path, separator)
    malformed = {position: record for position, record in enumerate(records) if isinstance(record, str)}
    columns: dict[str, list[Any]] = {}
    for number, name in enumerate(header):
        columns[name] = [None if isinstance(record, str) else record[number] or None for record in records]
    return TableFile(str(path), columns, list(range(1, len(records) + 1)), malformed)


def _read_json_lines(path: Path) -> TableFile:
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
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return TableFile(str(path), columns, [number for number, _ in lines], malformed)


def _read_parquet(path: Path) -> TableFile:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {str(error).splitlines()[0]}") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return TableFile(str(path), columns, list(range(1, table.num_rows + 1)))
