"""Columns of a table, numbers and categories, as one vector a row; how that is done is kept with the model.

Depends on numpy, torch, `conventions`, `errors` and `recipe.nearest` only, so that a release can carry this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmhf.conventions import as_text
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

ColumnValues = Mapping[str, object]
"""Column → its value in a row; one that is not there is missing."""
_SHOWN_LENGTH = 40


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers.

    Attributes:
        name (`str`): Of the column.
        center, scale (`float`): A number x becomes (x - center) / scale; a missing one 0.
        may_lack (`bool`): Training rows lack it, so that a second number says whether a row does.
    """

    name: str
    center: float
    scale: float
    may_lack: bool

    @property
    def width(self) -> int:
        return 1 + self.may_lack


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories.

    Attributes:
        name (`str`): Of the column.
        values (`tuple[str, ...]`): The categories, each of which has a place; any other is unknown, and has none.
        may_lack (`bool`): Training rows lack it, so that a further place says whether a row does.
    """

    name: str
    values: tuple[str, ...]
    may_lack: bool

    @property
    def width(self) -> int:
        return len(self.values) + self.may_lack


class ColumnFeatures:
    """From the values of a row's columns to a vector, and what is wrong with them.

    Args:
        numbers (`Sequence[NumberColumn]`): They come first in the vector.
        categories (`Sequence[CategoryColumn]`): Zeros and a one each; zeros alone for what is unknown.
    """

    def __init__(self, numbers: Sequence[NumberColumn], categories: Sequence[CategoryColumn]) -> None:
        self.numbers, self.categories = tuple(numbers), tuple(categories)
        columns: list[NumberColumn | CategoryColumn] = [*self.numbers, *self.categories]
        self.names = [column.name for column in columns]
        self.width = sum(column.width for column in columns)
        self._known = frozenset(self.names)
        self._places = {
            column.name: {value: place for place, value in enumerate(column.values)} for column in self.categories
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ColumnFeatures:
        """What `to_dict` wrote."""
        return cls(
            [NumberColumn(**each) for each in values["numbers"]],
            [CategoryColumn(**{**each, "values": tuple(each["values"])}) for each in values["categories"]],
        )

    def to_dict(self) -> dict[str, Any]:
        """As lists, since transformers sorts the keys of what it saves."""
        categories = [{**asdict(column), "values": list(column.values)} for column in self.categories]
        return {"numbers": [asdict(column) for column in self.numbers], "categories": categories}

    def encode(self, rows: Sequence[ColumnValues | None]) -> Tensor:
        """(B, width) of rows; zeros for one that is None.

        Raises:
            `InputError`: a row has a column that is not read, or a value of the wrong kind.
        """
        encoded = np.zeros((len(rows), self.width), dtype=np.float32)
        for number, row in enumerate(rows):
            if row is None:
                continue
            if not row.keys() <= self._known:
                self._refuse_other_columns(row)
            for place, value in self._coded(row):
                encoded[number, place] = value
        return torch.from_numpy(encoded)

    def find_problem(self, row: ColumnValues) -> str | None:
        """Why a row's values cannot be read; None: they can."""
        try:
            self.encode([row])
        except InputError as error:
            return str(error)
        return None

    def notes(self, row: ColumnValues) -> list[str]:
        """What of a row was never met in training, and what it is read as."""
        found = []
        for column in self.numbers:
            if not column.may_lack and as_text(row.get(column.name)) is None:
                found.append(f"{column.name}: is missing, as in no training row; read as {column.center:g}")
        for category in self.categories:
            value = as_text(row.get(category.name))
            if value is None and not category.may_lack:
                found.append(f"{category.name}: is missing, as in no training row; read as unknown")
            elif value is not None and value not in self._places[category.name]:
                guess = did_you_mean(nearest_names(value, category.values))
                found.append(f"{category.name}: {_shown(value)} is unknown to the model{guess}")
        return found

    def usual_row(self) -> dict[str, object]:
        """A row that training could have met: the numbers in the middle, and the first categories."""
        numbers: dict[str, object] = {column.name: column.center for column in self.numbers}
        return numbers | {column.name: column.values[0] for column in self.categories}

    def describe(self) -> dict[str, str | list[str]]:
        """Column → `number`, or its categories."""
        kinds: dict[str, str | list[str]] = {column.name: "number" for column in self.numbers}
        return kinds | {column.name: list(column.values) for column in self.categories}

    def _refuse_other_columns(self, row: ColumnValues) -> None:
        for name in row.keys() - self._known:
            guess = did_you_mean(nearest_names(str(name), self.names))
            raise InputError(
                f"columns.{name}: the model reads no such column{guess} (it reads {', '.join(self.names)})"
            )

    def _coded(self, row: ColumnValues) -> list[tuple[int, float]]:
        """Places of the vector that are not 0, and what they are."""
        found, start = [], 0
        for column in self.numbers:
            try:
                value = as_number(row.get(column.name))
            except ValueError as error:
                raise InputError(f"columns.{column.name}: {error}") from None
            if value is not None:
                found.append((start, (value - column.center) / column.scale))
            elif column.may_lack:
                found.append((start + 1, 1.0))
            start += 1 + column.may_lack
        for category in self.categories:
            given = row.get(category.name)
            if isinstance(given, list | tuple | dict | bytes):
                raise InputError(f"columns.{category.name}: expected one category, got a {type(given).__name__}")
            text = as_text(given)
            place = len(category.values) if text is None else self._places[category.name].get(text)
            width = len(category.values) + category.may_lack
            if place is not None and place < width:
                found.append((start + place, 1.0))
            start += width
        return found


def as_number(value: object) -> float | None:
    """A table's value as a number; None for a missing one.

    Raises:
        `ValueError`: it is something else.
    """
    text = None if value is None else as_text(value)
    if text is None:
        return None
    try:
        number = float("" if isinstance(value, bool) or "_" in text else text)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"{_shown(text)} is no number")
    return None if math.isnan(number) else number


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…")
