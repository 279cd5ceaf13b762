"""What the values of a label column mean: one label is written one way over all splits."""

from __future__ import annotations

import ast
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.columns import codes_of
from mmhf.data.images import shorten
from mmhf.data.table import SourceTable
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

logger = logging.getLogger(__name__)

_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_TRUTH = ("true", "false")
_NESTED = re.compile(r"[\[({].*[\])}]", re.DOTALL)
_LEAST_ROWS = 10
"""Of fewer rows it means nothing that each has a label of its own."""
_SHOWN = 5


def unify_labels(values: Sequence[str]) -> dict[str, str]:
    """Find the label that each value of a column stands for.

    Unicode is brought into its composed form (NFC), `True` and `FALSE` into small letters, and where all labels are
    whole numbers, or the whole number itself is a label too, `1.0` is `1`.

    Args:
        values (`Sequence[str]`):
            The distinct values.

    Returns:
        `dict[str, str]`: value → label.
    """
    composed = {value: unicodedata.normalize("NFC", value) for value in values}
    whole = {text: match[1] for text in composed.values() if (match := _WHOLE.fullmatch(text))}
    present = set(composed.values())
    all_whole = all(text in whole or text.lstrip("+-").isdecimal() for text in present)
    unified = {}
    for value, text in composed.items():
        if text.lower() in _TRUTH:
            text = text.lower()
        elif text in whole and (all_whole or whole[text] in present):
            text = whole[text]
        unified[value] = text
    return unified


def written_one_way(values: Sequence[str], known: Sequence[str]) -> list[str]:
    """The label of each distinct value, written as in `known` where a recipe or source writes it in another way."""
    unified = unify_labels([*values, *known])
    named = {unified[name]: name for name in known}
    return [value if value in known else named.get(unified[value], unified[value]) for value in values]


def with_unified_labels(table: pa.Table, known: Sequence[str], origin: str) -> pa.Table:
    """Write each label of a column one way.

    Args:
        table (`pa.Table`):
            With the column `label`.
        known (`Sequence[str]`):
            The labels that the recipe or the source names; those of the column are written as they are.
        origin (`str`):
            The data, for messages.

    Raises:
        InputError: labels are lists or objects, or numbers and truth values are mixed.
    """
    codes, values = codes_of(table.column("label"))
    if set(values) <= set(known):
        return table
    for value in values:
        if _NESTED.fullmatch(value) and _is_nested(value):
            raise InputError(
                f"{origin}: the label {shorten(value)} is a list or an object; a row has one class, given by its name "
                "or number: make a column of that (of a one-hot list, the place of the 1); data.columns.label names it"
            )
    labels = written_one_way(values, known)
    if not known and set(_TRUTH) & set(labels) and {"0", "1"} & set(labels):
        raise InputError(
            f"{origin}: labels are written in two ways, as 0 and 1 and as false and true; write them one way, or name "
            "each in data.labels"
        )
    if labels == values:
        return table
    column = pa.array(labels, pa.string()).take(pa.array(codes, mask=codes < 0))
    return table.set_column(table.column_names.index("label"), "label", column)


def _is_nested(value: str) -> bool:
    try:
        return isinstance(ast.literal_eval(value), list | tuple | dict | set)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return re.fullmatch(r"\[\s*(['\"\d]).*\1\s*\]|\{\s*\".*\}|\[[\d.\s]+\]", value, re.DOTALL) is not None


