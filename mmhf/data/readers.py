"""Tables of any format, read in batches of columns, with the number of each row in its file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.data.delimited import Record, Repaired, read_delimited, read_lines, read_standard
from mmhf.data.remote.paths import AnyPath
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

Values: TypeAlias = pa.Array | pa.ChunkedArray | list[Any]
"""The values of a column: an array where they have one type, else as they are."""

_ROWS_AT_ONCE = 4096
_CLASS_NAMES = b"huggingface"
"""Key of the schema's metadata under which `datasets` keeps the names of classes."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a table; one that could not be read has None in each column."""

    columns: dict[str, Values]
    rows: list[int]
    """Row numbers as a user looks them up: from 1, the header not counted."""
    faults: dict[int, str]
    """Position in the batch → why the row cannot be read."""
    notes: dict[int, str]
    """Position in the batch → what had to be repaired to read the row."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class TableFile:
    """Some columns of a table, for tables that are passed on row by row."""

    origin: str
    columns: dict[str, Values]
    """Arrow holds them; only values of several types, which JSON may have in one column, are a list."""
    rows: list[int]
    malformed: dict[int, str] = field(default_factory=dict)
    """Position → why the row cannot be read."""

    @classmethod
    def of(cls, origin: str, columns: Mapping[str, Sequence[Any]]) -> TableFile:
        """A table of equally long columns, whose rows are numbered from 1."""
        count = len(next(iter(columns.values()), ()))
        return cls(
            origin, {name: _compact(list(values)) for name, values in columns.items()}, list(range(1, count + 1))
        )

    def value(self, name: str, position: int) -> Any:
        """A row's value in a column."""
        found = self.columns[name][position]
        return found.as_py() if isinstance(found, pa.Scalar) else found

    def values(self, name: str) -> list[Any]:
        """A column's values."""
        return _as_list(self.columns[name])

    def select(self, positions: list[int]) -> TableFile:
        """Return the rows at these positions."""
        columns: dict[str, Values] = {
            name: [values[position] for position in positions] if isinstance(values, list) else values.take(positions)
            for name, values in self.columns.items()
        }
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

    def completed(self, columns: dict[str, Values], count: int) -> dict[str, Values]:
        """Add the optional columns that were not there."""
        return {**{name: pa.nulls(count, pa.string()) for name in self.optional}, **columns}


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


