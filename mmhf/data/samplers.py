"""The order of training samples as a function of seed and epoch alone."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """Which row, seen in which epoch: with the seed, all that decides how a sample looks."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    epoch: int


def derive_seed(*parts: int) -> int:
    """Mix integers into one seed of 63 bits.

    Args:
        parts (`int`):
            Such as seed, epoch and row.

    Returns:
        `int`: the same for the same parts on every machine, unrelated for others.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class EpochSampler(Sampler[SampleKey]):
    """Yields every row once, in an order that depends only on seed and epoch.

    A resumed run and each of several processes therefore see the same order without any random state being stored.

    Args:
        num_rows (`int`):
            Rows of the data set.
        seed (`int`, defaults to 0):
            Seed of the order.
    """

    def __init__(self, num_rows: int, seed: int = 0) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        for index in torch.randperm(self.num_rows, generator=generator).tolist():
            yield SampleKey(index, epoch)
