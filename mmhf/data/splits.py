"""Cutting one table into train, validation and test, and what given splits must hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mmhf.data.readers import TableFile, as_text
from mmhf.data.table import SPLITS, LabelledRows
from mmhf.errors import InputError
from mmhf.recipe.data_sections import FiltersSection
from mmhf.recipe.schema import SplitSection

SPLIT_OF_NAME = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What data sets call their splits, in small letters → our name."""


def split_positions(
    section: SplitSection, labels: Sequence[str | None], groups: Sequence[str | None] | None = None
) -> dict[str, list[int]]:
    """Cut rows into splits by the recipe's fractions.

    Args:
        section (`SplitSection`):
            Fractions, seed, and whether to keep the label proportions.
        labels (`Sequence[str | None]`):
            The label of each row; read when `section.stratify` is set.
        groups (`Sequence[str | None]`, *optional*):
            The group of each row; the rows of a group never span two splits, a row without one is its own group.

    Returns:
        `dict[str, list[int]]`: split → its rows in ascending order, each row in one split. A split whose fraction is 0
        is absent; a table too small for its fractions can leave a split empty.
    """
    fractions = {"validation": section.validation, "test": section.test}
    fractions = {"train": 1.0 - section.validation - section.test, **fractions}
    names = [name for name in SPLITS if fractions[name] > 0]
    shares = np.array([fractions[name] for name in names])
    classes = _codes([label if section.stratify else "" for label in labels])
    rng = np.random.default_rng(section.seed)
    if groups is None:
        assigned = _assign_rows(classes, shares, rng)
    else:
        keys = [f"row {row}" if group is None else f"group {group}" for row, group in enumerate(groups)]
        assigned = _assign_groups(_codes(keys), classes, shares, rng)
    return {name: np.flatnonzero(assigned == number).tolist() for number, name in enumerate(names)}


def _codes(values: Sequence[str | None]) -> np.ndarray:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], dtype=np.int64)


def _assign_rows(classes: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal the shuffled rows out class after class in one go: sizes and proportions are both met."""
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    assigned = np.empty(len(classes), dtype=np.int64)
    assigned[order] = _deal(len(order), shares)
    return assigned


def _deal(count: int, shares: np.ndarray) -> np.ndarray:
    """Deal `count` rows to splits so that every prefix is as close to the shares as it can be."""
    wanted = shares.tolist()
    given = [0] * len(wanted)
    dealt = []
    for number in range(1, count + 1):
        lacking = [share * number - had for share, had in zip(wanted, given, strict=True)]
        split = lacking.index(max(lacking))
        given[split] += 1
        dealt.append(split)
    return np.array(dealt, dtype=np.int64)


def _assign_groups(
    groups: np.ndarray, classes: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Give each group, large ones first, to the split that lacks most of what the group holds."""
    if not len(groups):
        return groups
    sizes = np.bincount(groups)
    num_classes = int(classes.max()) + 1
    # A group holds few of the classes: what it holds stands in a row of (class, count) pairs.
    pairs, counts = np.unique(groups * num_classes + classes, return_counts=True)
    first = np.searchsorted(pairs // num_classes, np.arange(len(sizes) + 1)).tolist()
    held_classes, held_counts = (pairs % num_classes).tolist(), counts.tolist()
    lacking = np.outer(shares, np.bincount(classes)).tolist()
    wanted = shares.tolist()
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    split_of = np.empty(len(sizes), dtype=np.int64)
    for group in order.tolist():
        held = range(first[group], first[group + 1])
        # Relative to the share: otherwise the largest split takes every large group.
        gains = [
            sum(split[held_classes[place]] * held_counts[place] for place in held) / share
            for split, share in zip(lacking, wanted, strict=True)
        ]
        chosen = gains.index(max(gains))
        split_of[group] = chosen
        for place in held:
            lacking[chosen][held_classes[place]] -= held_counts[place]
    return split_of[groups]


def require_groups_apart(tables: Mapping[str, TableFile], column: str) -> None:
    """Check that splits that are given share no group.

    Args:
        tables (`Mapping[str, TableFile]`):
            The table of each split.
        column (`str`):
            The column of the group (a patient, a lesion); rows without a value are in no group.

    Raises:
        InputError: a group is in two splits; the message names it and a row of each.
    """
    home: dict[str, tuple[str, int]] = {}
    for split, table in tables.items():
        for value, row in zip(table.columns[column], table.rows, strict=True):
            group = as_text(value)
            if group is None:
                continue
            other, first = home.setdefault(group, (split, row))
            if other != split:
                raise InputError(
                    f"{tables[other].origin}, row {first} ({other}) and {table.origin}, row {row} ({split}): {column} "
                    f"{group!r} is in both splits; move its rows into one, or remove data.split.group_by"
                )


def require_samples(
    splits: Mapping[str, LabelledRows], label_of: Mapping[str, str], filters: FiltersSection, *, given: bool
) -> None:
    """Check that each split has rows enough of each label, where the recipe has a `min_samples_per_label`.

    Args:
        splits (`Mapping[str, LabelledRows]`):
            The rows of each split.
        label_of (`Mapping[str, str]`):
            Label value → label name.
        filters (`FiltersSection`):
            `min_samples_per_label` and `min_samples_per_split` are read.
        given (`bool`):
            The splits are as the user made them: then `train` needs `min_samples_per_label` of each.

    Raises:
        InputError: a label is below; the message names it, the split and both counts.
    """
    least = filters.min_samples_per_label
    if least is None:
        return
    counts = {split: _count(rows.labels, label_of) for split, rows in splits.items()}
    totals = sum(counts.values(), Counter())
    for split, of_split in counts.items():
        of_train = given and split == "train"
        needed = least if of_train else filters.min_samples_per_split
        key = "min_samples_per_label" if of_train else "min_samples_per_split"
        for label, total in totals.items():
            if of_split[label] < needed:
                way_out = "move rows, or lower it" if of_train else "raise min_samples_per_label, or lower it"
                raise InputError(
                    f"{splits[split].origin}: label {label!r} has {of_split[label]} rows in {split} ({total} in all), "
                    f"fewer than data.filters.{key} = {needed}; {way_out}"
                )


def _count(labels: Sequence[str | None], label_of: Mapping[str, str]) -> Counter[str]:
    return Counter(label_of[label] for label in labels if label is not None and label in label_of)