def read_batches(
    path: str | AnyPath, columns: Sequence[str | None] | None = None, *, optional: Sequence[str] = ()
) -> list[Batch]:
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
        `list[Batch]`: at least one. CSV and TSV values are strings as written, an empty field is None.

    Raises:
        InputError: the file is missing, of another kind, damaged as a whole, or lacks a column.
    """
    path = Path(path) if isinstance(path, str) else path
    readers: dict[str, Callable[[AnyPath, Wanted], Iterable[Batch]]] = {
        ".csv": lambda file, wanted: _read_separated(file, wanted, None),
        ".tsv": lambda file, wanted: _read_separated(file, wanted, "\t"),
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None and not path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if reader is None:
        raise InputError(f"{path}: unknown kind of table; expected a name that ends in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    named = None if columns is None else [name for name in columns if name is not None]
    wanted = Wanted(named, optional)
    return [replace(batch, columns=wanted.completed(batch.columns, len(batch))) for batch in reader(path, wanted)]


def read_table(
    path: str | AnyPath, columns: Sequence[str | None] | None = None, *, optional: Sequence[str] = ()
) -> TableFile:
    """`read_batches` as one table.

    Args:
        path, columns, optional:
            As `read_batches` takes them.
    """
    table = TableFile(str(path), {}, [])
    parts: dict[str, list[Values]] = {}
    for batch in read_batches(path, columns, optional=optional):
        table.malformed.update({len(table.rows) + position: reason for position, reason in batch.faults.items()})
        table.rows += batch.rows
        for name, values in batch.columns.items():
            parts.setdefault(name, []).append(values)
    table.columns = {name: _joined(of_column) for name, of_column in parts.items()}
    return table


def _joined(parts: Sequence[Values]) -> Values:
    kinds = {None if isinstance(part, list) else part.type for part in parts}
    if len(kinds) == 1 and None not in kinds:
        joined = pa.chunked_array(parts)
        return joined.cast(pa.string()) if pa.types.is_large_string(joined.type) else joined
    return _compact([value for part in parts for value in _as_list(part)])


def _compact(values: list[Any]) -> Values:
    """Texts as an array; other values, whose types Arrow would change, as they are."""
    if all(value is None or isinstance(value, str) for value in values):
        with contextlib.suppress(UnicodeEncodeError):  # halves of UTF-16 pairs, which JSON can hold
            return pa.array(values, pa.string())
    return values


def _as_list(values: Values) -> list[Any]:
    return values if isinstance(values, list) else values.to_pylist()


def _read_separated(path: AnyPath, wanted: Wanted, separator: str | None) -> list[Batch]:
    table = read_standard(path, separator)
    if table is not None and len(table):
        found = wanted.found_in(str(path), table.column_names)
        batches, count = [], 0
        for part in table.to_batches():
            rows = list(range(count + 1, count + len(part) + 1))
            batches.append(Batch({name: part.column(name) for name in found}, rows, {}, {}))
            count += len(part)
        return batches

    def start(header: list[str]) -> Callable[[list[Record]], Batch]:
        places = {name: header.index(name) for name in wanted.found_in(str(path), header)}
        blank = [""] * len(header)
        count = 0

        def take(records: list[Record]) -> Batch:
            nonlocal count
            faults = {number: record for number, record in enumerate(records) if isinstance(record, str)}
            notes = {number: record.note for number, record in enumerate(records) if isinstance(record, Repaired)}
            columns = list(zip(*(blank if isinstance(record, str) else record for record in records), strict=True))
            first, count = count + 1, count + len(records)
            arrays: dict[str, Values] = {
                name: pa.array([value or None for value in columns[place]] if columns else [], pa.string())
                for name, place in places.items()
            }
            return Batch(arrays, list(range(first, count + 1)), faults, notes)

        return take

    header, taken = read_delimited(path, separator, start)
    return taken or [start(header)([])]


def _read_json_lines(path: AnyPath, wanted: Wanted) -> Iterator[Batch]:
    lines = read_lines(path)
    records: list[tuple[int, dict[str, Any] | str]] | None = None
    if lines and "".join(lines[:2]).lstrip().startswith("["):
        records = _json_array("\n".join(lines))
    if records is None:
        records = [(number, _parse_json(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    names = dict.fromkeys(name for _, record in records if isinstance(record, dict) for name in record)
    if records and not names:
        raise InputError(f"{path}, row {records[0][0]}: {records[0][1]}; no row of the file can be read")
    found = wanted.found_in(str(path), names)
    for start in range(0, max(len(records), 1), _ROWS_AT_ONCE):
        part = records[start : start + _ROWS_AT_ONCE]
        faults = {position: record for position, (_, record) in enumerate(part) if isinstance(record, str)}
        values = [{} if isinstance(record, str) else record for _, record in part]
        yield Batch(
            {name: [record.get(name) for record in values] for name in found},
            [number for number, _ in part],
            faults,
            {},
        )


def _json_array(text: str) -> list[tuple[int, dict[str, Any] | str]] | None:
    """The records of a file that is one JSON array, numbered from 1; None where it is something else."""
    try:
        array = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(array, list) or not any(isinstance(record, dict) for record in array):
        return None
    return [
        (number, record if isinstance(record, dict) else "not a JSON object")
        for number, record in enumerate(array, start=1)
    ]


def _parse_json(line: str) -> dict[str, Any] | str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        return "not JSON: it is nested too deep"
    except ValueError as error:  # a number of more digits than Python reads
        return f"not JSON: {error}"
    return record if isinstance(record, dict) else "not a JSON object"


def _read_parquet(path: AnyPath, wanted: Wanted) -> Iterator[Batch]:
    count = 0
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else pa.BufferReader(path.read_bytes()))
        found = wanted.found_in(str(path), file.schema_arrow.names)
        names = _class_names(file.schema_arrow.metadata or {})
        for part in file.iter_batches(_ROWS_AT_ONCE, columns=found):
            columns: dict[str, Values] = {
                name: _named(part.column(name), names[name]) if name in names else part.column(name) for name in found
            }
            yield Batch(columns, list(range(count + 1, count + len(part) + 1)), {}, {})
            count += len(part)
        if not count:
            yield Batch({name: pa.nulls(0, file.schema_arrow.field(name).type) for name in found}, [], {}, {})
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {str(error).splitlines()[0]}") from error


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column → names of its classes, where `datasets` has written the file."""
    try:
        features = json.loads(metadata.get(_CLASS_NAMES, b"{}"))["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # another program's
        return {}


def _named(values: pa.Array, names: list[str]) -> pa.Array:
    """Class ids as names; -1 marks rows without a label."""
    ids = values.to_pylist()
    return pa.array([None if i is None or not 0 <= i < len(names) else names[i] for i in ids], pa.string())
