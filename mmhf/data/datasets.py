"""Rows of a table, or of a stream, as PyTorch data sets."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mmhf.conventions import Content, Modality
from mmhf.data.digests import Digests, combined_digests, digest_images, digest_texts
from mmhf.data.read_ahead import ReadAhead, reads_ahead
from mmhf.data.samplers import EpochSampler, SampleKey
from mmhf.data.table import is_extra_column

Row = dict[str, Any]
STORED_IMAGE: dict[str, Any] = {"path": "its features are stored", "bytes": None}
"""In the place of a row's image that need not be looked at."""


class StoredColumn(Protocol):
    """Features that stand beside a data set's rows."""

    feature: str
    """Their name in a row and a batch."""
    content: Content
    """What they are made of."""

    def read(self, places: NDArray[np.int64], keys: NDArray[np.int64]) -> Tensor:
        """(B, ...) features of some images, texts or rows, of samples with these keys (B, 3)."""

    def stand_in(self, place: int) -> Row:
        """What a row has instead of its image: `image`, and `broken` where it cannot be decoded."""


class RowDataset(Dataset[Row]):
    """A table of rows, read in batches, each row carrying the index and epoch it was asked for with.

    Rows also have the features of `columns`, and no image where these replace it.

    Args:
        table (`datasets.Dataset`):
            Rows with the columns of `load_data`.
        weights (`ArrayLike`, *optional*):
            One a row: the sampler draws rows with replacement by them; absent = every row once an epoch.
    """

    def __init__(self, table: datasets.Dataset, *, weights: ArrayLike | None = None) -> None:
        self.table = table
        self.weights = weights
        self.stage = 0
        """Index of the stage of training that rows are read for; each row carries it."""
        self.columns: dict[str, StoredColumn] = {}
        """Stored features of the samples, by the argument of `forward` that takes them in place of image or text."""
        self.beside: dict[str, StoredColumn] = {}
        """What is stored of the samples and replaces nothing, such as a teacher's answers."""
        self._sampler: EpochSampler | None = None
        self._ahead = ReadAhead(table, self._image_order) if reads_ahead(table) else None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | SampleKey) -> Row:
        return self.read_rows([_as_key(key)])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[Row]:
        return self.read_rows([_as_key(key) for key in keys])

    def read_rows(self, keys: Sequence[SampleKey]) -> list[Row]:
        """Read whole rows.

        Args:
            keys (`Sequence[SampleKey]`):
                What they are asked for with.
        """
        rows = self._read(keys)
        for row, key in zip(rows, keys, strict=True):
            row["index"], row["epoch"], row["draw"] = key
            row["stage"] = self.stage
        array = np.array(keys, dtype=np.int64).reshape(-1, 3)
        if self._ahead is not None and self._image_column is None:
            self._ahead.after(keys[0].epoch, self.places("image", array).tolist())
        for name, column in {**self.columns, **self.beside}.items():
            features = column.read(self.places(column.content, array), array)
            for row, value in zip(rows, features.unbind(), strict=True):
                row[name] = value
        return rows

    def _image_order(self, epoch: int) -> NDArray[np.int64]:
        """The places of images in the order of an epoch, or of an evaluation."""
        indices = np.arange(len(self)) if self._sampler is None else self._sampler.epoch_rows(epoch)[0]
        return self.places("image", np.stack([indices, np.full_like(indices, epoch), np.zeros_like(indices)], axis=1))

    def places(self, content: Content, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the data set's images, texts or rows each sample has.

        Args:
            content (`str`):
                `"image"`, `"text"` or `"row"`.
            keys (`NDArray`):
                (B, 3) index, epoch and draw of each sample.
        """
        return keys[:, 0]

    def num_places(self, content: Modality) -> int:
        """How many images, or texts, the data set has."""
        return len(self.table)

    def digests(self, content: Content, *, shard: int = 0, num_shards: int = 1) -> Digests:
        """Digests of every image, text or row of the data set, or of each `num_shards`-th from `shard` on.

        That of a row is made of its image, its text and its columns of the source.
        """
        if content == "text":
            return digest_texts(self.table["text"][:][shard::num_shards])
        images = digest_images(self.table, range(shard, len(self.table), num_shards))
        if content == "image":
            return images
        names = [name for name in self.table.column_names if is_extra_column(name)]
        values = zip(*(self._light.column(name).to_pylist()[shard::num_shards] for name in names), strict=True)
        columns = [digest_texts(map(repr, values))] if names else []
        return combined_digests([images, self.digests("text", shard=shard, num_shards=num_shards), *columns])

    def image(self, place: int) -> dict[str, Any]:
        """One of the data set's images: its `path` and `bytes`."""
        image: dict[str, Any] = self._images[place]["image"]
        return image

    def texts(self, places: NDArray[np.int64]) -> list[str | None]:
        """Some of the data set's texts."""
        texts: list[str | None] = self._texts.take(pa.array(places)).to_pylist()
        return texts

    def lengths(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) characters of the texts of samples with these keys, (B, 3)."""
        lengths: NDArray[np.int64] = self._text_lengths[self.places("text", keys)]
        return lengths

    @functools.cached_property
    def _text_lengths(self) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = pc.fill_null(pc.utf8_length(self._texts), 0).to_numpy().astype(np.int64)
        return lengths

    @property
    def _texts(self) -> pa.Array:
        return self._light.column("text").combine_chunks()

    @functools.cached_property
    def _images(self) -> datasets.Dataset:
        return self.table.select_columns(["image"])

    @functools.cached_property
    def _light(self) -> pa.Table:
        """The table without its images, in memory."""
        names = [name for name in self.table.column_names if name != "image"]
        return self.table.select_columns(names).with_format("arrow")[:].combine_chunks()

    @property
    def _image_column(self) -> StoredColumn | None:
        return next((column for column in self.columns.values() if column.content == "image"), None)

    def _read(self, keys: Sequence[SampleKey]) -> list[Row]:
        return self._read_table([key.index for key in keys])

    def _read_table(self, positions: Sequence[int]) -> list[Row]:
        stored = self._image_column
        if stored is None:
            # Reading a batch of rows at once costs 13 µs a row, one by one 346 µs; from memory 1 µs.
            columns = self.table[positions]
        else:
            places = [position % len(self.table) for position in positions]
            columns = self._light.take(places).to_pydict()
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if stored is not None:
            for row, place in zip(rows, places, strict=True):
                row.update(stored.stand_in(place))
        return rows

    def ids(self, indices: NDArray[np.int64]) -> list[str]:
        """What messages call some samples: the id of their row, or its number where it has none."""
        keys = np.stack([indices, np.zeros_like(indices), np.zeros_like(indices)], axis=1)
        places = self.places("image", keys)
        if "id" not in self.table.column_names:
            return [str(place) for place in places.tolist()]
        return [str(each) for each in self.table.select_columns(["id"])[places.tolist()]["id"]]

    @property
    def order(self) -> EpochSampler | None:
        """The order of samples; None before training."""
        return self._sampler

    def epoch_sampler(self, seed: int = 0) -> EpochSampler:
        """Make the sampler of this data set, which `set_epoch` then reaches.

        Args:
            seed (`int`, defaults to 0):
                Seed of the order.

        Returns:
            `EpochSampler`: over all rows, by weight where there are weights.
        """
        self._sampler = EpochSampler(len(self), seed, weights=self.weights)
        return self._sampler

    def start_epoch(self, epoch: int, *, at: int) -> None:
        """Let the sampler's next iteration begin within an epoch.

        Args:
            epoch (`int`):
                The epoch.
            at (`int`):
                Samples of it that are passed over, unread.
        """
        if self._sampler is not None:
            self._sampler.start_epoch(epoch, at=at)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler.

        accelerate 1.15 does not reach a sampler that lies under both `SkipBatchSampler` (resuming) and
        `BatchSamplerShard` (several processes); it then calls this instead.
        """
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)


def _as_key(key: int | SampleKey) -> SampleKey:
    return key if isinstance(key, SampleKey) else SampleKey(int(key), 0)


class RowStream(IterableDataset[Row]):
    """A stream of rows, each carrying its running number and the epoch.

    Args:
        stream (`datasets.IterableDataset`):
            Rows with the columns of `load_data`.
    """

    def __init__(self, stream: datasets.IterableDataset) -> None:
        self.stream = stream
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a shuffled stream takes another order in each."""
        self.epoch = int(epoch)
        self.stream.set_epoch(self.epoch)

    def __iter__(self) -> Iterator[Row]:
        for row in self.stream:
            yield {**row, "index": row["row"], "epoch": self.epoch, "draw": 0}
