"""A prompt that names columns of the data, and how it is filled for a row.

Depends on `conventions`, `errors` and `recipe.nearest` only, so that a release can carry this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmhf.conventions import as_text
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

RowValues = Mapping[str, object]
"""Column → its value in a row; one that is not there is missing."""
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class PromptTemplate:
    """A text such as `A {kind} in the style of {vendor}:`, filled with the values of a row.

    Args:
        text (`str`): Columns stand in braces; `{{` and `}}` are braces themselves.
        missing (`str`, *optional*): What stands for a value that a row lacks; absent: there is no prompt for such a
            row.

    Attributes:
        names (`list[str]`): The columns, each once, in their order.
        pieces (`list[tuple[str, str | None]]`): Texts, each with the column behind it.

    Raises:
        `ValueError`: braces do not match, or a pair of them names no column.
    """

    def __init__(self, text: str, missing: str | None = None) -> None:
        self.text, self.missing = text, missing
        self.pieces: list[tuple[str, str | None]] = []
        start, before = 0, ""
        for match in _PIECE.finditer(text):
            before += text[start : match.start()]
            start = match.end()
            if match[1] is not None:
                name = match[1].strip()
                if not name:
                    raise ValueError(f"{match[0]} at character {match.start() + 1} names no column")
                self.pieces.append((before, name))
                before = ""
            elif len(match[0]) == 2:
                before += match[0][0]
            else:
                raise ValueError(
                    f"the brace {match[0]} at character {match.start() + 1} has no partner; write {match[0] * 2} for "
                    "a brace that belongs to the text"
                )
        self.pieces.append((before + text[start:], None))
        self.names = list(dict.fromkeys(name for _, name in self.pieces if name is not None))

    def fill(self, row: RowValues) -> str:
        """The prompt of a row.

        Raises:
            `InputError`: the row has a column that the prompt does not name, a value that is no text, or lacks one
                for which nothing stands.
        """
        for name in row.keys() - set(self.names):
            guess = did_you_mean(nearest_names(str(name), self.names))
            known = ", ".join(self.names)
            raise InputError(f"columns.{name}: the prompt names no such column{guess} (it has {known})")
        values: dict[str | None, str] = {None: ""}
        for name in self.names:
            value = row.get(name)
            if isinstance(value, list | tuple | dict | bytes):
                raise InputError(f"columns.{name}: expected a text, got a {type(value).__name__}")
            text = self.missing if (given := as_text(value)) is None else given
            if text is None:
                raise InputError(f"columns.{name}: is missing, and the prompt needs it")
            values[name] = text
        return "".join(before + values[name] for before, name in self.pieces)

    def find_problem(self, row: RowValues) -> str | None:
        """Why a row has no prompt; None: it has one."""
        try:
            self.fill(row)
        except InputError as error:
            return str(error)
        return None

    def notes(self, row: RowValues) -> list[str]:
        """What of a row is missing, and what stands for it."""
        return [
            f"{name}: is missing; the prompt has {self.missing!r} for it"
            for name in self.names
            if as_text(row.get(name)) is None
        ]

    def usual_row(self) -> dict[str, object]:
        """A row that has a prompt."""
        return {name: name for name in self.names}

    def describe(self) -> dict[str, str | list[str]]:
        """Column → `text`."""
        return dict.fromkeys(self.names, "text")
