"""The source `sample`: the embedded drawings, each with its own name and with another's."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from mmhf.data.table import (
    SPLITS,
    Caption,
    CaptionedRows,
    CaptionedSource,
    EmbeddedImages,
    LabelledRows,
    SourceData,
)
from mmhf.recipe.caption_data_sections import CaptionSampleSection
from mmhf.sample_data import SAMPLE_PATH, read_sample

LABELS = ("mismatched", "matched")
_KEYWORDS_PER_TEXT = 4


def read_sample_pairs(splits: Collection[str] | None = None) -> SourceData:
    """Pair each drawing with its own text (matched) and with that of another drawing of its group (mismatched).

    Each drawing and each text appears exactly once with either label, so that neither alone tells anything.

    Args:
        splits (`Collection[str]`, *optional*):
            Splits to read; absent: all.

    Returns:
        `SourceData`: the row number is the drawing's row in the split, counted from 1.
    """
    chosen = [split for split in SPLITS if splits is None or split in splits]
    return SourceData(splits={split: _pairs(split) for split in chosen}, label_of={name: name for name in LABELS})


def read_sample_groups(splits: Collection[str] | None = None) -> SourceData:
    """Label each drawing with its Unicode group, such as `food-drink`.

    Args:
        splits (`Collection[str]`, *optional*):
            Splits to read; absent: all.

    Returns:
        `SourceData`: the row number is the drawing's row in the split, counted from 1.
    """
    drawings = {split: read_sample(split).to_pylist() for split in SPLITS}
    names = sorted({drawing["group"] for members in drawings.values() for drawing in members})
    chosen = [split for split in SPLITS if splits is None or split in splits]
    return SourceData({split: _groups(drawings[split]) for split in chosen}, {name: name for name in names})


def read_sample_captions(section: CaptionSampleSection, splits: Collection[str] | None = None) -> CaptionedSource:
    """Give each drawing its name and up to four others as captions.

    Args:
        section (`CaptionSampleSection`):
            Whether a caption with keywords comes on top.
        splits (`Collection[str]`, *optional*):
            Splits to read; absent: all.

    Returns:
        `dict[str, CaptionedRows]`: the row number is the drawing's row in the split, counted from 1.
    """
    return {split: _captioned(split, section.keywords) for split in SPLITS if splits is None or split in splits}


def partner_of(drawings: list[dict[str, Any]], seed: str) -> list[int]:
    """Choose for each drawing another of the same group, each drawing chosen once.

    A group is put in an arbitrary fixed order and turned against itself, by the turn that puts fewest drawings beside
    one of their own subgroup: "man farmer" beside "farmer" would be a mismatch in name only.

    Args:
        drawings (`list[dict]`):
            With `group`, `subgroup` and `hexcode`.
        seed (`str`):
            Decides the order.

    Returns:
        `list[int]`: a position for each drawing; its own only in a group of one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, drawing in enumerate(drawings):
        groups[drawing["group"]].append(position)
    partners = list(range(len(drawings)))
    for members in groups.values():
        members.sort(key=lambda position: hashlib.sha256(f"{seed}{drawings[position]['hexcode']}".encode()).digest())
        kinds = [drawings[position]["subgroup"] for position in members]
        turn = min(range(1, len(members)), key=lambda turn: _same_kind(kinds, turn), default=0)
        for place, position in enumerate(members):
            partners[position] = members[(place + turn) % len(members)]
    return partners


def _same_kind(kinds: list[str], turn: int) -> int:
    return sum(kind == kinds[(place + turn) % len(kinds)] for place, kind in enumerate(kinds))


def _pairs(split: str) -> LabelledRows:
    drawings = read_sample(split).to_pylist()
    texts = [_text(drawing) for drawing in drawings]
    pairs = [
        (number, text_number, label)
        for number, partner in enumerate(partner_of(drawings, split))
        for text_number, label in ((number, LABELS[1]), (partner, LABELS[0]))
        if number != partner
    ]
    return LabelledRows(
        origin=SAMPLE_PATH.name,
        rows=[number + 1 for number, _, _ in pairs],
        ids=[f"{drawings[number]['vendor']}-{drawings[number]['hexcode']}-{label}" for number, _, label in pairs],
        texts=[texts[text_number] for _, text_number, _ in pairs],
        labels=[label for _, _, label in pairs],
        images=EmbeddedImages([drawings[number]["image"]["bytes"] for number, _, _ in pairs]),
    )


def _captioned(split: str, keywords: bool) -> CaptionedRows:
    drawings = read_sample(split).to_pylist()
    captions = []
    for drawing in drawings:
        longer = [_text(drawing)] if keywords else []
        captions.append(list(dict.fromkeys([*drawing["captions"], *longer])))
    return CaptionedRows(
        origin=SAMPLE_PATH.name,
        rows=list(range(1, len(drawings) + 1)),
        ids=_ids(drawings),
        captions=[[Caption(text, row) for text in texts] for row, texts in enumerate(captions, start=1)],
        images=EmbeddedImages([drawing["image"]["bytes"] for drawing in drawings]),
    )


def _ids(drawings: list[dict[str, Any]]) -> list[str]:
    return [f"{drawing['vendor']}-{drawing['hexcode']}" for drawing in drawings]


def _groups(drawings: list[dict[str, Any]]) -> LabelledRows:
    return LabelledRows(
        origin=SAMPLE_PATH.name,
        rows=list(range(1, len(drawings) + 1)),
        ids=_ids(drawings),
        texts=[None] * len(drawings),
        labels=[drawing["group"] for drawing in drawings],
        images=EmbeddedImages([drawing["image"]["bytes"] for drawing in drawings]),
    )


def _text(drawing: dict[str, Any]) -> str:
    """The name and the first keywords that are not in it."""
    words = set(drawing["caption"].lower().split())
    new = [keyword for keyword in drawing["keywords"] if keyword not in words]
    return " ".join([drawing["caption"], *new[:_KEYWORDS_PER_TEXT]])
