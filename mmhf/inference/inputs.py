"""What is to be predicted: rows with an image, and maybe a text, from a table or a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmhf.data.images import BadImageError, DataFolder, ImageInput
from mmhf.data.readers import TableFile, as_text, read_table, require_column
from mmhf.data.sources.fakeddit import IMAGE_FOLDERS
from mmhf.data.sources.image_folder import list_folder
from mmhf.errors import InputError
from mmhf.files import RECIPE_FILE
from mmhf.inference.hashing import files_hash

_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_USUAL_COLUMNS = {"image": ("image", "file_name"), "text": ("text",)}
_TEMPLATE_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class PredictionRows:
    """The rows of a table, of which each may have an image.

    Args:
        table (`TableFile`): The table's own columns, and which rows are malformed.
        texts (`list[str]`, *optional*): One a row, an absent text is empty; None when the model takes no text.
        image_column (`str`, *optional*): A column, or a template such as `{id}.jpg`; None when there are no images.
        text_column (`str`, *optional*): A column.
        folder (`DataFolder`): Holds the images; no path may leave it.
        table_hash (`str`): sha256 of the table's file, or of the names of a folder's images.
    """

    table: TableFile
    texts: list[str] | None
    image_column: str | None
    text_column: str | None
    folder: DataFolder
    table_hash: str

    def __len__(self) -> int:
        return len(self.table.rows)

    def image(self, index: int) -> ImageInput:
        """What `decode_image` takes for this row.

        Raises:
            BadImageError: The row is malformed, names no image, or one that it may not name.
        """
        if index in self.table.malformed:
            raise BadImageError(f"malformed row {self.table.rows[index]}: {self.table.malformed[index]}")
        value = self._image_value(index)
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        name = as_text(value)
        if name is None:
            raise BadImageError("no image is named")
        reason = self.folder.find_escape(name)
        if reason is not None:
            raise BadImageError(reason)
        return Path(self.folder.path_of(name))

    def images_hash(self) -> str:
        """sha256 over the path and size of every image file, so that a changed folder is noticed."""
        digest = hashlib.sha256()
        for index in range(len(self) if self.image_column is not None else 0):
            try:
                image = self.image(index)
                size = image.stat().st_size if isinstance(image, Path) else 0
            except (BadImageError, OSError):
                continue
            if isinstance(image, Path):
                digest.update(f"{index} {image.relative_to(self.folder.path)} {size}\n".encode(errors="replace"))
        return digest.hexdigest()

    def _image_value(self, index: int) -> Any:
        if self.image_column is None:
            return None
        if self.image_column in self.table.columns:
            return self.table.columns[self.image_column][index]
        fields = {
            name: as_text(self.table.columns[name][index]) for name in _TEMPLATE_FIELD.findall(self.image_column)
        }
        if None in fields.values():
            return None
        return _TEMPLATE_FIELD.sub(lambda match: str(fields[match[1]]), self.image_column)


def read_rows(
    input_path: str | Path,
    *,
    model_dir: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str | Path | None = None,
    limit: int | None = None,
    with_text: bool | None = True,
    with_image: bool | None = True,
) -> PredictionRows:
    """Read the rows to predict.

    Args:
        input_path (`str` or `Path`): A CSV, TSV, JSONL or parquet file, or a folder with one of `metadata.csv`,
            `metadata.jsonl` and `metadata.parquet`, whose `file_name` column names the images. Without text a folder
            needs none of these: every image below it is a row, in the order of their names.
        model_dir (`str` or `Path`, *optional*): Its `recipe.yaml` says which columns the model was trained on.
        columns (`Mapping[str, str]`, *optional*): Names of the columns `image` and `text`; these win.
        image_root (`str` or `Path`, *optional*): Folder of the images; absent: the table's own.
        limit (`int`, *optional*): Keep the first rows only.
        with_text (`bool`, *optional*, defaults to `True`): Whether texts are read; None: if there is a column of them.
        with_image (`bool`, *optional*, defaults to `True`): The same of images.

    Raises:
        InputError: The input, a column or the image folder is absent; the nearest name is given.
    """
    columns = dict(columns or {})
    for role in columns.keys() - _USUAL_COLUMNS.keys():
        raise InputError(f"columns.{role}: unknown, name the columns of image and text")
    if "text" in columns and with_text is False:
        raise InputError("columns.text: the model takes images alone")
    if "image" in columns and with_image is False:
        raise InputError("columns.image: texts alone are read")
    path = _table_file(Path(input_path), needs_table=with_text is True)
    table = _list_images(path) if path.is_dir() else read_table(path)
    if not table.rows:
        raise InputError(f"{path}: has no {'images' if path.is_dir() else 'rows'}")
    if limit is not None:
        table = table.select(list(range(min(limit, len(table.rows)))))
    trained_on = {} if path.is_dir() else _trained_columns(model_dir)
    text_column = _choose_optional(table, "text", columns, trained_on, wanted=with_text)
    image_column = _choose_optional(table, "image", columns, trained_on, wanted=with_image)
    if text_column is None and image_column is None:
        raise InputError(f"{path}: has neither a column of images nor one of texts; name one with --column")
    return PredictionRows(
        table=table,
        texts=None if text_column is None else [as_text(value) or "" for value in table.columns[text_column]],
        image_column=image_column,
        text_column=text_column,
        folder=DataFolder(
            _image_root(path if path.is_dir() else path.parent, image_root, trained_on.get("image_dirs", ()))
        ),
        table_hash=_names_hash(table) if path.is_dir() else files_hash([path]),
    )


def _table_file(path: Path, *, needs_table: bool) -> Path:
    """The table to read, or the folder itself where its images are the rows."""
    if not path.is_dir():
        return path
    for name in _METADATA_FILES:
        if (path / name).is_file():
            return path / name
    if not needs_table:
        return path
    raise InputError(f"{path}: needs one of {', '.join(_METADATA_FILES)} with the columns file_name and text")


def _list_images(path: Path) -> TableFile:
    names = sorted(list_folder(path, on_link_out="skip").images)
    return TableFile(str(path), {"file_name": names}, list(range(1, len(names) + 1)))


def _names_hash(table: TableFile) -> str:
    return hashlib.sha256("\n".join(table.columns["file_name"]).encode()).hexdigest()


def _trained_columns(model_dir: str | Path | None) -> dict[str, Any]:
    """The columns that the model's recipe reads: `image`, `text`, and for Fakeddit the places of its images."""
    recipe_file = None if model_dir is None else Path(model_dir) / RECIPE_FILE
    if recipe_file is None or not recipe_file.is_file():
        return {}
    data = (yaml.safe_load(recipe_file.read_text(encoding="utf-8")) or {}).get("data") or {}
    if data.get("source") == "fakeddit":
        image_dirs = (data["image_dir"],) if data.get("image_dir") else IMAGE_FOLDERS
        return {"image": "{id}.jpg", "text": data.get("text") or "clean_title", "image_dirs": image_dirs}
    return data.get("columns") or {}


