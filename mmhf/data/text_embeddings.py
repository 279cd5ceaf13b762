"""Tables of text embeddings, made once by `mmhf embed --text`: texts are looked up instead of being encoded."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from mmhf.conventions import Processor
from mmhf.data.bad_examples import BadExample
from mmhf.data.digests import digest_texts
from mmhf.data.loading import LoadedData
from mmhf.errors import DamagedError, InputError

logger = logging.getLogger(__name__)

ENCODER_KEY = b"mmhf.text_encoder"
"""Key of the parquet file's metadata that says what made its embeddings."""
HASH_COLUMN, EMBEDDING_COLUMN, ID_COLUMN = "text_hash", "text_embedding", "id"
_SHOWN_ROWS = 3
_REMEDY = "make the table anew with mmhf embed --text"


def text_hashes(texts: Sequence[str | None]) -> list[str]:
    """What a table knows each text by."""
    return [bytes(digest).hex() for digest in digest_texts([_clean(text) for text in texts])]


def read_table_encoder(path: str | Path) -> dict[str, Any]:
    """What made a table's embeddings, as `mmhf embed --text` wrote it; the embeddings are not read.

    Raises:
        InputError: there is no such table, or it is another kind of file.
    """
    metadata = _open(Path(path)).schema_arrow.metadata or {}
    if ENCODER_KEY not in metadata:
        raise InputError(f"{path}: is no table of text embeddings; make one with mmhf embed --text")
    try:
        encoder: dict[str, Any] = json.loads(metadata[ENCODER_KEY])
    except ValueError as error:
        raise DamagedError(f"{path}: is damaged ({error}); {_REMEDY}") from error
    return encoder


@dataclass(frozen=True, eq=False)
class TextEmbeddingTable:
    """The embeddings of many texts, in memory.

    Attributes:
        path (`Path`): The parquet file.
        encoder (`dict`): What made them; `width` is that of an embedding.
        digests (`NDArray`): (N,) of the texts, in order.
        embeddings (`NDArray`): (N, width) fp32.
    """

    path: Path
    encoder: dict[str, Any]
    digests: NDArray[np.bytes_]
    embeddings: NDArray[np.float32]

    @classmethod
    def open(cls, path: str | Path) -> TextEmbeddingTable:
        """Read a table; a text that several rows have is kept once, rows without an embedding are left out.

        Raises:
            InputError: there is no such table, it is another kind of file, or damaged.
        """
        path, encoder = Path(path), read_table_encoder(path)
        hashes, embeddings = _read(path, encoder["width"])
        digests, first = np.unique(hashes, return_index=True)
        return cls(path, encoder, digests, embeddings[first])

    def __len__(self) -> int:
        return len(self.digests)

    def positions(self, texts: Sequence[str | None]) -> NDArray[np.int64]:
        """(B,) where each text is in the table, -1 for those that are not in it."""
        wanted = digest_texts([_clean(text) for text in texts]).view(self.digests.dtype)
        if not len(self):
            return np.full(len(wanted), -1)
        found = np.searchsorted(self.digests, wanted).clip(max=len(self) - 1)
        return np.where(self.digests[found] == wanted, found, -1)

    def encode(self, texts: Sequence[str | None], *, masks: bool = False) -> dict[str, Tensor]:
        """What a fusion model takes in the place of tokens.

        Args:
            texts (`Sequence[str | None]`): B texts; None is a missing one.
            masks (`bool`, defaults to `False`): Give the mask even where nothing is missing.

        Returns:
            `dict[str, Tensor]`: `text_features` (B, width), zeros where a text is missing; there, or with `masks`,
            also `text_mask` (B,) int64.

        Raises:
            InputError: a text is not in the table.
        """
        present = np.array([text is not None for text in texts])
        positions = self.positions(texts)
        if len(unknown := np.flatnonzero(present & (positions < 0))):
            raise InputError(f"{self.path}: has no embedding of the text {texts[unknown[0]]!r}; {_REMEDY}")
        features = np.zeros((len(texts), self.embeddings.shape[1]), np.float32)
        features[present] = self.embeddings[positions[present]]
        encoded = {"text_features": torch.from_numpy(features)}
        if masks or not present.all():
            encoded["text_mask"] = torch.from_numpy(present.astype(np.int64))
        return encoded

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEmbeddingTable:
        return self


