"""What a column of labels holds: one class a row, several labels, or numbers; and columns that may stand beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmhf.conventions import as_text
from mmhf.data.discovery.columns import GROUPS, IDS, LABELS, MOST_CLASSES, Column

_SETS = re.compile(
    r"(^|_)(tags|labels|keywords|genres|categories|classes|attributes|concepts|topics|diagnoses|findings)$|multi_?label",
    re.I,
)
_SEPARATORS = (";", "|", ",")
_FEW_NUMBERS = 20
"""So many whole numbers are classes, such as grades; more are numbers, such as ages, if they are no ids."""
_MOST_CATEGORIES, _ROWS_OF_CATEGORY = 50, 3


@dataclass(frozen=True)
class LabelKind:
    """What a column of labels holds.

    Attributes:
        section (`dict`): What a recipe's `data:` needs beside the column: first `multi_label` or `regression`; nothing
            for one class a row.
        counts (`Counter[str]`): Label → rows; empty for numbers.
        said (`str`): In words.
    """

    section: dict[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    said: str = ""

    @property
    def target(self) -> str:
        """`multi_label`, `regression` or `classes`."""
        return next(iter(self.section), "classes")


def kind_of(column: Column, rows: int, *, is_chosen: bool = False) -> LabelKind:
    """What a column holds.

    Args:
        column (`Column`): Of the label.
        rows (`int`): Of the table.
        is_chosen (`bool`): Somebody says that it is the label, so that texts may be several of them whatever the
            column is called.
    """
    sets = _sets_of(column, by_name=not is_chosen)
    if sets is not None:
        lists, separator = sets
        counts = Counter(name for each in lists for name in set(each))
        options: dict[str, Any] = {} if separator is None else {"separator": separator}
        if len(lists) < rows or not all(lists):
            options["empty"] = "none"
        mean = sum(map(len, lists)) / max(len(lists), 1)
        return LabelKind({"multi_label": options}, counts, f"{len(counts)} labels, {mean:.1f} a row")
    if _measures(column):
        numbers = [float(value) for value in column.counts]
        # A row without its number cannot be learnt from.
        lacking = {"on_bad_row": "skip"} if len(column.values) < rows else {}
        said = f"numbers from {min(numbers):g} to {max(numbers):g}"
        return LabelKind({"regression": {}, **lacking}, said=said)
    counts = column.counts
    sizes = [count for _, count in counts.most_common()] or [0]
    return LabelKind({}, counts, f"{len(counts)} classes of {sizes[0]:,} to {sizes[-1]:,} rows")


def may_be_label(column: Column, rows: int) -> bool:
    """Whether a column without classes has several labels a row, or numbers that its name calls a label."""
    target = kind_of(column, rows).target
    return target == "multi_label" or (target == "regression" and bool(LABELS.search(column.name)))


def is_numbers(column: Column) -> bool:
    """Whether all its values are numbers."""
    try:
        return bool(column.counts) and all(abs(float(value)) < float("inf") for value in column.counts)
    except ValueError:
        return False


def _measures(column: Column) -> bool:
    """Whether it has numbers that are no names of classes."""
    if not is_numbers(column):
        return False
    if column.is_fractional:
        return True
    numbers = sorted(int(float(value)) for value in column.counts)
    are_ids = numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1
    return len(numbers) > _FEW_NUMBERS and not are_ids and not LABELS.search(column.name)


def table_columns(columns: Sequence[Column]) -> dict[str, list[str]]:
    """Of the columns that are nothing else, the numbers and categories that a model can read beside image and text."""
    found: dict[str, list[str]] = {}
    for column in columns:
        is_other = any(pattern.search(column.name) for pattern in (IDS, GROUPS, LABELS))
        if is_other or len(column.counts) < 2:
            continue
        repeats = max(column.counts.values()) > 1
        if is_numbers(column) and len(column.counts) > 5 and (repeats or column.is_fractional):
            found.setdefault("numbers", []).append(column.name)
        elif (
            len(column.counts) <= min(_MOST_CATEGORIES, len(column.values) // _ROWS_OF_CATEGORY) and column.words <= 3
        ):
            found.setdefault("categories", []).append(column.name)
    return found


def _sets_of(column: Column, *, by_name: bool) -> tuple[list[list[str]], str | None] | None:
    """The labels of each row, and what separates them; None where rows have one each, or something else."""
    if by_name and not _SETS.search(column.name):
        return None
    if column.is_lists:
        lists = [[text for each in value if (text := as_text(each))] for value in column.values]
        return (lists, None) if any(lists) else None
    for separator in _SEPARATORS:
        if 2 * sum(count for value, count in column.counts.items() if separator in value) > len(column.values):
            lists = [[part for each in value.split(separator) if (part := each.strip())] for value in column.values]
            distinct = {name for each in lists for name in each}
            are_names = not all(name.isdecimal() for name in distinct)  # and no decimals with a comma
            if are_names and len(distinct) <= min(MOST_CLASSES, len(lists) // 2):
                return lists, separator
    return None
