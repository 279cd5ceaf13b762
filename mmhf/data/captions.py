"""Captions as tables hold them, and the rows of an image joined into one."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmhf.data.columns import codes_of, encodable, number_rows
from mmhf.data.images import shorten
from mmhf.data.readers import Values
from mmhf.data.table import CAPTIONS_TYPE

_ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=[^)]*)?\)", re.DOTALL)
"""How numpy writes an array that is in another one."""
_LIST = re.compile(r"""(?=\[.*\]|\(.*\)).\s*(?:['"].*|None\b.*|nan\b.*|null\b.*)?.""", re.DOTALL)
"""What may be a list of texts: `[a dog]` and `[)` are texts."""
_ITEM = re.compile(r"""\s*(?:('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|None\b|nan\b|null\b)(\s*,\s*|\s+)?""", re.DOTALL)
"""A text of a written list, and what stands between it and the next."""
_SEEN = r"[^\s\p{C}\p{Z}]"
"""A character that shows."""


def captions_in(value: Any) -> list[str | None]:
    """Read the caption or captions in a field of a table.

    Args:
        value (`Any`):
            A text, a list of texts, or a list written out as JSON, Python, numpy (`['a' 'b']`) or pandas do in a CSV
            file; None, NaN and null in a list are empty captions.

    Returns:
        `list[str | None]`: None for an empty field; nothing for an empty list.

    Raises:
        ValueError: it is neither, or a written list can be read in more than one way.
    """
    if isinstance(value, str):
        written = _written_list(value.strip())
        return [value] if written is None else written
    texts = list(value) if isinstance(value, list | tuple) else [value]
    for place, text in enumerate(texts):
        if isinstance(text, float) and math.isnan(text):
            texts[place] = None
        elif not isinstance(text, str | None):
            raise ValueError(f"a caption is a {type(text).__name__}, not a text")
    return texts


def _written_list(text: str) -> list[str | None] | None:
    """The texts of a list that is written out; None for a text that is none."""
    array = _ARRAY.fullmatch(text)
    inside = array[1] if array else text
    if not _LIST.fullmatch(inside):
        return None
    try:
        value = json.loads(inside)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        return value if all(isinstance(item, str | None) for item in value) else None
    texts: list[str | None] = []
    separators = set()
    place, ends_in_comma = 1, False
    while item := _ITEM.match(inside, place):
        texts.append(None if item[1] is None else _unquoted(item[1], text))
        place = item.end()
        if place == len(inside) - 1:
            ends_in_comma = bool(item[2]) and item[2].strip() == ","
            break
        separators.add(item[2].strip() if item[2] else "none")
    is_tuple = inside[0] == "("
    if place < len(inside) - 1 or len(separators) > 1 or "none" in separators:
        if is_tuple:  # a text in brackets
            return None
        raise ValueError(f"a list of captions that cannot be read for certain: {shorten(text)}")
    return None if is_tuple and len(texts) < 2 and not ends_in_comma else texts


def _unquoted(quoted: str, text: str) -> str:
    """The text in quotes; line breaks may stand in it as they are."""
    try:
        value: str = ast.literal_eval(quoted.replace("\n", "\\n").replace("\r", "\\r"))
        return value
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"a list of captions that cannot be read for certain: {shorten(text)}") from error


def caption_array(columns: Sequence[Values]) -> tuple[pa.ListArray, dict[int, str]]:
    """The captions of some rows.

    Args:
        columns (`Sequence[Values]`):
            Columns of texts or of lists of texts.

    Returns:
        `tuple`: a list for each row, in which an empty field is None, and position → why a row cannot be read. Empty
        ones of several columns are left out: many columns are a way to write fewer captions for some images.
    """
    if len(columns) == 1 and isinstance(columns[0], pa.Array) and _holds_captions(columns[0]):
        values = columns[0]
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            texts = values.cast(pa.string())
            offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
            return pa.ListArray.from_arrays(offsets, texts), {}
        return values.cast(CAPTIONS_TYPE), {}
    faults: dict[int, str] = {}
    captions: list[list[str | None]] = []
    for position, row in enumerate(
        zip(*(values.to_pylist() if isinstance(values, pa.Array) else values for values in columns), strict=True)
    ):
        try:
            read = [text for value in row for text in captions_in(value)]
        except ValueError as error:
            faults[position] = str(error)
            read = []
        if len(columns) > 1:
            read = [text for text in read if text is not None] or read[:1]
        captions.append([encodable(text) for text in read])
    return pa.array(captions, CAPTIONS_TYPE), faults


def _holds_captions(values: pa.Array) -> bool:
    """Whether a column can be taken as it is: texts of which none is a written list, or lists of texts."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return not pc.any(pc.match_substring_regex(values, r"^\s*(\[|\(|array\()")).as_py()
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and pa.types.is_string(kind.value_type) and not values.null_count


def clean_captions(texts: Iterable[str | None]) -> list[str]:
    """Captions as they are used: without the empty ones, stripped, and with `?` for halves of characters."""
    encoded = [encodable(text) for text in texts]
    return [text.strip() for text in encoded if text is not None and not is_empty(text)]


def is_empty(text: str | None) -> bool:
    """Whether a caption says nothing: it is absent, or all white space and invisible characters."""
    return text is None or not any(character.isprintable() and not character.isspace() for character in text)


def empty_captions(texts: pa.Array) -> pa.Array:
    """`is_empty` of many captions."""
    return pc.invert(pc.fill_null(pc.match_substring_regex(texts, _SEEN), False))


def join_captions(table: pa.Table, keys: pa.Array | pa.ChunkedArray, by: Sequence[str] = ()) -> pa.Table:
    """Join the rows of each image into one, which has the captions of all.

    Args:
        table (`pa.Table`):
            A source's columns.
        keys (`pa.Array`):
            What is equal in rows of one image; a row without it is an image of its own. Rows of one image in several
            splits are several images.
        by (`Sequence[str]`):
            Columns that also have to agree, such as a question about the image; rows of one image then have its key
            in a column `image_group`.

    Returns:
        `pa.Table`: in the order of the images' first rows, whose other values stand for the image.
    """
    key_codes, _ = codes_of(keys)
    if by:
        table = table.append_column("image_group", keys)
    for name in by:
        codes, values = codes_of(table.column(name))
        both = np.where(key_codes < 0, -1, key_codes * (len(values) + 1) + codes + 1)
        key_codes = np.where(both < 0, -1, np.unique(both, return_inverse=True)[1])
    split_codes, _ = codes_of(table.column("split"))
    groups = number_rows(np.where(key_codes < 0, -1, key_codes * (split_codes.max(initial=0) + 2) + split_codes + 1))
    count = int(groups.max(initial=-1)) + 1
    if count == len(table):
        return table
    order = np.argsort(groups, kind="stable")
    first = order[np.searchsorted(groups[order], np.arange(count))]
    captions = table.column("captions").combine_chunks().take(pa.array(order))
    lengths = pc.fill_null(pc.list_value_length(captions), 0).to_numpy(zero_copy_only=False)
    sums = np.bincount(groups[order], weights=lengths, minlength=count).astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sums)]), pa.int32())
    rows = np.repeat(table.column("row").to_numpy()[order], lengths)
    joined = {name: table.column(name).combine_chunks().take(pa.array(first)) for name in table.column_names}
    joined["captions"] = pa.ListArray.from_arrays(offsets, captions.flatten())
    joined["caption_rows"] = pa.ListArray.from_arrays(offsets, pa.array(rows))
    if "notes" in joined:
        notes = table.column("notes").combine_chunks().take(pa.array(order))
        noted = pc.fill_null(pc.list_value_length(notes), 0).to_numpy(zero_copy_only=False)
        sums = np.bincount(groups[order], weights=noted, minlength=count).astype(np.int64)
        joined["notes"] = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(sums)]), pa.int32()), notes.flatten()
        )
    return pa.table(joined)


def content_keys(images: pa.Array | pa.ChunkedArray) -> pa.Array:
    """What is equal in rows of one image: its content, or its path."""
    keys: list[str | None] = []
    for chunk in images.chunks if isinstance(images, pa.ChunkedArray) else [images]:
        for path, content in zip(chunk.field("path"), chunk.field("bytes"), strict=True):
            if content.is_valid:
                keys.append(hashlib.sha256(content.as_buffer()).hexdigest())
            else:
                keys.append(posixpath.normpath(path.as_py()) if path.is_valid else None)
    return pa.array(keys, pa.string())
