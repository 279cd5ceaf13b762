"""What is wrong with loaded data: found from names and counts, before an image is read or a step is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.discovery.roots import nearest_root, sample
from mmhf.data.images import cut, shorten
from mmhf.data.loading import LoadedData
from mmhf.recipe.caption_data_sections import CaptionTableSection
from mmhf.recipe.data_sections import DataSectionBase, TableDataSection
from mmhf.recipe.data_sources import JoinedDataSection

_LOOKED_AT = 200
_LEAST_ROWS = 10
_SHOWN = 5


@dataclass
class DataCheck:
    """What was found.

    Attributes:
        problems (`list[str]`): What training would refuse, or learn nothing from; each with a way out.
        notes (`list[str]`): What it would go on with.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_data(section: DataSectionBase, data: LoadedData) -> DataCheck:
    """Look for images that are not there, labels that are none, and classes without rows.

    Args:
        section (`DataSectionBase`): The recipe's `data:`.
        data (`LoadedData`): What was loaded of it, its images not yet looked at.
    """
    check = DataCheck()
    _check_images(section, data, check)
    _check_labels(section, data, check)
    return check


def _check_images(section: DataSectionBase, data: LoadedData, check: DataCheck) -> None:
    names = [path for rows in _tables(data).values() for path in _local_paths(rows)]
    tried = sample(names, _LOOKED_AT)
    missing = [name for name in tried if not os.path.isfile(name)]
    if not missing:
        return
    told = f"{len(missing)} of {len(tried)} images tried are missing, such as {cut(missing[0])}"
    if 2 * len(missing) < len(tried) and section.on_bad_image != "raise":
        check.notes.append(f"{told}; on_bad_image: {section.on_bad_image}")
        return
    check.problems.append(f"data: {told}{_way_out(section, missing)}")


def _way_out(section: DataSectionBase, missing: Sequence[str]) -> str:
    """The nearest folder that has the missing images, for tables that name them below one."""
    if not isinstance(section, TableDataSection | CaptionTableSection):
        joined = isinstance(section, JoinedDataSection)
        return f"; put them there, or correct {'the paths in data.datasets' if joined else 'data.path'}"
    table = section.path or section.train or section.validation or section.test
    given = section.image_root
    if table is None or isinstance(given, dict) or "://" in table or "://" in (given or ""):
        return "; correct data.image_root"
    table = section.versioned(table) if isinstance(section, TableDataSection) else table
    beside = Path(table) if os.path.isdir(table) else Path(table).parent
    if given is not None and isinstance(section, TableDataSection):
        given = section.versioned(given)
    root = os.path.realpath(beside if given is None else given)
    below = [os.path.relpath(os.path.realpath(name), root) for name in missing]
    found = nearest_root(below, beside)
    if not found.found:
        return f"; no folder around {beside} has them: put them there, or correct data.image_root"
    return f"; {found.found} of {found.tried} are below {found.folder}: set data.image_root={found.folder}"


def _check_labels(section: DataSectionBase, data: LoadedData, check: DataCheck) -> None:
    train = _tables(data).get("train")
    if not data.label_names or train is None:
        return
    if "numbers" in train.column_names:
        return
    if "labels" in train.column_names:
        counts = np.asarray(train["labels"][:]).sum(axis=0)
        _name_few(data, counts, check)
        return
    counts = np.bincount([label for label in train["label"][:] if label >= 0], minlength=len(data.label_names))
    rows, classes = int(counts.sum()), len(data.label_names)
    column = section.columns.label if isinstance(section, TableDataSection) else "the label"
    words = float(np.mean([len(name.split()) for name in data.label_names]))
    if rows >= _LEAST_ROWS and (2 * classes > rows or (words > 5 and classes > 50)):
        what = "texts" if words > 2 else "ids or numbers"
        check.problems.append(
            f"data: {column} has {classes:,} classes for {rows:,} training rows, such as "
            f"{shorten(data.label_names[0])}: these are {what}, no classes; data.columns.label names another column"
        )
        return
    empty = [name for name, count in zip(data.label_names, counts, strict=True) if not count]
    if empty:
        check.problems.append(
            f"data: {_some(empty)} has no training row, so that it is never predicted; leave it out with "
            "data.filters.min_samples_per_label=3, or add rows"
        )
    _name_few(data, counts, check)


def _name_few(data: LoadedData, counts: NDArray[np.int64], check: DataCheck) -> None:
    few = [f"{name} ({count})" for name, count in zip(data.label_names, counts, strict=True) if 0 < count < 3]
    if few:
        check.notes.append(f"classes of fewer than 3 training rows: {_some(few)}")


def _tables(data: LoadedData) -> dict[str, datasets.Dataset]:
    return {split: rows for split, rows in data.splits.items() if isinstance(rows, datasets.Dataset)}


def _local_paths(rows: datasets.Dataset) -> list[str]:
    images: Any = rows.with_format("arrow").select_columns("image")
    step = max(len(rows) // _LOOKED_AT, 1)
    places = list(range(0, len(rows), step))[:_LOOKED_AT]
    found = images[places].column("image").to_pylist()
    return [
        each["path"] for each in found if each and each["path"] and each["bytes"] is None and "://" not in each["path"]
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