def sorted_labels(source: SourceTable, positions: NDArray[np.int64]) -> dict[str, str]:
    """The labels of a source that does not name them: by number when all are numbers, else by letter.

    Args:
        source (`SourceTable`):
            The rows.
        positions (`NDArray`):
            Those that are used.

    Raises:
        InputError: they are no classes: each row has one of its own, or they are numbers of which most are there once.
    """
    codes, values = codes_of(source.column("label").take(pa.array(positions)))
    counts = np.bincount(codes[codes >= 0], minlength=len(values))
    distinct = sorted(values)
    is_number = [_number(value) is not None for value in distinct]
    num_rows = int(counts.sum())
    if num_rows >= _LEAST_ROWS:
        fractional = all(is_number) and not all(float(value).is_integer() for value in distinct)
        if len(distinct) == num_rows or (fractional and 2 * len(distinct) > num_rows):
            raise InputError(
                f"{source.origin()}: {len(distinct)} labels for {num_rows} rows, such as {shorten(distinct[0])}: a "
                "number (data.regression: {} learns those), an id or a text is no class; data.columns.label names the "
                "column of the class"
            )
    return {value: value for value in sorted_by_value(distinct)}


def sorted_by_value(values: Sequence[str]) -> list[str]:
    """Values by number when all are numbers, else by letter."""
    return sorted(sorted(values), key=float if all(_number(value) is not None for value in values) else None)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def number_labels(
    label_of: Mapping[str, str], label_names: Sequence[str] | None, *, origin: str
) -> tuple[list[str], dict[str, int]]:
    """Give label values their class ids.

    Args:
        label_of (`Mapping[str, str]`):
            Label value → label name, in the order of the class ids.
        label_names (`Sequence[str]`, *optional*):
            The names that a model has, in its order; one that it writes in another way (`1.0`) is the same label.
        origin (`str`):
            The data, for messages.

    Returns:
        `tuple[list[str], dict[str, int]]`: names by class id, and label value → class id.

    Raises:
        InputError: the model does not have one of the labels, or there are fewer than two.
    """
    own = list(dict.fromkeys(label_of.values()))
    names = own if label_names is None else list(label_names)
    unified = unify_labels([*own, *names])
    place_of = {unified[name]: place for place, name in reversed(list(enumerate(names)))}
    place_of.update({name: place for place, name in enumerate(names)})
    for name in own:
        if name not in place_of and unified[name] not in place_of:
            guess = did_you_mean(nearest_names(name, names))
            listed = ", ".join(names)
            raise InputError(f"{origin}: the model has no label {shorten(name)}{guess} (its labels: {listed})")
    if len(names) < 2:
        raise InputError(f"{origin}: a classifier needs at least two labels, found {', '.join(names) or 'none'}")
    return names, {value: place_of.get(name, place_of.get(unified[name], 0)) for value, name in label_of.items()}


def count_labels(
    column: pa.Array | pa.ChunkedArray, parts: Mapping[str, NDArray[np.int64]], label_of: Mapping[str, str]
) -> dict[str, Counter[str]]:
    """Rows of each label in each part; values that are no label are left out.

    Args:
        column (`pa.Array` or `pa.ChunkedArray`):
            The values of all rows.
        parts (`Mapping[str, NDArray]`):
            Name → positions of its rows.
        label_of (`Mapping[str, str]`):
            Value → label.
    """
    codes, values = codes_of(column)
    counts: dict[str, Counter[str]] = {}
    for name, positions in parts.items():
        held = np.bincount(codes[positions][codes[positions] >= 0], minlength=len(values)).tolist()
        counts[name] = Counter()
        for value, count in zip(values, held, strict=True):
            if count and value in label_of:
                counts[name][label_of[value]] += count
    return counts


def name_rare_labels(source: SourceTable, parts: Mapping[str, NDArray[np.int64]], label_of: Mapping[str, str]) -> None:
    """Warn of labels that have no training row, or one row in all."""
    counts = count_labels(source.column("label"), parts, label_of)
    total = sum(counts.values(), Counter())
    once = [name for name, count in total.items() if count == 1]
    if once:
        logger.warning("%s: labels of a single row: %s", source.origin(), _some(once))
    if counts.get("train") and "train" not in source.streams:
        absent = [name for name in total if not counts["train"][name]]
        if absent:
            logger.warning("%s: labels without a training row: %s", source.origin(), _some(absent))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shorten(name) for name in names[:_SHOWN]) + more
