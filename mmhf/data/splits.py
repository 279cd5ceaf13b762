"""Cutting one table into train, validation and test, and what given splits must hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmhf.data.columns import codes_of, number_rows
from mmhf.data.images import shorten
from mmhf.data.label_sets import label_matrix, label_places
from mmhf.data.labels import count_labels
from mmhf.data.stratification import iterative_stratification
from mmhf.data.table import SPLITS, SourceTable, Span, extra_column
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import ImageSplitSection
from mmhf.recipe.row_sections import FiltersSection, SplitSection
from mmhf.recipe.sections import SplitName

SPLIT_OF_NAME: dict[str, SplitName] = {
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
Positions = NDArray[np.int64]


def name_splits(
    values: pa.Array | pa.ChunkedArray,
    faults: pa.Array | pa.ChunkedArray,
    what: str,
    names: Mapping[str, str] = SPLIT_OF_NAME,
) -> tuple[pa.Array, pa.Array]:
    """Read a column that says the split.

    Args:
        values (`pa.Array`):
            What the source calls the split of each row.
        faults (`pa.Array`):
            Why rows cannot be read, else null.
        what (`str`):
            The column, for messages.
        names (`Mapping[str, str]`):
            What sources call a split, in small letters → our name.

    Returns:
        `tuple`: splits and faults. A row of no split is listed with the first one, so that it is named somewhere.
    """
    codes, given = codes_of(values)
    found = [names.get(value.lower()) for value in given] + [None]
    reasons = [f"{what} is {shorten(value)}, not train, validation or test" for value in [*given, None]]
    split = pa.array([name or "train" for name in found], pa.string()).take(pa.array(codes % len(found)))
    wrong = np.array([name is None for name in found])[codes]
    reason = pa.array(reasons, pa.string()).take(pa.array(codes % len(found), mask=~wrong))
    faults = faults.combine_chunks() if isinstance(faults, pa.ChunkedArray) else faults
    return split, pa.compute.coalesce(faults, reason)


def cut_splits(source: SourceTable, positions: Positions) -> dict[str, Positions]:
    """Find the rows of each split: those that the source gives, and the others cut as `source.cut` says.

    Args:
        source (`SourceTable`):
            The rows.
        positions (`NDArray`):
            Those that are used.

    Returns:
        `dict[str, NDArray]`: split → positions, in the order in which they were given.
    """
    # A file without rows is a split without rows.
    given = [split for split in source.parts if split is not None]
    found: dict[str, list[Positions]] = {split: [positions[:0]] for split in given}
    for span in source.cut_apart or [Span(0, len(source.rows), source.cut)]:
        within = positions[(positions >= span.start) & (positions < span.stop)]
        for split, chosen in _cut_span(source, within, span.cut, given).items():
            found.setdefault(split, []).append(chosen)
    return {split: np.concatenate(found[split]) for split in SPLITS if split in found}


def _cut_span(
    source: SourceTable, positions: Positions, cut: SplitSection | ImageSplitSection | None, given: Sequence[str]
) -> dict[str, Positions]:
    codes, names = codes_of(source.column("split").take(pa.array(positions)))
    splits = {split: positions[codes == names.index(split)] for split in SPLITS if split in names}
    uncut = positions[codes < 0]
    if cut is not None and (len(uncut) or not names):
        # Nothing is cut for a split that is given.
        share = cut.model_copy(
            update={split: 0.0 for split in ("validation", "test") if split in splits or split in given}
        )
        chosen = pa.array(uncut)
        name = next((name for name in ("label", "labels") if name in source.rows.column_names), None)
        labels = [""] * len(uncut) if name is None else source.column(name).take(chosen)
        grouped = group_column(source, share)
        groups = None if grouped is None else source.column(grouped).take(chosen)
        for split, places in split_positions(share, labels, groups).items():
            splits[split] = uncut[places]
    return splits


def group_column(source: SourceTable, section: SplitSection | ImageSplitSection) -> str | None:
    """The column of a source whose equal values no cut separates; None: there is none."""
    by = section.group_by if isinstance(section, SplitSection) else None
    return "image_group" if "image_group" in source.rows.column_names else by and extra_column(by)


def split_positions(
    section: SplitSection | ImageSplitSection,
    labels: Sequence[str | None] | pa.ChunkedArray,
    groups: Sequence[str | None] | pa.ChunkedArray | None = None,
) -> dict[str, list[int]]:
    """Cut rows into splits by the recipe's fractions.

    Args:
        section (`SplitSection` or `ImageSplitSection`):
            Fractions, seed, and whether to keep the label proportions.
        labels (`Sequence[str | None]` or `pa.ChunkedArray`):
            The label of each row, or a list of its labels; read when `section.stratify` is set.
        groups (`Sequence[str | None]` or `pa.ChunkedArray`, *optional*):
            The group of each row; the rows of a group never span two splits, a row without one is its own group.

    Returns:
        `dict[str, list[int]]`: split → its rows in ascending order, each row in one split. A split whose fraction is 0
        is absent; a table too small for its fractions can leave a split empty.
    """
    fractions = {"validation": section.validation, "test": section.test}
    fractions = {"train": 1.0 - section.validation - section.test, **fractions}
    names = [name for name in SPLITS if fractions[name] > 0]
    assigned = assign_rows(section, np.array([fractions[name] for name in names]), labels, groups)
    return {name: np.flatnonzero(assigned == number).tolist() for number, name in enumerate(names)}


def assign_rows(
    section: SplitSection | ImageSplitSection,
    shares: NDArray[np.float64],
    labels: Sequence[str | None] | pa.ChunkedArray,
    groups: Sequence[str | None] | pa.ChunkedArray | None = None,
) -> NDArray[np.int64]:
    """Give each row to one of several parts.

    Args:
        section, labels, groups: As `split_positions` takes them; `stratify` and `seed` are read.
        shares (`NDArray` of shape `(S,)`):
            The share of each part, of 1.

    Returns:
        `NDArray` of shape `(N,)`: the number of each row's part.
    """
    rows, classes = np.arange(len(labels)), np.zeros(len(labels), dtype=np.int64)
    stratify = isinstance(section, SplitSection) and section.stratify
    rng = np.random.default_rng(section.seed)
    if stratify and isinstance(labels, pa.ChunkedArray) and pa.types.is_list(labels.type):
        sets = labels.combine_chunks()
        values = {value: number for number, value in enumerate(codes_of(pa.compute.list_flatten(sets))[1])}
        if groups is None and values:
            return iterative_stratification(label_matrix(sets, values, len(values)), shares, rng)
        places, ids = label_places(sets, values)
        # Each row counts as a row, and as one of each of its labels.
        rows, classes = np.concatenate([rows, places]), np.concatenate([classes, 1 + ids])
    elif stratify:
        codes, found = codes_of(labels)
        classes = number_rows(np.where(codes < 0, len(found), codes))  # rows without a label are a class, too
    if groups is None:
        return _assign_rows(classes, shares, rng)
    return _assign_groups(number_rows(codes_of(groups)[0]), rows, classes, shares=shares, rng=rng)


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
    groups: np.ndarray, rows: np.ndarray, classes: np.ndarray, *, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Give each group, large ones first, to the split that lacks most of what the group holds.

    Args:
        groups: (N,), the group of each row.
        rows, classes: (M,), pairs of a row and a class that it has; shares and rng are those of `split_positions`.
    """
    if not len(groups):
        return groups
    sizes = np.bincount(groups)
    num_classes = int(classes.max()) + 1
    # A group holds few of the classes: what it holds stands in a row of (class, count) pairs.
    pairs, counts = np.unique(groups[rows] * num_classes + classes, return_counts=True)
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
    assigned: np.ndarray = split_of[groups]
    return assigned


