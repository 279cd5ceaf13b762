"""Columns of a table, and what each looks like: images, texts, captions, labels, splits, groups."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmhf.conventions import as_text
from mmhf.data.discovery.roots import sample
from mmhf.data.sources.image_tree import IMAGE_SUFFIXES
from mmhf.data.splits import SPLIT_OF_NAME

MOST_CLASSES = 1000
LABELS = re.compile(
    r"label|class|category|target|diagnosis|disease|species|sentiment|emotion|genre|verdict|outcome|^dx$|^y$", re.I
)
TEXTS = re.compile(r"text|title|caption|description|sentence|comment|headline|tweet|post|body|report|question", re.I)
_CAPTIONS = re.compile(r"caption|description|sentence|comment|^text$|prompt|alt", re.I)
IMAGES = re.compile(r"image|img|photo|picture|file|path", re.I)
_SPLITS = re.compile(r"split|^set$|fold|subset|partition|phase|usage", re.I)
GROUPS = re.compile(r"(patient|lesion|subject|person|user|author|scene|video|study)(_?id)?$", re.I)
IDS = re.compile(r"(^|_)(id|index|uuid|hash|key|unnamed.*)$|^$|unnamed", re.I)


@dataclass(frozen=True)
class Column:
    """A column and what its values are like.

    Attributes:
        name (`str`): Its name.
        values (`list`): Those that are not missing, as Python values.
        counts (`Counter[str]`): Distinct values as texts → rows; empty for images and lists.
        words (`float`): Mean number of words.
    """

    name: str
    values: list[Any]
    counts: Counter[str] = field(default_factory=Counter)
    words: float = 0.0

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> Column:
        """Look at a column."""
        present = [value for value in values if value is not None and value != ""]
        if not present or isinstance(present[0], bytes | dict | list):
            return cls(name, present)
        texts = [text for value in present if (text := as_text(value)) is not None]
        some = sample(texts, 300)
        return cls(name, texts, Counter(texts), sum(len(text.split()) for text in some) / max(len(some), 1))

    @property
    def is_lists(self) -> bool:
        """Whether it has lists of texts."""
        return bool(self.values) and isinstance(self.values[0], list)

    @property
    def is_images(self) -> bool:
        """Whether it has images themselves."""
        first = self.values[0] if self.values else None
        return isinstance(first, bytes) or (isinstance(first, dict) and "bytes" in first)

    @property
    def is_fractional(self) -> bool:
        """Whether it has numbers that are no classes."""
        try:
            return any(not float(value).is_integer() for value in list(self.counts)[:200])
        except (ValueError, OverflowError):
            return False


def names_images(column: Column) -> bool:
    """Whether it has names of image files."""
    some = sample(column.values, 100)
    return sum(os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES for value in some) > 0.5 * len(some)


def is_split(column: Column) -> bool:
    """Whether it says of each row which split it belongs to."""
    values = {value.lower() for value in column.counts}
    named = {SPLIT_OF_NAME.get(value) for value in values}
    return bool(_SPLITS.search(column.name)) and "train" in named and None not in named and len(named) > 1


def text_columns(columns: Sequence[Column], rows: int) -> list[Column]:
    """Columns of texts, the most likely first."""
    found = []
    for column in columns:
        if column.is_lists:
            texts = [text for value in sample_lists(column.values) for text in value]
            if texts and all(isinstance(text, str) for text in texts):
                found.append(Column(column.name, column.values, Counter(), len(" ".join(texts).split()) / len(texts)))
        elif not IDS.search(column.name) and not column.is_fractional and _is_text(column, rows):
            found.append(column)
    return sorted(found, key=lambda column: (not TEXTS.search(column.name), -column.words))


def sample_lists(values: Sequence[Any]) -> list[list[Any]]:
    """Some of the lists of a column."""
    return [value for value in values[:100] if isinstance(value, list)]


def _is_text(column: Column, rows: int) -> bool:
    is_named = bool(TEXTS.search(column.name)) and not LABELS.search(column.name)
    if len(column.counts) <= 1 or names_images(column):
        return False
    if is_named:
        return column.words >= 1.2 and len(column.counts) > min(0.1 * rows, 50)
    return column.words >= 3 and len(column.counts) > 0.3 * rows


def caption_columns(texts: Sequence[Column], chosen: str) -> list[str]:
    """The chosen column, with its numbered companions: `caption_1`, `caption_2`, …"""
    stem = re.sub(r"[\W_]*\d+$", "", chosen)
    numbered = [
        each.name for each in texts if each.name != chosen and re.fullmatch(rf"{re.escape(stem)}[\W_]*\d+", each.name)
    ]
    return sorted({chosen, *numbered}) if numbered else [chosen]


def label_columns(columns: Sequence[Column], rows: int) -> list[Column]:
    """Columns that may be a class, the most likely first."""
    found = []
    for column in columns:
        classes = len(column.counts)
        is_named = bool(LABELS.search(column.name))
        if not 2 <= classes <= min(MOST_CLASSES, max(rows // 2, 2)) or column.is_fractional or IDS.search(column.name):
            continue
        if GROUPS.search(column.name) or (not is_named and (classes > 100 or column.words > 4)):
            continue
        found.append(column)
    return sorted(found, key=lambda column: (not LABELS.search(column.name), len(column.counts)))
