"""Reading CSV and TSV files so that no row is lost to a stray quote, and a row that cannot be read is named."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from mmhf.data.remote.paths import AnyPath
from mmhf.errors import InputError

_LONGEST_RECORD = 200
"""Lines that one quoted field may span."""


def read_delimited(path: AnyPath, separator: str) -> tuple[list[str], Iterator[list[str] | str]]:
    """Read a file of separated values with a header.

    Quotes are read as pandas and spreadsheets write them (doubled inside a quoted field, which may span lines). Where
    that does not give as many fields as the header has, but the bare separators do, the quotes are part of the text,
    so that a title that begins with a lone quote swallows neither its neighbours nor the rows below it.

    Args:
        path (`Path` or `RemotePath`):
            The file, in UTF-8.
        separator (`str`):
            `","` or `"\\t"`.

    Returns:
        `tuple`: the header, and for each row its fields, or the reason why it cannot be read. Empty lines are no rows.

    Raises:
        InputError: the file is missing, not UTF-8, or has no header.
    """
    lines = read_lines(path)
    if not lines or not lines[0].strip():
        raise InputError(f"{path}: the file does not begin with a header line")
    header = _parse(lines[0], separator) or lines[0].split(separator)
    return header, _records(lines[1:], separator, len(header))


def read_lines(path: AnyPath) -> list[str]:
    """Read a text file in UTF-8, split at line feeds alone.

    Args:
        path (`Path` or `RemotePath`):
            The file.

    Returns:
        `list[str]`: lines without their ends.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8") from error
    # Not splitlines(): it also splits at characters that titles may hold, such as U+2028.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _parse(record: str, separator: str) -> list[str] | None:
    if '"' not in record:
        return record.split(separator)
    try:
        # Strict: an open quote or text after a closing one is an error, not a guess.
        records = list(csv.reader([record], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _records(lines: list[str], separator: str, width: int) -> Iterator[list[str] | str]:
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.strip():
            continue
        fields = _parse(line, separator)
        if fields is None:
            fields, used = _join_lines(lines, number - 1, separator, width)
            number += used
        if fields is not None and len(fields) == width:
            yield fields
            continue
        bare = line.split(separator)
        yield bare if len(bare) == width else f"{len(fields or bare)} fields instead of {width}"


def _join_lines(lines: list[str], start: int, separator: str, width: int) -> tuple[list[str] | None, int]:
    """Try to read a record whose quoted field spans lines; returns its fields and how many more lines it took."""
    record = lines[start]
    # A line with all its fields is most likely a row with a lone quote, above all when the next one is a row too.
    may_be_whole = len(record.split(separator)) == width
    for used, line in enumerate(lines[start + 1 : start + _LONGEST_RECORD], start=1):
        alone = _parse(line, separator)
        if may_be_whole and alone is not None and len(alone) == width:
            break
        record += "\n" + line
        fields = _parse(record, separator)
        if fields is not None and len(fields) == width:
            return fields, used
    return None, 0
