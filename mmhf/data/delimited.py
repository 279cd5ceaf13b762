"""CSV and TSV files: read as the standard says, and repaired line by line only where they break it."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from mmhf.data.remote.paths import AnyPath
from mmhf.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_RECORD = 200
"""Lines that one quoted field may span in a file that has to be repaired."""
_ROWS_AT_ONCE = 8192
_HEADER, _BLOCK = 1 << 16, 1 << 24
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_IN_TEXT = re.compile(r"[\0-\x08\x0e-\x1f]")
_LINE_END = re.compile(r"\r\n|\n|\r")
_QUOTES_KEPT = "its quotes do not open and close fields; they are read as part of the text"


class Repaired(list[str]):
    """The fields of a row that breaks the standard, and how it was read all the same."""

    def __init__(self, fields: list[str], note: str) -> None:
        super().__init__(fields)
        self.note = note


Record = list[str] | str
"""The fields of a row, or why it cannot be read."""


class _NotStandardError(Exception):
    """The file breaks RFC 4180."""


def read_delimited(
    path: AnyPath, separator: str | None, start: Callable[[list[str]], Callable[[list[Record]], T]]
) -> tuple[list[str], list[T]]:
    """Read a file of separated values with a header.

    Quotes are read as RFC 4180 says: a field that begins with one ends with one, in between they are doubled, and line
    ends and separators are text. Only where a file breaks that are its rows read line by line: where the bare
    separators give as many fields as the header has, the quotes are part of the text, so that a title that begins with
    a lone quote swallows neither its neighbours nor the rows below it. Such a row is `Repaired`.

    Args:
        path (`Path` or `RemotePath`):
            The file, in UTF-8, UTF-16 with a byte order mark, or cp1252 where it cannot be UTF-8. Lines end with LF,
            CRLF or CR.
        separator (`str`, *optional*):
            Between fields; absent: the one of comma, semicolon and tab that cuts the header.
        start (`Callable`):
            Takes the header, and returns what takes some thousand rows at a time. It may be called twice: what was
            taken before a file turned out to break the standard is forgotten.

    Returns:
        `tuple`: the header, and what was made of the rows. Empty lines are no rows.

    Raises:
        InputError: the file is missing, its text cannot be read, it has no header, or a column is named twice.
    """
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path}: the file does not begin with a header line")
    separator = separator or _find_separator(text)
    header: list[str] = []
    for parse in (_standard, _by_record, _by_line):
        try:
            with _fields_of_any_length():
                records = parse(text, separator)
                header = next(records)[0]  # type: ignore[assignment]
                _check_header(header, path)
                take = start(header)
                return header, [take(batch) for batch in records if batch]
        except _NotStandardError:
            continue
    raise AssertionError("the last way reads any text")


def read_standard(path: AnyPath, separator: str | None) -> pa.Table | None:
    """Read a file of separated values that keeps to RFC 4180, several times as fast as `read_delimited`.

    Args:
        path, separator:
            As `read_delimited` takes them.

    Returns:
        `pa.Table` or `None`: columns of strings, an empty field is null; None where the file breaks the standard or
        has fewer than two columns.

    Raises:
        InputError: as `read_delimited`.
    """
    text = read_text(path)
    separator = separator or _find_separator(text)
    content = text.encode()
    with _fields_of_any_length():
        header = next(csv.reader(io.StringIO(text[:_HEADER], newline=""), delimiter=separator), [])
    if len(header) < 2 or "\0" in text or not _quotes_are_standard(content, separator):
        return None
    _check_header(header, path)
    try:
        return arrow_csv.read_csv(
            pa.BufferReader(content),
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in header},
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid:  # a row of another width, or a field that no block holds
        return None


def _quotes_are_standard(content: bytes, separator: str) -> bool:
    """Whether every quote opens a field, closes one, or is doubled in one."""
    characters = np.frombuffer(b"\n" + content + b"\n", np.uint8)
    quotes = np.flatnonzero(characters == ord('"'))
    if len(quotes) % 2:
        return False
    ends = np.isin(np.arange(256), [ord(character) for character in ("\n", "\r", separator)])
    # A closing quote with an opening one right behind it is a doubled one.
    doubled = np.diff(quotes)[1::2] == 1
    opens, closes = ends[characters[quotes[::2] - 1]], ends[characters[quotes[1::2] + 1]]
    opens[1:] |= doubled
    closes[:-1] |= doubled
    return bool(opens.all() and closes.all())


def read_text(path: AnyPath) -> str:
    """Read a text file in UTF-8, UTF-16 or UTF-32 with a byte order mark, or cp1252.

    Args:
        path (`Path` or `RemotePath`):
            The file.

    Raises:
        InputError: it cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from error
    encoding = next((name for mark, name in _BOMS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if encoding == "utf-8":
            try:
                text = content.decode("cp1252")
            except UnicodeDecodeError:
                text = "\0"
            if not _NOT_IN_TEXT.search(text):
                _name_cp1252(str(path), line, len(content))
                return text
        raise InputError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8") from error


@functools.lru_cache(maxsize=1024)
def _name_cp1252(path: str, line: int, size: int) -> None:
    """Once for each file of that size, however often it is read."""
    logger.warning("%s:%d: the file is not UTF-8 but cp1252 (Windows), and read as such", path, line)


def read_lines(path: AnyPath) -> list[str]:
    """Read a text file, split at line feeds alone.

    Args:
        path (`Path` or `RemotePath`):
            The file.

    Returns:
        `list[str]`: lines without their ends.

    Raises:
        InputError: the file cannot be read.
    """
    # Not splitlines(): it also splits at characters that titles may hold, such as U+2028.
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _find_separator(text: str) -> str:
    """The separator that the header has most of, outside quotes; a comma where it has none."""
    header = re.sub(r'"[^"]*"', "", _LINE_END.split(text, maxsplit=1)[0])
    return max(",;\t", key=header.count)


def _check_header(header: list[str], path: AnyPath) -> None:
    twice = next((name for number, name in enumerate(header) if name and name in header[:number]), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are named {twice!r}; rename one of them")


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Python's csv module refuses fields of more than 131,072 characters otherwise."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _standard(text: str, separator: str) -> Iterator[list[Record]]:
    """The header alone, then batches of rows, all as the standard says and as wide as the header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next((record for record in reader if any(record)), [])
        yield [header]
        width = {len(header)}
        while batch := list(islice(reader, _ROWS_AT_ONCE)):
            if set(map(len, batch)) != width:
                batch = [record for record in batch if not _is_blank(record, len(header))]
                if not set(map(len, batch)) <= width:
                    raise _NotStandardError
            yield batch  # type: ignore[misc]
    except csv.Error as error:
        raise _NotStandardError from error


def _is_blank(record: list[str], width: int) -> bool:
    """An empty line, or one of blanks; in a table of one column, an empty field is a row only when it is quoted."""
    return not record or (len(record) == 1 and width > 1 and not record[0].strip())


def _by_record(text: str, separator: str) -> Iterator[list[Record]]:
    """As `_standard`; a line of its own with too few or too many fields is a row that cannot be read."""
    lines = io.StringIO(text, newline="").readlines()
    reader = csv.reader(lines, delimiter=separator, strict=True)
    width, started = 0, 0
    batch: list[Record] = []
    try:
        for record in reader:
            spanned = lines[started : reader.line_num]
            started = reader.line_num
            if _is_blank(record, width):
                continue
            if not width:
                width = len(record)
                yield [record]
            elif len(record) == width:
                batch.append(record)
            elif len(spanned) > 1:
                raise _NotStandardError
            else:
                batch.append(_bare(spanned[0].rstrip("\r\n"), separator, width, len(record)))
            if len(batch) == _ROWS_AT_ONCE:
                yield batch
                batch = []
    except csv.Error as error:
        raise _NotStandardError from error
    yield batch


def _bare(line: str, separator: str, width: int, parsed: int | None) -> Record:
    """The row of a line whose quotes mean nothing, when it then has all its fields."""
    fields = line.split(separator)
    if len(fields) == width:
        return Repaired(fields, _QUOTES_KEPT) if '"' in line else fields
    return f"{len(fields) if parsed is None else parsed} fields instead of {width}"


def _by_line(text: str, separator: str) -> Iterator[list[Record]]:
    """Row by row, where quotes do not tell rows apart for certain."""
    lines = _LINE_END.split(text)
    number = next(number for number, line in enumerate(lines) if line.strip())
    header = _parse(lines[number], separator) or lines[number].split(separator)
    yield [header]
    number += 1
    batch: list[Record] = []
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.strip():
            continue
        fields = _parse(line, separator)
        if fields is None:
            fields, used = _join_lines(lines, number - 1, separator, len(header))
            number += used
        if fields is not None and len(fields) == len(header):
            batch.append(fields)
        else:
            batch.append(_bare(line, separator, len(header), None if fields is None else len(fields)))
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    yield batch


def _parse(record: str, separator: str) -> list[str] | None:
    if '"' not in record:
        return record.split(separator)
    try:
        # Strict: an open quote or text after a closing one is an error, not a guess.
        records = list(csv.reader([record], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _join_lines(lines: list[str], start: int, separator: str, width: int) -> tuple[list[str] | None, int]:
    """Try to read a record whose quoted field spans lines; returns its fields and how many more lines it took.

    A line with all its fields is most likely a row with a lone quote when the next one is a row, too. A text of two
    lines can look like that by chance where commas separate, hardly where tabs do.
    """
    record = lines[start]
    may_be_whole = len(record.split(separator)) == width
    allowed = 0 if separator == "\t" else 1
    for used, line in enumerate(lines[start + 1 : start + _LONGEST_RECORD], start=1):
        alone = _parse(line, separator)
        if may_be_whole and alone is not None and len(alone) == width and used > allowed:
            break
        record += "\n" + line
        fields = _parse(record, separator)
        if fields is not None and len(fields) == width:
            return fields, used
    return None, 0
