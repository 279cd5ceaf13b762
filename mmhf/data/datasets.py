"""Rows of a table, or of a stream, as PyTorch data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
from numpy.typing import ArrayLike
from torch.utils.data import Dataset, IterableDataset

from mmhf.data.samplers import EpochSampler, SampleKey

Row = dict[str, Any]


class RowDataset(Dataset[Row]):
    """A table of rows, read in batches, each row carrying the index and epoch it was asked for with.

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
        self._sampler: EpochSampler | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | SampleKey) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[Row]:
        pairs = [key if isinstance(key, SampleKey) else SampleKey(int(key), 0) for key in keys]
        rows = self._read(pairs)
        for row, pair in zip(rows, pairs, strict=True):
            row["index"], row["epoch"], row["draw"] = pair
            row["stage"] = self.stage
        return rows

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

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler.

        accelerate 1.15 does not reach a sampler that lies under both `SkipBatchSampler` (resuming) and
        `BatchSamplerShard` (several processes); it then calls this instead.
        """
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)


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
