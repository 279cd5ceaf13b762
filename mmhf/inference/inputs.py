"""The input of a job: rows with images, texts, captions, columns of a table or folder, and how changes are noticed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.utils.data import Dataset

from mmhf.conventions import as_text
from mmhf.data.captions import captions_in
from mmhf.data.columns import encodable, text_array
from mmhf.data.images import BadImageError, DataFolder
from mmhf.data.pixels import decode_pixels
from mmhf.data.readers import TableFile, read_table, require_column
from mmhf.data.sources.fakeddit import IMAGE_FOLDERS
from mmhf.data.sources.image_folder import list_folder
from mmhf.errors import InputError
from mmhf.files import read_yaml_object, recipe_of_model

_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_USUAL_COLUMNS = {"image": ("image", "file_name"), "text": ("text",)}
_CAPTION_COLUMNS = ("caption", "captions")
_TEMPLATE_FIELD = re.compile(r"\{([^{}]+)\}")
_CHUNK_BYTES = 1 << 20
# Files that predictions depend on; reports and metrics are not among them.
_MODEL_FILES = ("*.safetensors", "*config.json", "*token*.json", "vocab.*", "merges.txt", "*.model")
IMAGE, TEXT, COLUMNS = "image", "text", "columns"


def files_hash(paths: Iterable[Path]) -> str:
    """sha256 over the names and contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def model_hash(folder: Path) -> str:
    """sha256 over the weights, configuration and tokenizer of a model's folder."""
    return files_hash(sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}))


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, of which each may have an image and texts.

    Args:
        table (`TableFile`): The table's own columns, and which rows are malformed.
        texts (`pa.Array`, *optional*): Lists of a row's texts: one, its captions, or none where it has none; None
            when no texts are read.
        image_column (`str`, *optional*): A column, or a template such as `{id}.jpg`; None when there are no images.
        text_columns (`tuple[str, ...]`): Where the texts are from.
        folder (`DataFolder`): Holds the images; no path may leave it.
        table_hash (`str`): sha256 of the table's file, or of the names of a folder's images.
        values (`Mapping[str, pa.Array]`): Column that the model reads → its values, as texts.
        value_columns (`Mapping[str, str]`): The same names → what the table calls them.
    """

    table: TableFile
    texts: pa.Array | None
    image_column: str | None
    text_columns: tuple[str, ...]
    folder: DataFolder
    table_hash: str
    values: Mapping[str, pa.Array] = field(default_factory=dict)
    value_columns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table.rows)

    def image(self, index: int) -> Path | bytes:
        """The file of a row's image, or its content.

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
        name = self.folder.find_name(name)
        reason = self.folder.find_escape(name)
        if reason is not None:
            raise BadImageError(reason)
        return Path(self.folder.path_of(name))

    def example(self, index: int, *, with_image: bool = True) -> Example:
        """A row with its image decoded."""
        texts = tuple(self.texts[index].as_py()) if self.texts is not None else ()
        columns = {name: values[index].as_py() for name, values in self.values.items()} or None
        if not with_image:
            return Example(texts=texts, columns=columns)
        state, digest = self.image_state(index), ""
        try:
            image = self.image(index)
            if isinstance(image, Path) and state.startswith("file"):
                image = image.read_bytes()
                digest = _digest(image)
            return Example(decode_pixels(image), texts, state=state, digest=digest, columns=columns)
        except BadImageError as error:
            reason = str(error)
        except OSError as error:
            reason = f"the image file cannot be read: {error.strerror}"
        return Example(None, texts, reason, state, digest, columns)

    def first_texts(self) -> list[str]:
        """Each row's first text, `""` where it has none."""
        return [] if self.texts is None else [texts[0] if texts else "" for texts in self.texts.to_pylist()]

    def image_state(self, index: int) -> str:
        """What changes with the content of a row's image file, and at times without it: its size and its times."""
        if self.image_column is None:
            return "none"
        try:
            image = self.image(index)
            if isinstance(image, bytes):
                return "in the table"
            stat = image.stat()
            return f"file {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        except BadImageError:
            return "none"
        except (OSError, ValueError):
            return "absent"

    def image_digest(self, index: int) -> str:
        """What tells apart contents of a row's image file; empty where there is none to read."""
        try:
            image = self.image(index)
            return _digest(image.read_bytes()) if isinstance(image, Path) else ""
        except (BadImageError, OSError, ValueError):
            return ""

    def _image_value(self, index: int) -> Any:
        if self.image_column is None:
            return None
        if self.image_column in self.table.columns:
            return self.table.value(self.image_column, index)
        names = _TEMPLATE_FIELD.findall(self.image_column)
        fields = {name: as_text(self.table.value(name, index)) for name in names}
        if None in fields.values():
            return None
        return _TEMPLATE_FIELD.sub(lambda match: str(fields[match[1]]), self.image_column)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Example:
    """A row as a model sees it.

    Args:
        image (`Tensor`, *optional*): Its pixels, uint8 (3, H, W); None where there is none that can be used.
        texts (`tuple[str, ...]`): A text, captions, or nothing.
        image_error (`str`, *optional*): Why there is no image.
        state, digest (`str`): See `TableRows.image_state` and `TableRows.image_digest`.
        columns (`Mapping[str, object]`, *optional*): Column that the model reads → its value; None where it has none.
    """

    image: Tensor | None = None
    texts: tuple[str, ...] = ()
    image_error: str | None = None
    state: str = "none"
    digest: str = ""
    columns: Mapping[str, object] | None = None


