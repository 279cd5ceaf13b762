"""Cutting one table into train, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmhf.data.rows import SPLITS
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
    given = np.zeros(len(shares))
    dealt = np.empty(count, dtype=np.int64)
    for number in range(count):
        dealt[number] = int(np.argmax(shares * (number + 1) - given))
        given[dealt[number]] += 1
    return dealt


def _assign_groups(
    groups: np.ndarray, classes: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Give each group, large ones first, to the split that lacks most of what the group holds."""
    if not len(groups):
        return groups
    contents = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(contents, (groups, classes), 1)
    lacking = np.outer(shares, contents.sum(axis=0))
    order = rng.permutation(len(contents))
    order = order[np.argsort(-contents[order].sum(axis=1), kind="stable")]
    split_of = np.empty(len(contents), dtype=np.int64)
    for group in order:
        # Relative to the share: otherwise the largest split takes every large group.
        gain = (lacking * contents[group]).sum(axis=1) / shares
        split_of[group] = int(np.argmax(gain))
        lacking[split_of[group]] -= contents[group]
    return split_of[groups]
