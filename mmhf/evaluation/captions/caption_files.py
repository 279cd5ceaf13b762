"""Captions and references that were made elsewhere, read from files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmhf.conventions import as_text
from mmhf.data.captions import captions_in
from mmhf.data.readers import TableFile, read_table
from mmhf.errors import InputError

_ID_COLUMNS = ("image_id", "id", "file_name", "filename", "image_name", "image")
_IMAGE_COLUMNS = ("file_name", "filename", "image_name", "image")
_PREDICTION_COLUMNS = ("prediction", "generated", "caption")
_REFERENCE_COLUMNS = ("references", "captions", "reference", "caption", "input_caption", "comment")
_NUMBERED_REFERENCE = re.compile(r"(?:reference|caption|comment)_?\d+")


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """Captions of N images, each with its references.

    Attributes:
        ids (`list[str]`): of the images, in the order of the predictions.
        images (`list[str | None]`): their file names, where the files tell.
        predictions (`list[str]`): one an image, maybe empty.
        references (`list[list[str]]`): at least one an image.
        num_unused (`int`): images that have references but no prediction; they are not evaluated.
        num_empty_references (`int`): references without a word, left out.
    """

    ids: list[str]
    images: list[str | None]
    predictions: list[str]
    references: list[list[str]]
    num_unused: int
    num_empty_references: int


def read_caption_files(predictions: str | Path, references: str | Path | None = None) -> CaptionFile:
    """Read predictions and references from one table, or from two that are joined by the image.

    A table is `.csv`, `.tsv`, `.jsonl`, `.parquet`, or `.json`: COCO's results (`[{"image_id", "caption"}]`) or
    annotations (`{"annotations": [...]}`), or `{id: caption or captions}`. The image is named by the first of the
    columns image_id, id, file_name, filename, image_name and image that is there, the prediction by prediction,
    generated or caption, references by references, captions, reference, caption, input_caption (as `mmhf predict`
    renames it), comment or by numbered columns (`caption_1`): a list, a JSON list, or a text, on one row an image or
    on many.

    Args:
        predictions (`str` or `Path`): One row an image; has the references too if `references` is absent.
        references (`str` or `Path`, *optional*): Their own table; may have more images.

    Raises:
        InputError: A file or row cannot be read, a column is absent, an image has two predictions or no reference.
    """
    table = _read(Path(predictions))
    column = _column(table, _PREDICTION_COLUMNS, "captions that were generated")
    texts = _predictions(table, column)
    if references is None:
        ids = _ids(table) if _first(table, _ID_COLUMNS) else [str(row) for row in table.rows]
        known, num_empty = _references(table, ids, exclude=column)
        names = _image_names(table, ids)
    else:
        ids = _ids(table)
        others = _read(Path(references))
        other_ids = _ids(others)
        known, num_empty = _references(others, other_ids)
        names = {**_image_names(others, other_ids), **_image_names(table, ids)}
    _check_once_each(table, ids)
    absent = [name for name in ids if not known.get(name)]
    if absent:
        raise InputError(
            f"{references or predictions}: {len(absent)} of {len(ids)} images have no reference, such as {absent[0]!r}"
        )
    return CaptionFile(
        ids=ids,
        images=[names.get(name) for name in ids],
        predictions=texts,
        references=[known[name] for name in ids],
        num_unused=len(known.keys() - set(ids)),
        num_empty_references=num_empty,
    )


def _read(path: Path) -> TableFile:
    table = _read_json(path) if path.suffix.lower() == ".json" else read_table(path)
    if table.malformed:
        position, reason = next(iter(table.malformed.items()))
        raise InputError(f"{path}, row {table.rows[position]}: {reason}; {len(table.malformed)} such rows")
    if not table.rows:
        raise InputError(f"{path}: the table has no rows")
    return table


def _read_json(path: Path) -> TableFile:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    records = _json_records(content)
    if records is None:
        raise InputError(f"{path}: expected a list of objects, COCO's annotations, or {{id: caption}}")
    names = dict.fromkeys(name for record in records for name in record)
    return TableFile.of(str(path), {name: [record.get(name) for record in records] for name in names})


def _json_records(content: Any) -> list[dict[str, Any]] | None:
    if isinstance(content, Mapping) and isinstance(content.get("annotations"), list):
        files = {image.get("id"): image.get("file_name") for image in content.get("images", [])}
        records = _json_records(content["annotations"])
        return records and [{**each, "file_name": files.get(each.get("image_id"))} for each in records]
    if isinstance(content, Mapping):
        return [{"image_id": name, "caption": captions} for name, captions in content.items()]
    if isinstance(content, list) and all(isinstance(record, dict) for record in content):
        return content
    return None


def _first(table: TableFile, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in table.columns), None)


def _column(table: TableFile, names: Sequence[str], meaning: str) -> str:
    column = _first(table, names)
    if column is None:
        has = ", ".join(table.columns)
        raise InputError(f"{table.origin}: no column with {meaning}; expected {', '.join(names)} (columns: {has})")
    return column


def _ids(table: TableFile) -> list[str]:
    column = _column(table, _ID_COLUMNS, "the image's name")
    ids = [as_text(value) for value in table.values(column)]
    for name, row in zip(ids, table.rows, strict=True):
        if name is None:
            raise InputError(f"{table.origin}, row {row}: column {column!r} is empty; it names the image")
    return [name for name in ids if name is not None]


def _predictions(table: TableFile, column: str) -> list[str]:
    texts = [_texts(value) for value in table.values(column)]
    for of_image, row in zip(texts, table.rows, strict=True):
        if len(of_image) > 1:
            raise InputError(f"{table.origin}, row {row}: {len(of_image)} captions in column {column!r}; expected one")
    return ["".join(of_image) for of_image in texts]


def _check_once_each(table: TableFile, ids: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for name, row in zip(ids, table.rows, strict=True):
        if name in seen:
            raise InputError(f"{table.origin}, row {row}: image {name!r} has a prediction on row {seen[name]} too")
        seen[name] = row


def _references(table: TableFile, ids: Sequence[str], exclude: str | None = None) -> tuple[dict[str, list[str]], int]:
    """References by image, and how many were empty."""
    columns = [name for name in table.columns if name != exclude and _NUMBERED_REFERENCE.fullmatch(name)]
    if not columns:
        names = [name for name in _REFERENCE_COLUMNS if name != exclude]
        columns = [_column(table, names, "references")]
    values = [table.values(column) for column in columns]
    by_image: dict[str, list[str]] = {}
    num_empty = 0
    for position, name in enumerate(ids):
        of_image = by_image.setdefault(name, [])
        for of_column in values:
            texts = _texts(of_column[position])
            of_image += [text for text in texts if text]
            # A numbered column that is empty is a row with fewer references, not an empty one.
            num_empty += 0 if len(columns) > 1 else sum(not text for text in texts)
    return by_image, num_empty


def _texts(value: object) -> list[str]:
    try:
        return [as_text(text) or "" for text in captions_in(value)]
    except ValueError:  # a number, or a text that only begins like a list
        return [as_text(each) or "" for each in (value if isinstance(value, list) else [value])]


def _image_names(table: TableFile, ids: Sequence[str]) -> dict[str, str]:
    column = _first(table, _IMAGE_COLUMNS)
    if column is None:
        return {}
    values = table.values(column)
    return {name: value for name, value in zip(ids, values, strict=True) if isinstance(value, str)}