class RowExamples(Dataset[Example]):
    """Decoded rows.

    Args:
        rows ([`TableRows`]): The rows.
        with_image (`bool`): Whether images are read.
    """

    def __init__(self, rows: TableRows, *, with_image: bool) -> None:
        self.rows = rows
        self.with_image = with_image

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.rows.example(index, with_image=self.with_image)


def read_rows(
    input_path: str | Path,
    *,
    model_dir: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str | Path | None = None,
    limit: int | None = None,
    reads: Mapping[str, bool | None] | None = None,
    captions: bool = False,
    value_columns: Sequence[str] = (),
) -> TableRows:
    """Read the rows to predict or embed.

    Args:
        input_path (`str` or `Path`): A CSV, TSV, JSONL or parquet file, or a folder with one of `metadata.csv`,
            `metadata.jsonl` and `metadata.parquet`, whose `file_name` column names the images. Without text a folder
            needs none of these: every image below it is a row, in the order of their names.
        model_dir (`str` or `Path`, *optional*): Its `recipe.yaml` says which columns the model was trained on.
        columns (`Mapping[str, str]`, *optional*): Names of the columns `image` and `text`, and of those that the model
            reads besides; these win.
        image_root (`str` or `Path`, *optional*): Folder of the images; absent: the table's own.
        limit (`int`, *optional*): Keep the first rows only.
        reads (`Mapping[str, bool | None]`, *optional*): Whether `image` and `text` are read; None: if there is a
            column of them. Absent: both.
        captions (`bool`, defaults to `False`): Texts may be captions: several a row, in columns of those names.
        value_columns (`Sequence[str]`): Columns that the model reads besides.

    Raises:
        InputError: The input, a column or the image folder is absent; the nearest name is given.
    """
    given, reads = dict(columns or {}), {IMAGE: True, TEXT: True, **(reads or {})}
    named = {name: given.pop(name, name) for name in value_columns}
    for role in given.keys() - _USUAL_COLUMNS.keys():
        roles = [*_USUAL_COLUMNS, *value_columns]
        raise InputError(f"columns.{role}: unknown, name the columns of {', '.join(roles[:-1])} and {roles[-1]}")
    if TEXT in given and reads[TEXT] is False:
        raise InputError("columns.text: the model takes images alone")
    if IMAGE in given and reads[IMAGE] is False:
        raise InputError("columns.image: texts alone are read")
    path = _table_file(Path(input_path), needs_table=reads[TEXT] is True)
    table, table_hash = _read_table_or_folder(path)
    if limit is not None:
        table = table.select(list(range(min(limit, len(table.rows)))))
    trained_on = {} if path.is_dir() else _trained_columns(model_dir)
    for column in named.values():
        require_column(table.origin, column, table.columns)
    image_column, text_columns = _choose_columns(table, given, reads, trained_on, captions=captions)
    if not text_columns and image_column is None:
        raise InputError(f"{path}: has neither a column of images nor one of texts; name one with --column")
    of_captions = {*trained_on.get("captions", ()), *_CAPTION_COLUMNS} if captions else set()
    table, texts = _with_texts(table, text_columns, of_captions)
    beside = path if path.is_dir() else path.parent
    return TableRows(
        table=table,
        texts=texts,
        image_column=image_column,
        text_columns=text_columns,
        folder=DataFolder(_image_root(beside, image_root, trained_on.get("image_dirs", ()))),
        table_hash=table_hash,
        values={name: text_array(table.columns[column]) for name, column in named.items()},
        value_columns=named,
    )


def _read_table_or_folder(path: Path) -> tuple[TableFile, str]:
    """The rows of a table, or of a folder's images in the order of their names, and a hash of them."""
    if path.is_dir():
        names = sorted(list_folder(path, on_link_out="skip").images)
        table = TableFile.of(str(path), {"file_name": names})
        table_hash = hashlib.sha256("\n".join(names).encode()).hexdigest()
    else:
        table, table_hash = read_table(path), files_hash([path])
    if not table.rows:
        raise InputError(f"{path}: has no {'images' if path.is_dir() else 'rows'}")
    return table, table_hash


