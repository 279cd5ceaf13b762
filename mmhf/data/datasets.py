"""Rows of a table, or of a stream, as PyTorch data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, IterableDataset

from mmhf.conventions import Modality
from mmhf.data.digests import Digests, digest_images, digest_texts
from mmhf.data.feature_cache import AskedRows, DatasetFeatures, Row
from mmhf.data.read_ahead import ReadAhead, reads_ahead
from mmhf.data.samplers import EpochSampler, SampleKey


class RowDataset(Dataset[Row]):
    """A table of rows, read in batches, each row carrying the index and epoch it was asked for with.

    Where features of its samples may be stored, a batch is an `AskedRows` instead, which reads the others alone.

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
        self.features: DatasetFeatures | None = None
        """Features of the samples, set by a trainer that stores them."""
        self._sampler: EpochSampler | None = None
        self._values: dict[str, NDArray[Any]] = {}
        self._ahead = ReadAhead(table, self._image_order) if reads_ahead(table) else None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | SampleKey) -> Row:
        return self.read_rows([_as_key(key)])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[Row] | AskedRows:
        asked = [_as_key(key) for key in keys]
        if self.features is not None:
            return AskedRows(self, self.features, asked, self.stage)
        return self.read_rows(asked)

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
        if self._ahead is not None:
            self._ahead.after(keys[0].epoch, self.places("image", np.array(keys, dtype=np.int64)).tolist())
        return rows

    def _image_order(self, epoch: int) -> NDArray[np.int64]:
        """The places of images in the order of an epoch, or of an evaluation."""
        indices = np.arange(len(self)) if self._sampler is None else self._sampler.epoch_rows(epoch)[0]
        return self.places("image", np.stack([indices, np.full_like(indices, epoch), np.zeros_like(indices)], axis=1))

    def places(self, content: Modality, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the data set's images, or texts, each sample has.

        Args:
            content (`str`):
                `"image"` or `"text"`.
            keys (`NDArray`):
                (B, 3) index, epoch and draw of each sample.
        """
        return keys[:, 0]

    def num_places(self, content: Modality) -> int:
        """How many images, or texts, the data set has."""
        return len(self.table)

    def digests(self, content: Modality, *, shard: int = 0, num_shards: int = 1) -> Digests:
        """Digests of every image, or text, of the data set, or of each `num_shards`-th from `shard` on."""
        if content == "text":
            return digest_texts(self.table["text"][:][shard::num_shards])
        return digest_images(self.table, range(shard, len(self.table), num_shards))

    def values(self, name: str, keys: NDArray[np.int64]) -> Any:
        """One value of a column for each sample, without reading its image; None where there is no such column.

        Args:
            name (`str`):
                The column.
            keys (`NDArray`):
                (B, 3) index, epoch and draw of each sample.
        """
        if name not in self.table.column_names:
            return None
        if name not in self._values:
            self._values[name] = np.asarray(self.table[name][:])
        return self._values[name][self.places("image", keys)]

    def _read(self, keys: Sequence[SampleKey]) -> list[Row]:
        return self._read_table([key.index for key in keys])

    def _read_table(self, positions: Sequence[int]) -> list[Row]:
        # Reading a batch of rows at once costs 13 µs a row, one by one 346 µs.
        columns = self.table[positions]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

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
