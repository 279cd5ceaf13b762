"""Numbers to learn: cells of a table, as texts until their rows are judged."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.columns import codes_of
from mmhf.data.images import shorten
from mmhf.errors import InputError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_LARGEST = float(np.finfo(np.float32).max)
"""Models compute with 32 bits."""


def as_lists(columns: Sequence[pa.Array]) -> pa.FixedSizeListArray:
    """Columns of texts, (N,) each, as one column of lists."""
    width, count = len(columns), len(columns[0])
    places = np.arange(width * count).reshape(width, count).T.reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.concat_arrays(columns).take(pa.array(places)), width)


def numbers_in(lists: pa.Array | pa.ChunkedArray, width: int) -> NDArray[np.float64]:
    """(N, width) of the numbers in a column of lists of texts; NaN for what is none."""
    array = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    codes, values = codes_of(array.flatten())
    numbers = np.array([*map(_number, values), np.nan], dtype=np.float64)  # the last one for empty cells, of code -1
    found: NDArray[np.float64] = numbers[codes].reshape(-1, width)
    return found


def fault_of_number(column: str, cell: str | None) -> str | None:
    """Why a cell is no number to learn; None: it is one."""
    if cell is None:
        return f"{column}: the number is missing"
    if not np.isnan(_number(cell)):
        return None
    if _NOT_FINITE.fullmatch(cell):
        return f"{column} is {shorten(cell)}, and not a finite number"
    if _NUMBER.fullmatch(cell):
        return f"{column} is {shorten(cell)}, larger than a model can compute with ({_LARGEST:.3g})"
    hint = f"; write it as {cell.replace(',', '.')}" if _DECIMAL_COMMA.fullmatch(cell) else ""
    return f"{column} is {shorten(cell)}, and not a number{hint}"


def _number(cell: str) -> float:
    if not _NUMBER.fullmatch(cell):
        return np.nan
    number = float(cell)
    return number if abs(number) <= _LARGEST else np.nan


def number_columns(own: Sequence[str], names: Sequence[str] | None, *, origin: str) -> dict[str, int]:
    """Column → its place among a model's numbers, or, without `names`, its own.

    A single number may have another name than the model's.

    Raises:
        InputError: The model has other numbers.
    """
    if names is None or (len(own) == 1 and len(names) == 1):
        return {name: place for place, name in enumerate(own)}
    if sorted(own) != sorted(names):
        raise InputError(f"{origin}: the model's numbers are {', '.join(names)}, the data's are {', '.join(own)}")
    return {name: names.index(name) for name in own}
