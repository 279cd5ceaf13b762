"""Search a file of embeddings by text or image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmhf.data.images import BadImageError, DataFolder, decode_image
from mmhf.data.readers import TableFile
from mmhf.errors import InputError
from mmhf.inference.embedders import SOURCE_KEY, Embedder
from mmhf.inference.inputs import IMAGE, TEXT, TableRows, model_hash

_SUFFIX = "_embedding"


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Args:
        row (`int`): Its number, from 0.
        score (`float`): Cosine of its embedding and the query's.
        values (`dict[str, Any]`): The row without its embeddings.
        image (`PIL.Image.Image`, *optional*): None where there is none, or it cannot be read.
    """

    row: int
    score: float
    values: dict[str, Any]
    image: Image.Image | None


class EmbeddingIndex:
    """A file that `embed_table` wrote, read in pieces, so that it may be larger than memory.

    Args:
        path (`str` or `Path`): The parquet file.

    Raises:
        InputError: It is absent, or no file of embeddings.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file; make it with `mmhf embed`")
        try:
            self._file = pq.ParquetFile(self.path)
            self._source: dict[str, Any] = json.loads(self._file.schema_arrow.metadata[SOURCE_KEY])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no file of embeddings; make one with `mmhf embed`") from error
        self.modalities = [name for name in (IMAGE, TEXT) if self._width(name) is not None]

    def __len__(self) -> int:
        count: int = self._file.metadata.num_rows
        return count

    @property
    def model_dir(self) -> Path:
        """The model that it was made with."""
        return Path(self._source["model"])

    @property
    def text_column(self) -> str | None:
        """The column that texts were embedded from."""
        column: str | None = self._source["text column"]
        return column

    def check_model(self, model_dir: str | Path) -> None:
        """Raise `InputError` unless a folder holds the model that this file was made with."""
        if not Path(model_dir).is_dir():
            raise InputError(f"{self.path}: the model it was made with is not at {model_dir}; name it with --model")
        if model_hash(Path(model_dir)) != self._source["model hash"]:
            raise InputError(
                f"{model_dir}: is not the model that {self.path} was made with; embed anew or name that one"
            )

    def search(self, query: torch.Tensor, *, among: str | None = None, top: int = 24) -> list[Hit]:
        """The rows whose embeddings are nearest to a query, the nearest first; of equal ones the earlier.

        Args:
            query (`torch.Tensor` of shape `(D,)`): Of length 1.
            among (`str`, *optional*): `image` or `text`; absent: images, where there are any.
            top (`int`, defaults to 24): How many at most.

        Raises:
            InputError: The file has no such embeddings, or of another width.
        """
        modality = among or (self.modalities[0] if self.modalities else IMAGE)
        if modality not in self.modalities:
            raise InputError(
                f"{self.path}: has no embeddings of {modality}s, but {' and '.join(self.modalities) or 'none'}"
            )
        if self._width(modality) != len(query):
            raise InputError(
                f"{self.path}: its embeddings have {self._width(modality)} numbers, the query {len(query)}"
            )
        scores, rows = self._nearest(query.numpy(), f"{modality}{_SUFFIX}", top)
        return self._hits(scores, rows)

    def _width(self, modality: str) -> int | None:
        name = f"{modality}{_SUFFIX}"
        schema = self._file.schema_arrow
        kind = schema.field(name).type if name in schema.names else None
        return kind.list_size if isinstance(kind, pa.FixedSizeListType) else None

    def _nearest(self, query: np.ndarray, column: str, top: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = np.empty(0, np.float32), np.empty(0, np.int64)
        start = 0
        for batch in self._file.iter_batches(columns=[column]):
            lists = batch.column(0)
            present = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
            embeds = lists.drop_null().flatten().to_numpy().reshape(len(present), -1)
            scores = np.concatenate([scores, embeds @ query])
            rows = np.concatenate([rows, present + start])
            best = np.argsort(-scores, kind="stable")[:top]
            scores, rows, start = scores[best], rows[best], start + len(batch)
        return scores, rows

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        values = self._values(rows)
        images = self._images(values)
        return [
            Hit(int(row), float(score), value, image)
            for row, score, value, image in zip(rows, scores, values, images, strict=True)
        ]

    def _values(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The rows' columns but the embeddings, of the row groups that hold them."""
        columns = [name for name in self._file.schema_arrow.names if not name.endswith(_SUFFIX)]
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            inside = [int(row) for row in rows if start <= row < end]
            if inside:
                table = self._file.read_row_group(group, columns=columns).take([row - start for row in inside])
                found.update(zip(inside, table.to_pylist(), strict=True))
            start = end
        return [found[int(row)] for row in rows]

    def _images(self, values: list[dict[str, Any]]) -> list[Image.Image | None]:
        if self._source["image column"] is None or not Path(self._source["images"]).is_dir():
            return [None] * len(values)
        columns = {name: [value[name] for value in values] for name in values[0]} if values else {}
        rows = TableRows(
            table=TableFile.of(str(self.path), columns),
            texts=None,
            image_column=self._source["image column"],
            text_columns=(),
            folder=DataFolder(Path(self._source["images"])),
            table_hash="",
        )
        return [_image_or_none(rows, index) for index in range(len(rows))]


def embed_query(embedder: Embedder, *, text: str | None = None, image: str | Path | None = None) -> torch.Tensor:
    """The embedding `(D,)` of a text or of an image file.

    Raises:
        InputError: The image cannot be read, or the text is empty.
    """
    if image is not None:
        try:
            decoded = decode_image(Path(image))
        except BadImageError as error:
            raise InputError(f"--image {image}: {error}") from error
        return embedder.embed(IMAGE, embedder.inputs.encode(IMAGE, [decoded]))[0]
    if not text or not text.strip():
        raise InputError("--text: is empty; say what to look for")
    return embedder.embed(TEXT, embedder.inputs.encode(TEXT, [text.strip()]))[0]


def _image_or_none(rows: TableRows, index: int) -> Image.Image | None:
    try:
        return decode_image(rows.image(index))
    except (BadImageError, KeyError):
        return None