def require_groups_apart(source: SourceTable, splits: Mapping[str, Positions], column: str) -> None:
    """Check that splits that are given share no group.

    Args:
        source (`SourceTable`):
            The rows.
        splits (`Mapping[str, NDArray]`):
            The positions of each split.
        column (`str`):
            The column of the group (a patient, a lesion); rows without a value are in no group.

    Raises:
        InputError: a group is in two splits; the message names it and a row of each.
    """
    codes, groups = codes_of(source.column(extra_column(column)))
    home = np.full(len(groups), -1)
    for number, (split, positions) in enumerate(splits.items()):
        held = codes[positions]
        present = held >= 0
        shared = np.flatnonzero(present & (home[held] >= 0) & (home[held] != number))
        if len(shared):
            group = held[shared[0]]
            other = list(splits)[home[group]]
            first = splits[other][np.flatnonzero(codes[splits[other]] == group)[0]]
            rows = source.column("row")
            raise InputError(
                f"{source.part(other).origin}, row {rows[int(first)]} ({other}) and {source.part(split).origin}, row "
                f"{rows[int(positions[shared[0]])]} ({split}): {column} {shorten(groups[group])} is in both splits; "
                "move its rows into one, or remove data.split.group_by"
            )
        home[held[present]] = number


def require_samples(
    source: SourceTable, splits: Mapping[str, Positions], label_of: Mapping[str, str], filters: FiltersSection
) -> None:
    """Check that each split has rows enough of each label, where the recipe has a `min_samples_per_label`.

    Args:
        source (`SourceTable`):
            The rows; where they were not cut, `train` needs `min_samples_per_label` of each.
        splits (`Mapping[str, NDArray]`):
            The positions of each split.
        label_of (`Mapping[str, str]`):
            Label value → label name.
        filters (`FiltersSection`):
            `min_samples_per_label` and `min_samples_per_split` are read.

    Raises:
        InputError: a label is below; the message names it, the split and both counts.
    """
    least = filters.min_samples_per_label
    if least is None:
        return
    counts = count_labels(source.column("label"), splits, label_of)
    totals = sum(counts.values(), Counter())
    for split, of_split in counts.items():
        of_train = not source.is_cut and split == "train"
        needed = least if of_train else filters.min_samples_per_split
        key = "min_samples_per_label" if of_train else "min_samples_per_split"
        for label, total in totals.items():
            if of_split[label] < needed:
                way_out = "move rows, or lower it" if of_train else "raise min_samples_per_label, or lower it"
                raise InputError(
                    f"{source.part(split).origin}: label {label!r} has {of_split[label]} rows in {split} "
                    f"({total} in all), "
                    f"fewer than data.filters.{key} = {needed}; {way_out}"
                )
