"""Search a file of embeddings by texts or images."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmhf.data.images import BadImageError, DataFolder, decode_image
from mmhf.data.pixels import decode_pixels
from mmhf.data.readers import TableFile
from mmhf.errors import DamagedError, InputError
from mmhf.inference.embedders import SOURCE_KEY, Embedder
from mmhf.inference.inputs import IMAGE, TEXT, TableRows, model_hash
from mmhf.inference.nearest import Block, Clusters, VectorFile, find_nearest
from mmhf.models.contrastive_loss import unit_prefix

logger = logging.getLogger(__name__)

_SUFFIX = "_embedding"
_HELD_BYTES = 64 << 20
"""Embeddings up to this size are read into memory."""


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
    """A file that `embed_table` wrote; it may be larger than memory.

    Args:
        path (`str` or `Path`): The parquet file.

    Attributes:
        recall (`float`, *optional*): Of the last approximate search: the share of the 10 nearest that it finds, as it
            was measured on 200 of the file's own rows when the clusters were made.

    Raises:
        InputError: It is absent, or no file of embeddings.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recall: float | None = None
        self._held: dict[str, Block] = {}
        self._grouped: dict[str, Clusters] = {}
        if not self.path.is_file():
            raise InputError(f"{path}: no such file; make it with `mmhf embed`")
        try:
            self._file = pq.ParquetFile(self.path, page_checksum_verification=True)
            self._source: dict[str, Any] = json.loads(self._file.schema_arrow.metadata[SOURCE_KEY])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
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

    def search(
        self, query: torch.Tensor, *, among: str | None = None, top: int = 24, approximate: bool = False
    ) -> list[Hit]:
        """As `search_all`, for one query (D,)."""
        return self.search_all(query[None], among=among, top=top, approximate=approximate)[0]

    def search_all(
        self,
        queries: torch.Tensor,
        *,
        among: str | None = None,
        top: int = 24,
        approximate: bool = False,
        images: bool = True,
    ) -> list[list[Hit]]:
        """The rows whose embeddings are nearest to each query, the nearest first; of equal ones the earlier.

        Embeddings of more than 64 MiB are copied once into a file of bare numbers in the folder `FILE.vectors` beside
        the index, which is mapped; where that cannot be written, the index is read anew for each call.

        Args:
            queries (`torch.Tensor` of shape `(Q, D)`): Of length 1; of an index with fewer `dimensions`, their first
                numbers count.
            among (`str`, *optional*): `image` or `text`; absent: images, where there are any.
            top (`int`, defaults to 24): How many at most.
            approximate (`bool`, defaults to `False`): Look only into the clusters around each query, see `recall`.
            images (`bool`, defaults to `True`): Whether hits have their images.

        Raises:
            InputError: The file has no such embeddings, or of another width; or clusters cannot be kept.
        """
        modality = among or (self.modalities[0] if self.modalities else IMAGE)
        if modality not in self.modalities:
            raise InputError(
                f"{self.path}: has no embeddings of {modality}s, but {' and '.join(self.modalities) or 'none'}"
            )
        kept = self._source.get("dimensions")
        if kept is not None and kept < queries.shape[1]:
            queries = unit_prefix(queries, kept)
        if self._width(modality) != queries.shape[1]:
            raise InputError(
                f"{self.path}: its embeddings have {self._width(modality)} numbers, the query {queries.shape[1]}"
            )
        try:
            asked = queries.float().numpy()
            if approximate:
                block, clusters = self._clusters(modality)
                self.recall = clusters.recall
                found = [clusters.search(block, query, top) for query in asked]
            else:
                nearest = find_nearest(self._blocks(modality), asked, top)
                found = list(zip(nearest.scores, nearest.rows, strict=True))
            return [self._hits(scores, rows, images) for scores, rows in found]
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedError(
                f"{self.path}: is damaged ({str(error).splitlines()[0]}); embed the table again"
            ) from error

    def _width(self, modality: str) -> int | None:
        name = f"{modality}{_SUFFIX}"
        schema = self._file.schema_arrow
        kind = schema.field(name).type if name in schema.names else None
        return kind.list_size if isinstance(kind, pa.FixedSizeListType) else None

    def _blocks(self, modality: str) -> Iterable[Block]:
        """The embeddings, from memory, from the file of bare numbers, or from the index itself."""
        if modality in self._held:
            return [self._held[modality]]
        width = self._width(modality) or 0
        if 4 * width * len(self) <= _HELD_BYTES:
            parts = list(self._read(modality))
            numbers = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
            vectors = np.concatenate([np.empty((0, width), np.float32), *(part[1] for part in parts)])
            self._held[modality] = (numbers, vectors)
            return [self._held[modality]]
        file = self._vector_file(modality)
        try:
            if not file.is_whole():
                if file.path.exists():
                    logger.warning("%s: is cut short; it is made anew", file.path)
                logger.info("%s: copied once from %s", file.path, self.path)
                file.write(self._read(modality))
                self._remove_older(file)
        except OSError as error:
            logger.warning(
                "%s: cannot be written (%s); every search reads all of %s", file.path, error.strerror, self.path
            )
            return self._read(modality)
        self._held[modality] = file.block()
        return [self._held[modality]]

    def _clusters(self, modality: str) -> tuple[Block, Clusters]:
        """The embeddings and their clusters, made once."""
        self._blocks(modality)
        if modality not in self._held:
            raise InputError(f"{self.path}: clusters cannot be kept beside it; search without --approximate")
        block = self._held[modality]
        if modality not in self._grouped:
            file = self._vector_file(modality)
            self._grouped[modality] = file.clusters() if file.is_whole() else Clusters.of(block)
        return block, self._grouped[modality]

    def _vector_file(self, modality: str) -> VectorFile:
        known = json.dumps([len(self), self.path.stat().st_size, str(self._file.schema_arrow.metadata)])
        key = hashlib.blake2b(known.encode(), digest_size=8).hexdigest()
        folder = self.path.with_name(f"{self.path.name}.vectors")
        return VectorFile(folder / f"{modality}-{key}.f32", self._width(modality) or 0)

    def _remove_older(self, file: VectorFile) -> None:
        """Remove what was made of an index that had this one's name before."""
        modality, _, _ = file.path.stem.partition("-")
        for path in file.path.parent.glob(f"{modality}-*"):
            if not path.name.startswith(file.path.stem):
                path.unlink(missing_ok=True)

    def _read(self, modality: str) -> Iterator[Block]:
        start = 0
        for batch in self._file.iter_batches(columns=[f"{modality}{_SUFFIX}"]):
            lists = batch.column(0)
            present = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
            vectors = lists.drop_null().flatten().to_numpy().reshape(len(present), -1)
            yield present + start, vectors.copy()  # torch wants to be able to write
            start += len(batch)

    def _hits(self, scores: np.ndarray, rows: np.ndarray, with_images: bool) -> list[Hit]:
        values = self._values(rows)
        images = self._images(values) if with_images else [None] * len(values)
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
            pixels = decode_pixels(Path(image))
        except BadImageError as error:
            raise InputError(f"--image {image}: {error}") from error
        return embedder.embed(IMAGE, embedder.inputs.encode(IMAGE, [pixels]))[0]
    if not text or not text.strip():
        raise InputError("--text: is empty; say what to look for")
    return embedder.embed(TEXT, embedder.inputs.encode(TEXT, [text.strip()]))[0]


def _image_or_none(rows: TableRows, index: int) -> Image.Image | None:
    try:
        return decode_image(rows.image(index))
    except (BadImageError, KeyError):
        return None
