"""In which order an epoch goes through shards, as a pure function of seed, epoch and place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from mmhf.data.samplers import EpochSampler, SampleKey, derive_seed

_SHARDS, _WINDOW = 0x736872, 0x77696E
"""Set the seeds of either kind of shuffling apart."""


class Segment(NamedTuple):
    """A stretch of a shard."""

    shard: int
    skip: int
    take: int | None
    """None: all that is left."""


@dataclass(frozen=True)
class StreamOrder:
    """The order of an epoch.

    The shards come in an order of the epoch's own, one after the other, and start over in another order when they are
    used up. On top of that the samples are shuffled within windows: a window is read as a whole, and handed out in an
    order of its own.

    Where the sizes of shards are known there is one track through all of them, and every place of it can be gone to
    at once. Where they are not, the shards are dealt to several tracks, which can only be followed from their
    beginning.

    Args:
        num_shards (`int`):
            Number of shards.
        sizes (`tuple[int, ...]`, *optional*):
            Samples in each, where that is known.
        length (`int`):
            Samples of an epoch.
        window (`int`):
            Samples of a window.
        tracks (`int`, defaults to 1):
            More than 1 only where sizes are not known.
        seed (`int`, defaults to 0):
            Seed.
    """

    num_shards: int
    sizes: tuple[int, ...] | None
    length: int
    window: int
    tracks: int = 1
    seed: int = 0

    def locate(self, index: int) -> tuple[int, int, int]:
        """Track, window in it, and place in that window, of the sample at an index."""
        place, track = divmod(index, self.tracks)
        window, offset = divmod(place, self.window)
        return track, window, offset

    def shuffled(self, epoch: int, track: int, window: int) -> list[int]:
        """For each place in a window, which of its samples is handed out there; as many as the window has."""
        size = self.window
        if self.sizes is not None:
            size = min(size, self.length - window * self.window)
        seed = derive_seed(_WINDOW, self.seed, epoch, track, window)
        order: list[int] = np.random.default_rng(seed).permutation(size).tolist()
        return order

    def segments(self, epoch: int, track: int, start: int) -> Iterator[Segment]:
        """Go through the shards without end.

        Args:
            epoch, track (`int`):
                Whose order.
            start (`int`):
                Samples to leave out at the beginning; 0 where sizes are not known.
        """
        if self.sizes is None:
            for lap in count():
                yield from (Segment(shard, 0, None) for shard in self._shards(epoch, lap)[track :: self.tracks])
        else:
            first, rest = divmod(start, sum(self.sizes))
            for lap in count(first):
                for shard in self._shards(epoch, lap):
                    size = self.sizes[shard]
                    if rest < size:
                        yield Segment(shard, rest, size - rest)
                    rest = max(rest - size, 0)

    def _shards(self, epoch: int, lap: int) -> list[int]:
        # Tracks keep to the shards that they were dealt: dealt anew in each lap, some would be read twice as often.
        lap = lap if self.sizes is not None else 0
        seed = derive_seed(_SHARDS, self.seed, epoch, lap)
        order: list[int] = np.random.default_rng(seed).permutation(self.num_shards).tolist()
        return order


class StreamSampler(EpochSampler):
    """Yields the indices of a stream so that each reader gets its batches from a stretch of its own.

    Batch g goes to reader g modulo `readers`: that is how batches are dealt to processes and then to the workers of
    each. Every index is yielded once an epoch.

    Args:
        order (`StreamOrder`):
            The order.
        batch_size (`int`):
            Samples of a batch.
        readers (`int`):
            Processes times workers.
    """

    def __init__(self, order: StreamOrder, *, batch_size: int, readers: int) -> None:
        super().__init__(order.length, order.seed)
        self.order = order
        self.batch_size = batch_size
        self.readers = readers

    def __iter__(self) -> Iterator[SampleKey]:
        return islice(self._keys(), self.num_passed, None)

    def _keys(self) -> Iterator[SampleKey]:
        epoch, size = self.epoch, self.batch_size
        num_batches = -(-self.num_rows // size)
        starts = self._starts(num_batches)
        for batch in range(num_batches):
            turn, reader = divmod(batch, self.readers)
            first = (starts[reader] + turn) * size
            for place in range(first, min(first + size, self.num_rows) if self.order.tracks == 1 else first + size):
                if self.order.tracks == 1:
                    yield SampleKey(place, epoch)
                elif batch * size + place - first < self.num_rows:
                    yield SampleKey(place * self.order.tracks + reader, epoch)

    def _starts(self, num_batches: int) -> list[int]:
        """The batch that each reader's stretch begins with."""
        if self.order.tracks > 1:
            return [0] * self.readers
        # The stretch of the reader that gets the last batch comes last: this batch alone can be short.
        starts, start = [0] * self.readers, 0
        for step in range(1, self.readers + 1):
            reader = (num_batches - 1 + step) % self.readers
            starts[reader] = start
            start += len(range(reader, num_batches, self.readers))
        return starts
