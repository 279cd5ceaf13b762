"""Which column of a table is what, by names and values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmhf.data.discovery.columns import (
    GROUPS,
    IMAGES,
    LABELS,
    TEXTS,
    Column,
    caption_columns,
    is_split,
    label_columns,
    names_images,
    text_columns,
)
from mmhf.data.discovery.label_kinds import LabelKind, kind_of, may_be_label, table_columns
from mmhf.data.discovery.roots import ImageRoot, nearest_root, sample
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

Ask = Callable[[str, Sequence[str]], str]
"""Takes a question and the answers to it, the best first, and returns one of them."""
_ENDINGS = (".jpg", ".png", ".jpeg", ".JPG")


@dataclass
class ColumnRoles:
    """What a table's columns are for.

    Attributes:
        image (`str`): Column of paths or images; with `ending`, of names that lack it.
        root (`ImageRoot`, *optional*): Where its files are; None for images in the table itself.
        ending (`str`): What its names lack, such as `.jpg`.
        label, text, split, group (`str`, *optional*): One column each.
        captions (`list[str]`): Columns of captions.
        kind ([`LabelKind`]): What the label's column holds.
        columns (`dict[str, list[str]]`): `numbers` and `categories` that a model could read besides.
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
    kind: LabelKind = field(default_factory=LabelKind)
    columns: dict[str, list[str]] = field(default_factory=dict)
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
    roles.split = next((column.name for column in rest if is_split(column)), None)
    rest = [column for column in rest if column.name != roles.split]
    roles.group = next(
        (each.name for each in rest if GROUPS.search(each.name) and 10 <= len(each.counts) < rows), None
    )
    others = [each for each in rest if may_be_label(each, rows)]
    no_texts = {label, *(each.name for each in others)}
    texts = [each for each in text_columns(rest, rows) if each.name not in no_texts]
    known = {each.name for each in (*texts, *others)}
    labels = [*others, *(each for each in label_columns(rest, rows) if each.name not in known)]
    if label is not None:
        labels = [each for each in rest if each.name == label]
        if not labels:
            guess = did_you_mean(nearest_names(label, list(columns)))
            raise InputError(f"{origin}: no column {label!r}{guess} (columns: {', '.join(columns)})")
    if texts:
        best = [each for each in texts if bool(TEXTS.search(each.name)) == bool(TEXTS.search(texts[0].name))]
        roles.text = ask("Which column has the text?", [each.name for each in best])
        roles.why["text"] = f"{next(each.words for each in texts if each.name == roles.text):.0f} words on average"
        roles.captions = caption_columns(texts, roles.text)
    if labels:
        named = [each for each in labels if LABELS.search(each.name)] or labels
        roles.label = ask("Which column has the label?", [each.name for each in named])
        chosen = next(each for each in labels if each.name == roles.label)
        roles.kind = kind_of(chosen, rows, is_chosen=label is not None)
    used = {roles.label, roles.group, *roles.captions, *(each.name for each in texts)}
    roles.columns = table_columns([each for each in rest if each.name not in used])
    return roles


def _find_image(columns: Sequence[Column], beside: Path, origin: str) -> ColumnRoles:
    for column in columns:
        if column.is_images:
            return ColumnRoles(column.name, why={"image": "it has the images themselves"})
    named = [column for column in columns if column.counts and names_images(column)]
    named.sort(key=lambda column: not IMAGES.search(column.name))
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
