"""What data turned out to be."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, UnidentifiedImageError

CLASSIFY_PAIRS, CLASSIFY, CONTRAST, CAPTION = (
    "image-text-classification",
    "image-classification",
    "contrastive",
    "image-captioning",
)
LOOKED_AT = 12
"""Images that are opened to find their usual size."""
_RARE = 3
"""Rows that a label needs to be in each split of a table that is cut."""


@dataclass
class Finding:
    """What data turned out to be.

    Attributes:
        what (`str`): In words, with the number of rows or images.
        sections (`dict[str, dict]`): Task that it can train → the recipe's `data:` section, the likeliest first.
        saw (`list[str]`): Facts, one a line.
        guessed (`list[str]`): What was chosen and why, one a line.
        rows (`int`, *optional*): Rows, or images, of all splits; None when they are not counted.
        classes (`Counter[str]`): Label → rows.
        side (`int`, *optional*): Shorter side of a typical image in pixels.
        target (`str`): What the label is: `classes`, `multi_label` or `regression`.
        columns (`dict[str, list[str]]`): `numbers` and `categories` of the table that a model could read besides.
        derived (`str`, *optional*): Content of the table that has to be written for it.
    """

    what: str
    sections: dict[str, dict[str, Any]]
    saw: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    rows: int | None = None
    classes: Counter[str] = field(default_factory=Counter)
    side: int | None = None
    target: str = "classes"
    columns: dict[str, list[str]] = field(default_factory=dict)
    derived: str | None = None

    def leave_out_rare(self, section: dict[str, Any]) -> dict[str, Any]:
        """A `data:` section that leaves out labels that cannot be in each split; those labels no longer count."""
        rare = [name for name, count in self.classes.items() if count < _RARE]
        if not rare or len(self.classes) - len(rare) < 2:
            return section
        self.guessed.append(f"left out: {len(rare)} classes of fewer than {_RARE} rows, such as {rare[0]}")
        for name in rare:
            del self.classes[name]
        if self.target == "multi_label":
            named = {"names": sorted(self.classes), "others": "ignore"}
            return {**section, "multi_label": {**section["multi_label"], **named}}
        return {**section, "filters": {"min_samples_per_label": _RARE, "min_samples_per_split": 0}}


def captioned(section: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of images with captions, which train a dual encoder as well as a captioner."""
    return {CONTRAST: section, CAPTION: section}


def typical_side(images: Sequence[Path | bytes]) -> int | None:
    """Median of the shorter sides of some images, in pixels; None when none of them can be read."""
    sides = []
    for image in images:
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                sides.append(min(opened.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    return int(median(sides)) if sides else None


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and an ellipsis where there are more."""
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])