def _choose_columns(
    table: TableFile,
    given: Mapping[str, str],
    reads: Mapping[str, bool | None],
    trained_on: Mapping[str, Sequence[str]],
    *,
    captions: bool,
) -> tuple[str | None, tuple[str, ...]]:
    """The column of images and those of texts: what is given, else what the model was trained on, else the usual."""
    candidates = {
        role: [given[role]] if role in given else [*trained_on.get(role, ()), *usual]
        for role, usual in _USUAL_COLUMNS.items()
    }
    trained_captions = tuple(trained_on.get("captions", ()))
    if captions and TEXT not in given:
        candidates[TEXT] += [*trained_captions, *_CAPTION_COLUMNS]
    chosen = {
        role: _choose(table, role, names, required=reads[role] is True or role in given)
        for role, names in candidates.items()
        if reads[role] is not False
    }
    text_columns: tuple[str, ...] = () if chosen.get(TEXT) is None else (str(chosen[TEXT]),)
    if captions and TEXT not in given and text_columns[:1] == trained_captions[:1]:
        text_columns = tuple(name for name in trained_captions if name in table.columns)
    return chosen.get(IMAGE), text_columns


def _with_texts(
    table: TableFile, columns: Sequence[str], of_captions: Collection[str]
) -> tuple[TableFile, pa.Array | None]:
    """Each row's texts, and the table with rows marked as malformed whose texts cannot be read."""
    if not columns:
        return table, None
    values = table.columns[columns[0]]
    is_text = not isinstance(values, list) and pa.types.is_string(values.type)
    if is_text and len(columns) == 1 and columns[0] not in of_captions:
        found_texts = text_array(values)
        counts = found_texts.is_valid().to_numpy(zero_copy_only=False).astype(np.int32)
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
        return table, pa.ListArray.from_arrays(pa.array(offsets), found_texts.drop_null())
    malformed, texts = dict(table.malformed), []
    for position in range(len(table.rows)):
        found: list[str | None] = []
        for column in columns:
            value = table.value(column, position)
            try:
                if column in of_captions or (of_captions and isinstance(value, list | tuple)):
                    found += [as_text(text) for text in captions_in(value)]
                elif isinstance(value, list | dict):
                    raise ValueError(f"{column} is a {type(value).__name__}, not a text")
                else:
                    found.append(as_text(value))
            except ValueError as error:
                malformed.setdefault(position, str(error))
        texts.append([encodable(text) for text in found if text])
    return replace(table, malformed=malformed), pa.array(texts, pa.list_(pa.string()))


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


def _trained_columns(model_dir: str | Path | None) -> dict[str, Sequence[str]]:
    """The columns that the model's recipe reads, by role, and for Fakeddit the places of its images."""
    recipe_file = None if model_dir is None else recipe_of_model(Path(model_dir))
    if recipe_file is None or not recipe_file.is_file():
        return {}
    data = read_yaml_object(recipe_file).get("data") or {}
    if data.get("source") == "fakeddit":
        image_dirs = (data["image_dir"],) if data.get("image_dir") else IMAGE_FOLDERS
        return {IMAGE: ("{id}.jpg",), TEXT: (data.get("text") or "clean_title",), "image_dirs": image_dirs}
    columns = data.get("columns") or {}
    columns |= {"image_dirs": _image_root_beside_table(data)}
    # A resolved recipe has null for what the source chooses by itself.
    return {role: [names] if isinstance(names, str) else names for role, names in columns.items() if names}


def _image_root_beside_table(data: Mapping[str, Any]) -> list[str]:
    """`image_root` as seen from the table that the model was trained on, when it is below that table's folder."""
    table, root = data.get("path") or data.get("train"), data.get("image_root")
    if not isinstance(table, str) or not isinstance(root, str) or "://" in table or "://" in root:
        return []
    relative = os.path.relpath(root, os.path.dirname(table) or ".")
    return [] if relative.startswith("..") else [relative]


def _choose(table: TableFile, role: str, candidates: Sequence[str], *, required: bool) -> str | None:
    """The first of these columns that there is, templates last; None where there is none and none is required."""
    ordered = sorted(candidates, key=lambda name: "{" in name)
    for name in ordered:
        needed = [name] if name in table.columns or role != IMAGE else _TEMPLATE_FIELD.findall(name) or [name]
        if all(column in table.columns for column in needed):
            return name
    for column in (_TEMPLATE_FIELD.findall(ordered[0]) or ordered[:1]) if required else ():
        require_column(table.origin, column, table.columns)
    return None


def _image_root(beside: Path, image_root: str | Path | None, usual: Iterable[str]) -> Path:
    if image_root is None:
        found = [beside / name for name in usual if (beside / name).is_dir()]
        return found[0] if found else beside
    if not Path(image_root).is_dir():
        raise InputError(f"image_root: no such folder: {image_root}")
    return Path(image_root)
