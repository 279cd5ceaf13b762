"""The order of training samples as a function of seed and epoch alone."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

_WEIGHTED, _GROUPED = 0x776569, 0x67726F
"""Set the seeds of weighted draws, and of the order of steps of like length, apart from those of permutations."""
_STEPS_SORTED = 50
"""Steps whose samples are sorted by length together: more would save little padding, and mix samples less."""
_GROUPS_PASSED = 64
"""Groups that are passed over to fill a step to its end."""


class SampleKey(NamedTuple):
    """Which row, seen in which epoch: with the seed, all that decides how a sample looks."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    epoch: int
    draw: int = 0
    """How often the row has been drawn in this epoch before; 0 unless rows are drawn with replacement."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the sample's random changes depend on beside the seed."""
        return (self.index, self.epoch, self.draw) if self.draw else (self.index, self.epoch)


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


def sample_seed(seed: int, key: SampleKey) -> int:
    """Seed of a sample's random changes."""
    return derive_seed(seed, key.epoch, key.index, *([key.draw] if key.draw else []))


class EpochSampler(Sampler[SampleKey]):
    """Yields rows in an order that depends only on seed and epoch: every row once, or as many, drawn by weight.

    A resumed run and each of several processes therefore see the same order without any random state being stored.

    Args:
        num_rows (`int`):
            Rows of the data set.
        seed (`int`, defaults to 0):
            Seed of the order.
        weights (`ArrayLike` of shape `(num_rows,)`, *optional*):
            Draw rows with replacement, each with a probability in proportion to its weight; absent = every row once.
    """

    def __init__(self, num_rows: int, seed: int = 0, *, weights: ArrayLike | None = None) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0
        self._start = (0, 0)
        self._lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None
        self._step_samples = 1
        self._arranged: tuple[int, NDArray[np.int64]] | None = None
        self._cumulative = None if weights is None else np.cumsum(np.asarray(weights, dtype=np.float64))

    def group_by_length(self, lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]], step_samples: int) -> None:
        """Let the samples of a step have like lengths, so that little is padded; steps stay in random order.

        Args:
            lengths (`Callable`):
                (N, 3) index, epoch and draw of samples → (N,) lengths.
            step_samples (`int`):
                Samples of a step, over all micro-batches and processes; the order depends on it.
        """
        self._lengths, self._step_samples = lengths, step_samples

    def arrange(self, epoch: int, rows: NDArray[np.int64]) -> None:
        """Give the rows of an epoch an order of their own."""
        self._arranged = epoch, rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = int(epoch)

    def start_epoch(self, epoch: int, *, at: int) -> None:
        """Choose the epoch that the next iteration yields, and where in it."""
        self._start = (epoch, at)
        self.set_epoch(epoch)

    @property
    def num_passed(self) -> int:
        """Samples of the present epoch that are passed over."""
        epoch, at = self._start
        return at if epoch == self.epoch else 0

    def __len__(self) -> int:
        return max(self.num_rows - self.num_passed, 0)

    def epoch_rows(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two arrays of shape (num_rows,): the rows of an epoch, and how often each has been drawn before in it."""
        if self._arranged is not None and self._arranged[0] == epoch:
            return self._arranged[1], np.zeros(self.num_rows, dtype=np.int64)
        if self._cumulative is not None:
            rows, draws = draw_rows(self._cumulative, self.num_rows, derive_seed(_WEIGHTED, self.seed, epoch))
        else:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            rows = torch.randperm(self.num_rows, generator=generator).numpy()
            draws = np.zeros(self.num_rows, dtype=np.int64)
        if self._lengths is None:
            return rows, draws
        lengths = self._lengths(np.stack([rows, np.full_like(rows, epoch), draws], axis=1))
        order = steps_of_like_length(lengths, self._step_samples, derive_seed(_GROUPED, self.seed, epoch))
        return rows[order], draws[order]

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, first = self.epoch, self.num_passed
        rows, draws = self.epoch_rows(epoch)
        for index, draw in zip(rows[first:].tolist(), draws[first:].tolist(), strict=True):
            yield SampleKey(index, epoch, draw)


def steps_of_like_length(lengths: NDArray[np.int64], step_samples: int, seed: int) -> NDArray[np.int64]:
    """Put samples into an order in which those of a step have like lengths.

    Args:
        lengths (`NDArray` of shape `(N,)`):
            Of the samples as they stand; those of 50 steps that follow each other are sorted among themselves.
        step_samples (`int`):
            Samples of a step.
        seed (`int`):
            Of the order of the steps.

    Returns:
        `NDArray` of shape `(N,)`: the samples' places; those that fill no whole step come last.
    """
    whole = len(lengths) // step_samples * step_samples
    order = np.arange(len(lengths))
    for first in range(0, whole, step_samples * _STEPS_SORTED):
        span = slice(first, min(first + step_samples * _STEPS_SORTED, whole))
        order[span] = order[span][np.argsort(lengths[span], kind="stable")]
    steps = order[:whole].reshape(-1, step_samples)
    return np.concatenate([np.random.default_rng(seed).permutation(steps).reshape(-1), order[whole:]])


def order_beside_neighbours(
    order: NDArray[np.int64], neighbours: NDArray[np.integer], per_sample: int, step_samples: int
) -> NDArray[np.int64]:
    """Put samples into an order in which each stands in the same step as neighbours of it.

    One after the other, a sample takes the first of its neighbours that are not taken yet, and stands in a group with
    them. Groups fill steps in their order; one that does not fit into what is left of a step waits for the next.

    Args:
        order (`NDArray` of shape `(M,)`):
            The samples, each once.
        neighbours (`NDArray` of shape `(N, C)`):
            The neighbours of each sample, the nearest first; -1: no more.
        per_sample (`int`):
            How many a sample takes.
        step_samples (`int`):
            Samples of a step; a group is cut only where no whole one is left that fits.

    Returns:
        `NDArray` of shape `(M,)`: the same samples.
    """
    is_free = np.zeros(len(neighbours), dtype=bool)
    is_free[order] = True
    waiting: deque[list[int]] = deque()
    for sample in order.tolist():
        if not is_free[sample]:
            continue
        is_free[sample] = False
        nearest = neighbours[sample]
        taken = nearest[nearest >= 0]
        taken = taken[is_free[taken]][:per_sample]
        is_free[taken] = False
        waiting.append([sample, *taken.tolist()])
    arranged: list[int] = []
    while waiting:
        room = step_samples
        passed: list[list[int]] = []
        while room and waiting and len(passed) < _GROUPS_PASSED:
            group = waiting.popleft()
            if len(group) > room:
                passed.append(group)
                continue
            arranged += group
            room -= len(group)
        if room and passed:
            arranged += passed[0][:room]
            passed[0] = passed[0][room:]
        waiting.extendleft(reversed(passed))
    return np.array(arranged, dtype=np.int64)


def draw_rows(cumulative: NDArray[np.float64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw row numbers with replacement.

    Args:
        cumulative (`NDArray` of shape `(N,)`):
            Running sum of the rows' weights.
        count (`int`):
            How many to draw.
        seed (`int`):
            All that the result depends on, beside the weights.

    Returns:
        `tuple` of two `NDArray` of shape `(count,)`: row numbers in random order, of which one whose weight is 0 is
        never among them, and for each its number among the draws of its row, from 0.
    """
    generator = np.random.default_rng(seed)
    # Looked up in order and shuffled afterwards: a search at random places is ten times as slow.
    points = np.sort(generator.random(count)) * cumulative[-1]
    rows = np.searchsorted(cumulative, points, side="right").clip(max=len(cumulative) - 1)
    order = generator.permutation(count)
    # Equal neighbours are numbered from 0: [3, 3, 3, 7, 7] → [0, 1, 2, 0, 1].
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    draws = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    return rows[order], draws[order]
