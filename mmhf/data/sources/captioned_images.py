"""Images with their captions as a file has them, before they are cut into splits."""

from __future__ import annotations

import ast
import json
import posixpath
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmhf.data.splits import SPLIT_OF_NAME, split_positions
from mmhf.data.table import SPLITS, Caption, CaptionedRows, CaptionedSource, ImageColumn
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import ImageSplitSection
from mmhf.recipe.schema import SplitSection


@dataclass
class CaptionedImages:
    """Images in the order of their first rows, each with the captions of all its rows."""

    origin: str
    """The file or data set, for messages."""
    column: Callable[[list[int]], ImageColumn]
    """Gives the images at these positions."""
    rows: list[int] = field(default_factory=list)
    """Row number of each image's first row."""
    ids: list[str] = field(default_factory=list)
    captions: list[list[Caption]] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    """What the file calls the split of each image, where it says so."""
    malformed: dict[int, str] = field(default_factory=dict)
    _position_of: dict[Hashable, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def add(
        self,
        key: Hashable | None,
        captions: Iterable[Caption],
        *,
        row: int,
        name: str | None = None,
        split: str | None = None,
    ) -> int | None:
        """Add the captions of a row to its image.

        Args:
            key (`Hashable`, *optional*):
                What is equal in rows of one image; rows without it are images of their own.
            captions (`Iterable[Caption]`):
                The row's captions.
            row (`int`):
                The row's number.
            name (`str`, *optional*):
                Of the image; absent: the row's number.
            split (`str`, *optional*):
                The name of the row's split. Rows of one image in several splits are several images.

        Returns:
            `int` or `None`: the position of an image that was not there before.
        """
        place = None if key is None else self._position_of.get((split, key))
        if place is not None:
            self.captions[place] += captions
            return None
        if key is not None:
            self._position_of[split, key] = len(self.rows)
        self.rows.append(row)
        self.ids.append(name or str(row))
        self.captions.append(list(captions))
        self.splits.append(split)
        return len(self.rows) - 1

    def add_malformed(self, row: int, reason: str, *, split: str | None = None) -> None:
        """Add a row that cannot be read."""
        self.malformed[len(self.rows)] = reason
        self.add(None, [], row=row, split=split)

    def select(self, positions: Sequence[int] | None = None) -> CaptionedRows:
        """The images at these positions, or all."""
        chosen = list(range(len(self))) if positions is None else list(positions)
        return CaptionedRows(
            origin=self.origin,
            rows=[self.rows[position] for position in chosen],
            ids=[self.ids[position] for position in chosen],
            captions=[self.captions[position] for position in chosen],
            images=self.column(chosen),
            malformed={new: self.malformed[old] for new, old in enumerate(chosen) if old in self.malformed},
        )

    def cut(self, split: ImageSplitSection) -> CaptionedSource:
        """Cut the images by fractions; the captions of an image stay together."""
        section = SplitSection(validation=split.validation, test=split.test, stratify=False, seed=split.seed)
        cut = split_positions(section, [None] * len(self))
        return {name: self.select(positions) for name, positions in cut.items()}

    def cut_by_name(self, names: Mapping[str, str] = SPLIT_OF_NAME) -> CaptionedSource:
        """Cut the images by the splits that the file has for them.

        Args:
            names (`Mapping[str, str]`):
                What the file calls a split, in small letters → our name.
        """
        positions: dict[str, list[int]] = {}
        for position, given in enumerate(self.splits):
            name = names.get((given or "").lower())
            if name is None and self.captions[position]:
                self.malformed[position] = f"the split is {given!r}, not train, validation or test"
            # A row of no split is listed with the first one, so that it is named somewhere.
            positions.setdefault(name or "train", []).append(position)
        return {name: self.select(positions[name]) for name in SPLITS if name in positions}


def keep_splits(source: CaptionedSource, splits: Iterable[str] | None, *, origin: str) -> CaptionedSource:
    """Keep the wanted splits.

    Args:
        source (`dict[str, CaptionedRows]`):
            All that there are.
        splits (`Iterable[str]`, *optional*):
            Those wanted; absent: all.
        origin (`str`):
            The data, for messages.

    Raises:
        InputError: one is not there.
    """
    for split in splits or ():
        if split not in source:
            raise InputError(f"{origin}: no split {split!r}; there is {', '.join(source)}")
    wanted = source if splits is None else splits
    return {split: source[split] for split in SPLITS if split in source and split in wanted}


def captions_in(value: Any, row: int) -> list[Caption]:
    """Read the caption or captions in a field of a table.

    Args:
        value (`Any`):
            A text, a list of texts, or a list written out as JSON or Python does in a CSV file.
        row (`int`):
            Row number.

    Returns:
        `list[Caption]`: one with the text None for an empty field; none for an empty list.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        value = _written_list(value.strip()) or value
    texts = value if isinstance(value, list | tuple) else [value]
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"a caption is a {type(text).__name__}, not a text")
    return [Caption(text, row) for text in texts]


def _written_list(text: str) -> list[str] | None:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return None


def image_key(value: Any) -> Hashable | None:
    """What is equal in the rows of one image: its content, or its path."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    return posixpath.normpath(value) if isinstance(value, str) and value else value or None