class TextTableProcessor:
    """A processor of images and texts that looks texts up instead of tokenising them.

    Args:
        processor (`Processor`): Called with `images` and `masks`.
        table (`TextEmbeddingTable`): Where texts are.
    """

    def __init__(self, processor: Processor, table: TextEmbeddingTable) -> None:
        self.processor = processor
        self.table = table

    def __call__(
        self,
        images: Sequence[Image.Image | None] | None = None,
        text: Sequence[str | None] | None = None,
        masks: bool = False,
        **others: Any,
    ) -> BatchFeature:
        """Prepare a batch, as the processor does, with `text_features` in the place of tokens."""
        batch = {} if images is None and not others else dict(self.processor(images=images, masks=masks, **others))
        return BatchFeature(batch if text is None else {**batch, **self.table.encode(text, masks=masks)})


def look_up_texts(data: LoadedData, table: TextEmbeddingTable, *, may_lack: bool) -> LoadedData:
    """Find every row's text in a table before anything is computed.

    Args:
        data (`LoadedData`): The rows; of a stream, texts are found as they come.
        table (`TextEmbeddingTable`): Where texts are to be.
        may_lack (`bool`): A text that is not in the table is a missing one: its row is listed, and its text empty.

    Raises:
        InputError: texts are not in the table, and may not be missing.
    """
    splits, listed = dict(data.splits), list(data.bad_examples)
    for split, rows in data.splits.items():
        if not isinstance(rows, datasets.Dataset):
            continue
        texts = list(rows["text"])
        absent = np.flatnonzero(table.positions(texts) < 0)
        if may_lack:
            absent = np.array([number for number in absent if texts[number]], dtype=np.int64)
        if not len(absent):
            continue
        problems = _describe(table, rows.select_columns(["row", "id"]).select(absent), split)
        if not may_lack:
            raise InputError(_complain(table, problems, len(rows), [texts[number] for number in absent]))
        logger.warning("%s: %d of %d texts of %s are missing in it", table.path, len(absent), len(rows), split)
        listed += problems
        for number in absent:
            texts[number] = ""
        # Joined from the side, because images may be in the table.
        splits[split] = rows.remove_columns("text").add_column("text", texts).select_columns(rows.column_names)
    return replace(data, splits=splits, bad_examples=listed)


def _describe(table: TextEmbeddingTable, rows: datasets.Dataset, split: str) -> list[BadExample]:
    file = _open(table.path)
    ids: set[str] = set()
    if ID_COLUMN in file.schema_arrow.names:
        ids = {str(value) for value in file.read(columns=[ID_COLUMN]).column(0).drop_null().to_pylist()}
    stale = f"its text is another than that with its id in {table.path}"
    unknown = f"its text has no embedding in {table.path}"
    return [BadExample(split, row["row"], row["id"], stale if row["id"] in ids else unknown) for row in rows]


def _complain(table: TextEmbeddingTable, problems: list[BadExample], num_rows: int, texts: list[str]) -> str:
    shown = "; ".join(f"row {each.row} (id {each.id}): {each.reason}" for each in problems[:_SHOWN_ROWS])
    more = "; ..." if len(problems) > _SHOWN_ROWS else ""
    empty = "" if all(texts) else ", empty ones among them"
    return (
        f"model.text.embeddings: {len(problems)} of {num_rows} texts of {problems[0].split} are not in the table"
        f"{empty} ({shown}{more}); {_REMEDY}, or set data.on_empty_text: mask to go on without them"
    )


def _clean(text: str | None) -> str:
    return (text or "").strip()


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise InputError(f"{path}: no such table of text embeddings; make it with mmhf embed --text")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is no parquet file ({str(error).splitlines()[0]}); {_REMEDY}") from error


def _read(path: Path, width: int) -> tuple[NDArray[np.bytes_], NDArray[np.float32]]:
    file = _open(path)
    digests: list[bytes] = []
    embeddings = np.zeros((file.metadata.num_rows, width), np.float32)
    try:
        for batch in file.iter_batches(columns=[HASH_COLUMN, EMBEDDING_COLUMN]):
            batch = batch.filter(batch.column(EMBEDDING_COLUMN).is_valid())
            if not len(batch):
                continue
            values = batch.column(EMBEDDING_COLUMN).flatten().to_numpy(zero_copy_only=False)
            embeddings[len(digests) : len(digests) + len(batch)] = values.reshape(len(batch), width)
            digests += [bytes.fromhex(each) for each in batch.column(HASH_COLUMN).to_pylist()]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedError(f"{path}: is damaged ({str(error).splitlines()[0]}); {_REMEDY}") from error
    return np.array(digests, dtype="S16"), embeddings[: len(digests)]
