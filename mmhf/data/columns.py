"""Columns of tables as Arrow arrays: texts, images, numbers for values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.conventions import as_text

IMAGE_TYPE = pa.struct({"path": pa.string(), "bytes": pa.binary()})


def text_array(values: pa.Array | pa.ChunkedArray | Sequence[Any]) -> pa.Array:
    """`as_text` of a column."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_dictionary(kind):
            return text_array(values.dictionary_decode())
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
            return values.cast(pa.string())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            trimmed = pc.utf8_trim_whitespace(values.cast(pa.string()))
            return pc.if_else(pc.equal(trimmed, ""), None, trimmed)
        values = values.to_pylist()
    return pa.array([encodable(as_text(value)) for value in values], pa.string())


def encodable(text: str | None) -> str | None:
    """A text with `?` for halves of UTF-16 pairs, which JSON can hold, but neither Arrow nor a tokenizer takes."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def image_array(values: pa.Array | pa.ChunkedArray | Sequence[Any]) -> pa.StructArray:
    """A column of images as structs of path and bytes.

    Args:
        values (`pa.Array` or `Sequence`):
            Paths, contents, or structs or dicts of `path` and `bytes`, of which either may be missing.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_struct(kind):
            names = [kind.field(number).name for number in range(kind.num_fields)]
            empty = pa.nulls(len(values), pa.null())
            # `field` ignores that a whole struct may be null, `struct_field` does not.
            path, content = (pc.struct_field(values, name) if name in names else empty for name in ("path", "bytes"))
            return pa.StructArray.from_arrays([text_array(path), content.cast(pa.binary())], fields=list(IMAGE_TYPE))
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return pa.StructArray.from_arrays(
                [pa.nulls(len(values), pa.string()), values.cast(pa.binary())], fields=list(IMAGE_TYPE)
            )
        return pa.StructArray.from_arrays(
            [text_array(values), pa.nulls(len(values), pa.binary())], fields=list(IMAGE_TYPE)
        )
    paths, contents = [], []
    for value in values:
        named, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
        if isinstance(named, bytes):
            named, content = None, named
        paths.append(named)
        contents.append(content if isinstance(content, bytes) else None)
    return pa.StructArray.from_arrays([text_array(paths), pa.array(contents, pa.binary())], fields=list(IMAGE_TYPE))


def named_images(paths: Sequence[str | None]) -> pa.StructArray:
    """A column of images of the paths of a listing, which may begin or end with blanks."""
    return pa.StructArray.from_arrays(
        [pa.array(paths, pa.string()), pa.nulls(len(paths), pa.binary())], fields=list(IMAGE_TYPE)
    )


def codes_of(values: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> tuple[NDArray[np.int64], list[Any]]:
    """Number the distinct values of a column in the order in which they come.

    Returns:
        `tuple`: the number of each row's value, -1 for none, and the values.
    """
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    encoded = array.dictionary_encode()
    return pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(
        np.int64
    ), encoded.dictionary.to_pylist()


def number_rows(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give each code a number in the order in which they come; each -1 has one of its own."""
    own = np.where(codes < 0, codes.max(initial=0) + 1 + np.arange(len(codes)), codes)
    _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