def _choose_optional(
    table: TableFile, role: str, given: Mapping[str, str], trained_on: Mapping[str, Any], *, wanted: bool | None
) -> str | None:
    """`_choose` where a column is wanted; where it is optional (None), the one that there is."""
    if wanted or (wanted is None and role in given):
        return _choose(table, role, given, trained_on)
    usual = [trained_on[role]] if role in trained_on else []
    there = [name for name in (*usual, *_USUAL_COLUMNS[role]) if name in table.columns]
    return there[0] if wanted is None and there else None


def _choose(table: TableFile, role: str, given: Mapping[str, str], trained_on: Mapping[str, Any]) -> str:
    """The column that was given; else the first there is of the recipe's, the usual ones and the recipe's template."""
    if role in given:
        candidates = [given[role]]
    else:
        trained = [trained_on[role]] if role in trained_on else []
        candidates = sorted([*trained, *_USUAL_COLUMNS[role]], key=lambda name: "{" in name)
    for name in candidates:
        needed = [name] if name in table.columns or role != "image" else _TEMPLATE_FIELD.findall(name) or [name]
        if all(column in table.columns for column in needed):
            return name
    for column in _TEMPLATE_FIELD.findall(candidates[0]) or candidates[:1]:
        require_column(table.origin, column, table.columns)
    raise AssertionError(f"{candidates[0]} is there and was not chosen")


def _image_root(beside: Path, image_root: str | Path | None, usual: Iterable[str]) -> Path:
    if image_root is None:
        found = [beside / name for name in usual if (beside / name).is_dir()]
        return found[0] if found else beside
    if not Path(image_root).is_dir():
        raise InputError(f"image_root: no such folder: {image_root}")
    return Path(image_root)
