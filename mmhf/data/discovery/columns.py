"""What the columns of a table are: images, texts, captions, labels, splits, groups."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmhf.conventions import as_text
from mmhf.data.discovery.roots import ImageRoot, nearest_root, sample
from mmhf.data.sources.image_tree import IMAGE_SUFFIXES
from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

Ask = Callable[[str, Sequence[str]], str]
"""Takes a question and the answers to it, the best first, and returns one of them."""

MOST_CLASSES = 1000
_LABELS = re.compile(
    r"label|class|category|target|diagnosis|disease|species|sentiment|emotion|genre|verdict|outcome|^dx$|^y$", re.I
)
_TEXTS = re.compile(r"text|title|caption|description|sentence|comment|headline|tweet|post|body|report|question", re.I)
_CAPTIONS = re.compile(r"caption|description|sentence|comment|^text$|prompt|alt", re.I)
_IMAGES = re.compile(r"image|img|photo|picture|file|path", re.I)
_SPLITS = re.compile(r"split|^set$|fold|subset|partition|phase|usage", re.I)
_GROUPS = re.compile(r"(patient|lesion|subject|person|user|author|scene|video|study)(_?id)?$", re.I)
_IDS = re.compile(r"(^|_)(id|index|uuid|hash|key|unnamed.*)$|^$|unnamed", re.I)
_ENDINGS = (".jpg", ".png", ".jpeg", ".JPG")


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


@dataclass
class ColumnRoles:
    """What a table's columns are for.

    Attributes:
        image (`str`): Column of paths or images; with `ending`, of names that lack it.
        root (`ImageRoot`, *optional*): Where its files are; None for images in the table itself.
        ending (`str`): What its names lack, such as `.jpg`.
        label, text, split, group (`str`, *optional*): One column each.
        captions (`list[str]`): Columns of captions.
        classes (`Counter[str]`): Label → rows.
        why (`dict[str, str]`): Role → what it was recognised by.
    """

    image: str
    root: ImageRoot | None = None
    ending: str = ""
    label: str | None = None
    text: str | None = None
    split: str | None = None
    group: str | None = None
    captions: list[str] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    why: dict[str, str] = field(default_factory=dict)


def find_roles(
    columns: Mapping[str, Sequence[Any]], *, beside: Path, origin: str, ask: Ask, label: str | None = None
) -> ColumnRoles:
    """Find out which column is what, by names and values.

    Args:
        columns (`Mapping[str, Sequence]`): The table.
        beside (`Path`): The table's folder.
        origin (`str`): The table, for messages.
        ask (`Ask`): Decides where two readings are possible.
        label (`str`, *optional*): The column of the label, where the caller says so.

    Raises:
        InputError: no column has or names images; the message says what was looked at.
    """
    looked = [Column.of(name, values) for name, values in columns.items() if name]
    roles = _find_image(looked, beside, origin)
    rows = max((len(values) for values in columns.values()), default=0)
    rest = [column for column in looked if column.name != roles.image and column.values and not column.is_images]
    roles.split = next((column.name for column in rest if _is_split(column)), None)
    rest = [column for column in rest if column.name != roles.split]
    roles.group = next(
        (each.name for each in rest if _GROUPS.search(each.name) and 10 <= len(each.counts) < rows), None
    )
    texts = _text_columns(rest, rows)
    labels = [each for each in _label_columns(rest, rows) if each.name not in [text.name for text in texts]]
    if label is not None:
        labels = [each for each in rest if each.name == label]
        if not labels:
            guess = did_you_mean(nearest_names(label, list(columns)))
            raise InputError(f"{origin}: no column {label!r}{guess} (columns: {', '.join(columns)})")
    if texts:
        best = [each for each in texts if bool(_TEXTS.search(each.name)) == bool(_TEXTS.search(texts[0].name))]
        roles.text = ask("Which column has the text?", [each.name for each in best])
        roles.why["text"] = f"{next(each.words for each in texts if each.name == roles.text):.0f} words on average"
        roles.captions = _caption_columns(texts, roles.text)
    if labels:
        named = [each for each in labels if _LABELS.search(each.name)] or labels
        roles.label = ask("Which column has the label?", [each.name for each in named])
        chosen = next(each for each in labels if each.name == roles.label)
        roles.classes = chosen.counts
        roles.why["label"] = f"{len(chosen.counts)} different values in {rows:,} rows"
    return roles


def _find_image(columns: Sequence[Column], beside: Path, origin: str) -> ColumnRoles:
    for column in columns:
        if column.is_images:
            return ColumnRoles(column.name, why={"image": "it has the images themselves"})
    named = [column for column in columns if column.counts and _names_images(column)]
    named.sort(key=lambda column: not _IMAGES.search(column.name))
    best: ColumnRoles | None = None
    for column in named:
        root = nearest_root(column.values, beside)
        if root.found and (best is None or best.root is None or root.found > best.root.found):
            why = f"{root.found} of {root.tried} paths tried are files below {root.folder}"
            best = ColumnRoles(column.name, root, why={"image": why})
    if best is not None:
        return best
    if named:
        column = named[0]
        example = sample(column.values, 1)[0]
        if "://" in example:
            raise InputError(
                f"{origin}: column {column.name!r} has URLs, such as {example}; download the images into a folder, "
                "and name the files in the table"
            )
        raise InputError(
            f"{origin}: column {column.name!r} names images such as {example!r}, but none of them is below {beside} "
            "or the folder around it; put them there, or make the paths relative to the folder that has them"
        )
    found = _names_without_ending(columns, beside)
    if found is None:
        raise InputError(
            f"{origin}: no column has images or names image files that are there (columns: "
            f"{', '.join(column.name for column in columns)}); add one with the path of each row's image"
        )
    return found


def _names_without_ending(columns: Sequence[Column], beside: Path) -> ColumnRoles | None:
    """Ids that become files with an ending: `ISIC_0015719` and ISIC_0015719.jpg."""
    candidates = [
        column for column in columns if len(column.counts) > 0.5 * len(column.values) > 0 and column.words <= 1.5
    ]
    for column in sorted(candidates, key=lambda column: not re.search(r"image|img|file|id", column.name, re.I)):
        for ending in _ENDINGS:
            root = nearest_root(column.values, beside, ending=ending)
            if root.found > 0.5 * root.tried:
                why = f"{root.found} of {root.tried} tried are files {{{column.name}}}{ending} below {root.folder}"
                return ColumnRoles(column.name, root, ending, why={"image": why})
    return None


def _names_images(column: Column) -> bool:
    some = sample(column.values, 100)
    return sum(os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES for value in some) > 0.5 * len(some)


def _is_split(column: Column) -> bool:
    values = {value.lower() for value in column.counts}
    named = {SPLIT_OF_NAME.get(value) for value in values}
    return bool(_SPLITS.search(column.name)) and "train" in named and None not in named and len(named) > 1


def _text_columns(columns: Sequence[Column], rows: int) -> list[Column]:
    """Columns of texts, the most likely first."""
    found = []
    for column in columns:
        if column.is_lists:
            texts = [text for value in sample_lists(column.values) for text in value]
            if texts and all(isinstance(text, str) for text in texts):
                found.append(Column(column.name, column.values, Counter(), len(" ".join(texts).split()) / len(texts)))
        elif not _IDS.search(column.name) and not column.is_fractional and _is_text(column, rows):
            found.append(column)
    return sorted(found, key=lambda column: (not _TEXTS.search(column.name), -column.words))


def sample_lists(values: Sequence[Any]) -> list[list[Any]]:
    """Some of the lists of a column."""
    return [value for value in values[:100] if isinstance(value, list)]


def _is_text(column: Column, rows: int) -> bool:
    is_named = bool(_TEXTS.search(column.name)) and not _LABELS.search(column.name)
    if len(column.counts) <= 1 or _names_images(column):
        return False
    if is_named:
        return column.words >= 1.2 and len(column.counts) > min(0.1 * rows, 50)
    return column.words >= 3 and len(column.counts) > 0.3 * rows


def _caption_columns(texts: Sequence[Column], chosen: str) -> list[str]:
    """The chosen column, with its numbered companions: `caption_1`, `caption_2`, …"""
    stem = re.sub(r"[\W_]*\d+$", "", chosen)
    numbered = [
        each.name for each in texts if each.name != chosen and re.fullmatch(rf"{re.escape(stem)}[\W_]*\d+", each.name)
    ]
    return sorted({chosen, *numbered}) if numbered else [chosen]


def _label_columns(columns: Sequence[Column], rows: int) -> list[Column]:
    """Columns that may be a class, the most likely first."""
    found = []
    for column in columns:
        classes = len(column.counts)
        is_named = bool(_LABELS.search(column.name))
        if (
            not 2 <= classes <= min(MOST_CLASSES, max(rows // 2, 2))
            or column.is_fractional
            or _IDS.search(column.name)
        ):
            continue
        if _GROUPS.search(column.name) or (not is_named and (classes > 100 or column.words > 4)):
            continue
        found.append(column)
    return sorted(found, key=lambda column: (not _LABELS.search(column.name), len(column.counts)))
