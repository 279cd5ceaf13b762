"""Write a job's table: the input's columns unchanged, then the new ones, in a form that all readers parse alike."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.damage import content_hash
from mmhf.data.readers import Values
from mmhf.errors import InputError
from mmhf.files import read_json_object

# What some reader may take for a separator, the end of a line, or blanks to strip, if it is not in quotes.
_SEAL = "seal"
_NEEDS_QUOTES = re.compile(r'[",;|\t\r\n\0]|^\s|\s$|^\ufeff|^$')
_FORMULA = re.compile(r"^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]")
_NUMBER = re.compile(r"^\s*[-+]?(\d+([.,]\d+)*|[.,]\d+)([eE][-+]?\d+)?\s*$")


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Raise `InputError` if a table cannot be written to this path, before any work is done."""
    names = " or ".join(suffixes)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; name it {names}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a {names} file")


def passed_columns(columns: Mapping[str, Values], made: Collection[str], *, nested: bool) -> pa.Table:
    """The input's columns in the form they are written in.

    A column with the name of a new one, such as `label`, gets the prefix `input_`. Columns of bytes (images
    inside the table) are left out. What Arrow cannot hold, such as mixed types or 2**70, becomes JSON throughout its
    column, and half a surrogate pair its escape, `\\ud83d`.

    Args:
        columns (`Mapping[str, Values]`): Values by column, equally many.
        made (`Collection[str]`): Names of the new columns.
        nested (`bool`): Whether lists and dicts are written as such; if not, they become JSON.
    """
    passed: dict[str, pa.Array | pa.ChunkedArray] = {}
    taken = {*made, *columns}
    for name, values in columns.items():
        is_text = not isinstance(values, list) and pa.types.is_string(values.type)
        if not is_text:
            values = values if isinstance(values, list) else values.to_pylist()
            if any(isinstance(each.get("bytes") if isinstance(each, dict) else each, bytes) for each in values):
                continue
        free = _encodable(name)
        while free in made or (free != name and free in taken):
            free = f"input_{free}"
        taken.add(free)
        passed[free] = values if is_text else _to_arrow(values, nested=nested)
    return pa.table(passed)


def _to_arrow(values: Sequence[Any], *, nested: bool) -> pa.Array | pa.ChunkedArray:
    try:
        array = pa.array(values)
        if nested or not pa.types.is_nested(array.type):
            # Parquet does not take all that Arrow does: no dicts without keys, and no nesting without end.
            _through_parquet(pa.schema([("", array.type)]))
            return array
    except (pa.ArrowException, OSError, OverflowError, RecursionError, TypeError, ValueError):
        pass
    return pa.array([None if value is None else _as_string(value) for value in values], pa.string())


def _as_string(value: object) -> str:
    if isinstance(value, str):
        return _encodable(value)
    try:
        return _encodable(json.dumps(value, ensure_ascii=False, default=str))
    except (RecursionError, ValueError):
        return f"(a {type(value).__name__} that is too large to write)"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _through_parquet(schema: pa.Schema) -> pq.ParquetFile:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pq.ParquetFile(pa.BufferReader(sink.getvalue()))


class TableWriter(Protocol):
    """Writes a table in parts."""

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Write what is still to be written."""
        ...


def open_writer(path: Path, schema: pa.Schema, *, suffix: str, defuse_formulas: bool = False) -> TableWriter:
    """A writer of CSV or parquet.

    Args:
        path (`Path`): The file.
        schema (`pa.Schema`): Its columns.
        suffix (`str`): `.csv` or `.parquet`.
        defuse_formulas (`bool`, defaults to `False`): CSV only; see [`CsvWriter`].
    """
    if suffix == ".csv":
        return CsvWriter(path, schema.names, defuse_formulas=defuse_formulas)
    leaves = [column.path for column in _through_parquet(schema).schema]
    # Random floats neither compress nor repeat: trying costs time, and so does reading them back.
    embeddings = {f"{each.name}.list.element" for each in schema if isinstance(each.type, pa.FixedSizeListType)}
    writer: TableWriter = pq.ParquetWriter(
        path,
        schema,
        compression={leaf: "none" if leaf in embeddings else "snappy" for leaf in leaves},
        use_dictionary=[leaf for leaf in leaves if leaf not in embeddings],
        write_page_checksum=True,
    )
    return writer


class CsvWriter:
    """Writes CSV that Python's `csv`, pandas, `datasets` and mmhf split in the same way.

    A text with a separator, a quote, any kind of line break or blanks at its ends is put in quotes; an empty text is
    `""`, and a missing value nothing. Lists and dicts are written as JSON.

    Args:
        path (`Path`): The file.
        names (`Sequence[str]`): Its columns.
        defuse_formulas (`bool`, defaults to `False`): Put `'` before each text that a spreadsheet would run as a
            formula (`=cmd|…`, `@SUM(…)`); numbers stay.
    """

    def __init__(self, path: Path, names: Sequence[str], *, defuse_formulas: bool = False) -> None:
        self._defuse = defuse_formulas
        self._stream = path.open("w", encoding="utf-8", newline="")
        self._stream.write(",".join(map(self._cell, names)) + "\n")

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""
        columns = [[self._cell(value) for value in column.to_pylist()] for column in table.columns]
        self._stream.writelines(",".join(cells) + "\n" for cells in zip(*columns, strict=True))

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _cell(self, value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            is_formula = self._defuse and _FORMULA.match(value) and not _NUMBER.match(value)
            text = f"'{value}" if is_formula else value
        elif isinstance(value, list | dict):
            text = json.dumps(value, ensure_ascii=False, default=str)
        else:
            text = str(value)
        return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def read_record(output: Path) -> dict[str, Any] | None:
    """What a job's output was made from (`identity`, hashes of image states and digests) and its `tally`.

    None for a file that no job wrote, or that was changed since, or whose record was.
    """
    path = record_path(output)
    if not output.is_file() or not path.is_file():
        return None
    try:
        record = read_json_object(path)
    except InputError:
        return None
    is_whole = record == sealed({name: value for name, value in record.items() if name != _SEAL})
    return record if is_whole and record["output"] == content_hash(output) else None


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its own hash."""
    return {**record, _SEAL: hashlib.sha256(json.dumps(record).encode()).hexdigest()}


def record_path(output: Path) -> Path:
    """The file beside an output that says what it was made from."""
    return output.with_name(f"{output.name}.job.json")


def refuse_existing(output: Path) -> None:
    """Raise `InputError` if there is a file that no job wrote, before anything is loaded for one that would."""
    if output.exists() and read_record(output) is None:
        raise InputError(f"{output}: exists already; choose another name, or overwrite it")
