"""What splits must hold: no group in two of them, enough rows of each label in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mmhf.data.rows import LabelledRows
from mmhf.data.sources.table_files import TableFile, as_text
from mmhf.errors import InputError
from mmhf.recipe.filter_sections import FiltersSection


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
