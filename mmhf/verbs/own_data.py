"""Data in memory: DataFrames, data sets and lists become a table in the cache, which a recipe reads as any other."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mmhf.errors import InputError
from mmhf.files import whole_file
from mmhf.recipe import ResolvedRecipe, load_recipe, recipe_from_dict
from mmhf.recipe.caption_data_sections import CaptionTableSection
from mmhf.recipe.combinations import KEYS_OF_TEXTS
from mmhf.recipe.data_sections import TableDataSection
from mmhf.recipe.resolve import recipe_values
from mmhf.recipe.schema import RecipeBase

OwnData: TypeAlias = pd.DataFrame | datasets.Dataset | Dataset[Any] | Sequence[Any]
"""Rows with columns: a DataFrame, a data set of `datasets` or torch, or a list of dicts."""

_FOLDER = "mmhf_own_data"
_OF_FILES = {"source", "path", "train", "validation", "test", "image_root", "split_column", "prepared"}
_TASKS_WITH_CAPTIONS = ("image-captioning", "contrastive")


@dataclass(frozen=True)
class OwnTable:
    """A table in the cache.

    Attributes:
        path (`Path`): A parquet file that is named after its content.
        image_root (`str`, *optional*): The folder of the images, where the table names files.
    """

    path: Path
    image_root: str | None


def resolve(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    train_dataset: OwnData | None = None,
    eval_dataset: OwnData | None = None,
) -> ResolvedRecipe:
    """A recipe by file, name or values, with data in memory in place of its own.

    Args:
        recipe (`str`, `Path` or `dict`): The recipe; its `data:` may be absent where data is given.
        overrides (`Sequence[str]`): As on the command line.
        train_dataset, eval_dataset (*optional*): The data; without `eval_dataset`, `data.split` cuts it off.

    Raises:
        InputError: The recipe is wrong, or the data cannot be written as a table.
    """
    if train_dataset is None:
        if eval_dataset is not None:
            raise InputError("eval_dataset is given without train_dataset; give both, or name the data in the recipe")
        if isinstance(recipe, Mapping):
            return recipe_from_dict(dict(recipe), name="recipe", overrides=overrides)
        return load_recipe(recipe, overrides)
    values = recipe_values(recipe, overrides)
    given = {"path": train_dataset} if eval_dataset is None else {"train": train_dataset, "validation": eval_dataset}
    name = "recipe" if isinstance(recipe, Mapping) else Path(recipe).stem
    return recipe_from_dict(with_own_data(values, given), name=name)


def with_own_data(values: Mapping[str, Any], given: Mapping[str, OwnData]) -> dict[str, Any]:
    """A recipe's values with tables of data in memory.

    Args:
        values (`dict`): The recipe.
        given (`dict`): `path`, `train`, `validation` or `test` → the data.
    """
    of_captions = values.get("task") in _TASKS_WITH_CAPTIONS
    section: type[TableDataSection | CaptionTableSection] = CaptionTableSection if of_captions else TableDataSection
    before = dict(values.get("data") or {})
    kept = {key: value for key, value in before.items() if key in section.model_fields and key not in _OF_FILES}
    if values.get("task") == "image-classification":  # a source's defaults are written into recipes, unread ones too
        kept = {key: value for key, value in kept.items() if key not in KEYS_OF_TEXTS}
    if "path" not in given:  # what cuts a table does not belong to splits that are given
        kept = {key: value for key, value in kept.items() if key not in ("split", "filters")}
    if "test" in given:  # where there is nothing to cut into folds
        kept.pop("fold", None)
    if before.get("source") not in (None, "table", "hub"):
        kept.pop("columns", None)
    image = (kept.get("columns") or {}).get("image") or "image"
    tables = {key: write_table(data, image) for key, data in given.items()}
    roots = {table.image_root for table in tables.values() if table.image_root is not None}
    root = {} if not roots else {"image_root": os.path.commonpath(sorted(roots))}
    if of_captions:  # where the source would look for metadata's file_name
        kept["columns"] = {**(kept.get("columns") or {}), "image": image}
    files = {key: str(table.path) for key, table in tables.items()}
    return {**values, "data": {**kept, "source": "table", **files, **root}}


def columns_to_read(recipe: RecipeBase, names: Sequence[str]) -> dict[str, str]:
    """The columns of image and text that a trained model reads, as inference takes them, of those that are there."""
    section = recipe.data
    trained = section.columns.model_dump() if isinstance(section, TableDataSection | CaptionTableSection) else {}
    roles = ("image", "text") if recipe.task == "image-text-classification" else ("image",)
    chosen = {role: next((name for name in (trained.get(role), role) if name in names), None) for role in roles}
    return {role: name for role, name in chosen.items() if name is not None}


def write_table(data: OwnData, image: str) -> OwnTable:
    """Write data in memory into the cache; the same data gives the same file.

    Args:
        data (`OwnData`): The rows.
        image (`str`): The column of images: paths, PIL images, arrays, bytes, or dicts of `path` and `bytes`.

    Raises:
        InputError: It has no rows or no such column, or an image is something else.
    """
    columns = columns_of(data)
    if not columns or not len(next(iter(columns.values()))):
        raise InputError("the data that was given has no rows")
    root: str | None = None
    if image in columns:
        cells = [_image_cell(value, row) for row, value in enumerate(columns[image])]
        paths = [cell["path"] for cell in cells if cell["path"] is not None]
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else None
        columns = {**columns, image: cells}
    table = pa.table({name: _array(values, is_image=name == image) for name, values in columns.items()})
    content = io.BytesIO()
    pq.write_table(table, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    path = Path(datasets.config.HF_DATASETS_CACHE) / _FOLDER / f"{digest}.parquet"
    if not path.exists():
        with whole_file(path) as temporary:
            temporary.write_bytes(content.getvalue())
    return OwnTable(path, root)


def columns_of(data: OwnData) -> dict[str, list[Any]]:
    """The columns of data in memory.

    Raises:
        InputError: The data, or one of its rows, is of a kind that cannot be read.
    """
    if isinstance(data, pd.DataFrame):
        return {str(name): [None if _is_missing(value) else value for value in data[name]] for name in data.columns}
    if isinstance(data, datasets.Dataset):
        return _columns_of_data_set(data)
    if isinstance(data, datasets.IterableDataset) or not isinstance(data, Sized):
        raise InputError("the data has no length: give a data set that is no stream, or name its files in a recipe")
    by_number: Any = data  # a sequence, or a torch data set with a length
    rows = [_row(by_number[index], data) for index in range(len(data))]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _columns_of_data_set(data: datasets.Dataset) -> dict[str, list[Any]]:
    data = data.with_format(None)
    named = {}
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.ClassLabel):
            named[name] = feature
    columns = {name: data[name][:] for name in data.column_names}
    for name, feature in named.items():
        columns[name] = [None if value is None or value < 0 else feature.int2str(value) for value in columns[name]]
    return columns


def _row(row: object, data: object) -> dict[str, Any]:
    """A row of a torch data set or list: a dict, or an image with its label or captions as torchvision gives them."""
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, tuple) and len(row) == 2:
        image, target = row
        if isinstance(target, str | list):
            return {"image": image, "caption": target}
        classes = getattr(data, "classes", None)  # torchvision's data sets name them there
        label = int(target) if isinstance(target, int | np.integer | Tensor) else target
        return {"image": image, "label": classes[label] if classes and isinstance(label, int) else label}
    raise InputError(f"a row of the data is a {type(row).__name__}; give dicts of columns, or (image, label) tuples")


def _image_cell(value: object, row: int) -> dict[str, Any]:
    if value is None:
        return {"path": None, "bytes": None}
    if isinstance(value, str | Path):
        return {"path": os.path.abspath(value), "bytes": None}
    if isinstance(value, bytes):
        return {"path": None, "bytes": value}
    if isinstance(value, Mapping) and {"path", "bytes"} & value.keys():
        content, path = value.get("bytes"), value.get("path")
        return {"path": os.path.abspath(path) if content is None and path is not None else None, "bytes": content}
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        raise InputError(
            f"row {row + 1} of the data: an image is a {type(value).__name__}; give paths, PIL images, bytes or uint8 "
            "arrays, and leave resizing and augmentation to the recipe"
        )
    stream = io.BytesIO()
    value.save(stream, "PNG")
    return {"path": None, "bytes": stream.getvalue()}


def _array(values: Sequence[Any], *, is_image: bool) -> pa.Array:
    if is_image:
        return pa.array(values, pa.struct({"path": pa.string(), "bytes": pa.binary()}))
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError):  # a column of several types
        return pa.array([None if value is None else str(value) for value in values], pa.string())
