"""The dermatology program's parquet file of text embeddings, as a table that mmhf looks texts up in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmhf.data.columns import text_array
from mmhf.data.readers import read_batches
from mmhf.data.text_embeddings import EMBEDDING_COLUMN, ENCODER_KEY, HASH_COLUMN, text_hashes
from mmhf.errors import InputError
from mmhf.files import whole_file

_TEXT_COLUMNS = ("text", "text_desc", "caption", "description", "truncated_caption")


def write_text_table(path: Path, texts: Path | None, encoder: dict[str, Any], target: Path) -> None:
    """Write a table of text hashes and embeddings.

    Args:
        path (`Path`): A parquet file with an embedding a row, in a column of lists or in one column a number.
        texts (`Path`, *optional*): A table with the texts in the same order; absent: they are a column of the file.
        encoder (`dict`): What made the embeddings; see [`TableEncoder`].
        target (`Path`): The file to write.

    Raises:
        InputError: There are no texts, or not as many as embeddings, or these have another width than the encoder's.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: is no parquet file ({str(error).splitlines()[0]})") from error
    embeddings = _embeddings(table, path, int(encoder["width"]))
    found = _texts(table, path) if texts is None else _texts_of_table(texts)
    if len(found) != len(embeddings):
        raise InputError(f"{texts or path}: {len(found)} texts for {len(embeddings)} embeddings of {path}")
    hashes = pa.array(text_hashes(found), pa.string())
    written = pa.table({HASH_COLUMN: hashes, EMBEDDING_COLUMN: embeddings})
    metadata = {ENCODER_KEY: json.dumps(encoder)}
    with whole_file(target) as temporary:
        pq.write_table(written.replace_schema_metadata(metadata), temporary)


def _embeddings(table: pa.Table, path: Path, width: int) -> pa.Array:
    """(N,) of lists of `width` numbers."""
    kind = pa.list_(pa.float32(), width)
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            if pc.any(pc.not_equal(pc.list_value_length(column), width)).as_py():
                raise InputError(f"{path}: {name} holds embeddings of another width than the encoder's {width}")
            return column.cast(kind)
    numbers = [
        name for name, field in zip(table.column_names, table.schema, strict=True) if pa.types.is_floating(field.type)
    ]
    if len(numbers) != width:
        raise InputError(f"{path}: {len(numbers)} columns of numbers, where the encoder gives {width}")
    values = table.select(numbers).to_pandas().to_numpy("float32")
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _texts(table: pa.Table, path: Path) -> list[str | None]:
    name = next((name for name in _TEXT_COLUMNS if name in table.column_names), None)
    if name is None:
        raise InputError(f"{path}: has no column of texts; name the table that has them with --texts")
    return list(text_array(table.column(name).to_pylist()).to_pylist())


def _texts_of_table(path: Path) -> list[str | None]:
    for name in _TEXT_COLUMNS:
        try:
            batches = read_batches(path, [name])
        except InputError:
            continue
        return [text for batch in batches for text in text_array(batch.columns[name]).to_pylist()]
    raise InputError(f"{path}: has none of the columns {', '.join(_TEXT_COLUMNS)}")
