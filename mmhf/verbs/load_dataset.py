"""`mmhf.load_dataset`: the data of a recipe as `datasets` knows data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from mmhf.data.table import DIGEST_COLUMN
from mmhf.tasks import task_of
from mmhf.verbs.own_data import resolve


def load_dataset(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    splits: Collection[str] | None = None,
    check_images: bool = True,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Read a recipe's data as training would: screened, filtered, cut into splits, limited.

    Args:
        recipe (`str`, `Path` or `Mapping`): A recipe by file, name or values.
        overrides (`Sequence[str]`, *optional*): As on the command line.
        splits (`Collection[str]`, *optional*): Those to read; absent: all that there are.
        check_images (`bool`, defaults to `True`): Look into local images, to leave out the broken ones.

    Returns:
        `DatasetDict`: By split, with the columns row, id, image (an `Image` feature), text or captions, label or
        labels (with the names of the classes). Data that is streamed gives an `IterableDatasetDict`.

    Raises:
        InputError: The recipe or its data cannot be used.
    """
    task = task_of(resolve(recipe, overrides).recipe)
    data = task.load_data(splits=splits, check_images=check_images)
    rows: Mapping[str, Any] = data.splits
    if any(isinstance(each, datasets.IterableDataset) for each in rows.values()):
        return datasets.IterableDatasetDict(dict(rows))
    found = {}
    for split, each in rows.items():
        features = each.features.copy()
        if isinstance(features.get("image"), dict):
            features["image"] = datasets.Image()
        if "label" in features and data.label_names:
            features["label"] = datasets.ClassLabel(names=list(data.label_names))
        if "labels" in features:
            ids = [[place for place, has in enumerate(row) if has] for row in each["labels"][:]]
            listed = datasets.Dataset.from_dict({"labels": ids})
            each = datasets.concatenate_datasets([each.remove_columns("labels"), listed], axis=1)
            features["labels"] = datasets.List(datasets.ClassLabel(names=list(data.label_names)))
        if DIGEST_COLUMN in features:
            each = each.remove_columns(DIGEST_COLUMN)
            del features[DIGEST_COLUMN]
        found[split] = each.cast(features)
    return datasets.DatasetDict(found)
