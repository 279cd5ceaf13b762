"""Hard negatives: rows that a dual encoder takes for each other are contrasted in the same step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from mmhf.conventions import IGNORED_IMAGE
from mmhf.data.samplers import EpochSampler, order_beside_neighbours
from mmhf.parallel import gather, rank, world_size
from mmhf.recipe.dual_encoder_recipe import HardNegativesSection

logger = logging.getLogger(__name__)

ORDER_FILE = "hard_negatives.safetensors"
"""In a checkpoint folder: the order of the epoch under way, and the neighbours that it was made of."""

_CANDIDATES = 8
"""Neighbours that are looked for, for each that is wanted: some of them stand beside others already."""
_SCORES_AT_ONCE = 1 << 27
_MOST_ROWS_AT_ONCE = 1024


class TrainingPairs(NamedTuple):
    """The training samples of an epoch, as the model embeds them.

    Attributes:
        images, texts (`Tensor` of shape `(N, D)`): Of length 1.
        image_index (`Tensor` of shape `(N,)`): Equal for equal images; `IGNORED_IMAGE` for one that is broken.
        caption_id (`Tensor` of shape `(N,)`): Equal for equal captions.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_index: torch.Tensor
    caption_id: torch.Tensor


def find_hard_negatives(pairs: TrainingPairs, count: int, *, below_own: float | None) -> NDArray[np.int32]:
    """Find the rows that are most similar to each row without being its match.

    The similarity of two rows is the mean of those of either's image to the other's text. Each process looks for the
    neighbours of some rows; all get those of all.

    Args:
        pairs ([`TrainingPairs`]): The rows, on the device to compute on.
        count (`int`): Neighbours of each row.
        below_own (`float`, *optional*): Rows whose similarity is above this share of the row's own, that of its image
            to its text, are no negatives; None: all may be.

    Returns:
        `NDArray` of shape `(N, count)`: rows, the most similar first; -1 where there are no more.
    """
    num_rows = len(pairs.images)
    size = max(1, min(_MOST_ROWS_AT_ONCE, _SCORES_AT_ONCE // max(num_rows, 1)))
    # Blocks do not depend on the number of processes: a product of other shapes may round otherwise.
    starts = range(0, num_rows, size)
    own = [_nearest(pairs, start, start + size, count, below_own) for start in list(starts)[rank() :: world_size()]]
    found = gather(own)
    blocks = [found[number % world_size()][number // world_size()] for number in range(len(starts))]
    return np.concatenate(blocks) if blocks else np.empty((0, count), np.int32)


def _nearest(pairs: TrainingPairs, start: int, stop: int, count: int, below_own: float | None) -> NDArray[np.int32]:
    images, texts = pairs.images[start:stop], pairs.texts[start:stop]
    scores = (images @ pairs.texts.T + texts @ pairs.images.T) / 2
    excluded = pairs.image_index[start:stop, None] == pairs.image_index
    excluded |= pairs.caption_id[start:stop, None] == pairs.caption_id
    excluded |= (pairs.image_index == IGNORED_IMAGE) | (pairs.image_index[start:stop, None] == IGNORED_IMAGE)
    if below_own is not None:
        matches = (images * texts).sum(dim=1)
        # A share of a negative number would let nearer rows pass.
        excluded |= scores > (matches - (1 - below_own) * matches.abs())[:, None]
    scores = scores.masked_fill(excluded, -torch.inf)
    nearest = scores.topk(min(count, scores.shape[1]), dim=1)
    rows = nearest.indices.masked_fill(nearest.values == -torch.inf, -1).to(torch.int32).cpu().numpy()
    return np.pad(rows, ((0, 0), (0, count - rows.shape[1])), constant_values=-1)


class _Arranged(NamedTuple):
    """An epoch's order, and what it was made of."""

    epoch: int
    stage: int
    order: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    """Empty before any were looked for."""
    mined_in: int
    """The epoch in which they were."""


class Embed(Protocol):
    """Embeds the samples of an epoch."""

    def __call__(self, rows: NDArray[np.int64], epoch: int) -> TrainingPairs:
        """The samples, read in the order of `rows` and given in that of the data set; the same on all processes."""
        ...


class HardNegatives:
    """Puts the samples of each epoch into an order in which hard negatives stand in the same step.

    An order is a function of seed, epoch and the weights when the epoch, or a stage within it, began. Checkpoints keep
    it, so that a resumed run goes on with it and asks no other weights.

    Args:
        section (`HardNegativesSection`): How many, and when they are looked for.
        embed ([`Embed`]): Embeds training samples with the weights of now.
        clock (`Callable`): Seconds.
    """

    name = "hard negatives"

    def __init__(
        self, section: HardNegativesSection, embed: Embed, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.section = section
        self.seconds = 0.0
        """What looking for them has taken."""
        self._embed = embed
        self._clock = clock
        self._arranged: _Arranged | None = None

    def load(self, checkpoint: Path | None) -> None:
        """Go on as a checkpoint says; None begins a run."""
        self._arranged = None
        path = None if checkpoint is None else checkpoint / ORDER_FILE
        if path is not None and path.is_file():
            with safe_open(path, framework="numpy") as file:
                numbers = {name: int(value) for name, value in file.metadata().items()}
                self._arranged = _Arranged(
                    order=file.get_tensor("order"), neighbours=file.get_tensor("neighbours"), **numbers
                )

    def save(self, checkpoint: Path) -> None:
        """Write the order of the epoch under way into a checkpoint folder."""
        if self._arranged is not None:
            arrays = {name: getattr(self._arranged, name) for name in ("order", "neighbours")}
            numbers = {name: str(getattr(self._arranged, name)) for name in ("epoch", "stage", "mined_in")}
            save_file(arrays, checkpoint / ORDER_FILE, metadata=numbers)

    def arrange(self, sampler: EpochSampler, *, epoch: int, taken: int, stage: int, step_samples: int) -> None:
        """Put what is left of an epoch in order, as it or a stage begins.

        Args:
            sampler (`EpochSampler`): Gets the order.
            epoch (`int`): The epoch.
            taken (`int`): Samples of it that are done; they stay where they were.
            stage (`int`): Index of the stage under way.
            step_samples (`int`): Samples of a step.
        """
        last = self._arranged
        if last is None or (last.epoch, last.stage) != (epoch, stage):
            before = last.order if last is not None and last.epoch == epoch else sampler.epoch_rows(epoch)[0]
            neighbours, mined_in = np.empty((0, 0), np.int32), epoch
            if epoch >= self.section.first_epoch:
                if last is not None and self._is_fresh(last, epoch, stage):
                    neighbours, mined_in = last.neighbours, last.mined_in
                else:
                    neighbours = self._mine(before, epoch)
            order = before
            if len(neighbours):
                rest = order_beside_neighbours(before[taken:], neighbours, self.section.per_sample, step_samples)
                order = np.concatenate([before[:taken], rest])
            self._arranged = last = _Arranged(epoch, stage, order, neighbours, mined_in)
        sampler.arrange(epoch, last.order)

    def _is_fresh(self, last: _Arranged, epoch: int, stage: int) -> bool:
        return len(last.neighbours) > 0 and last.stage == stage and epoch - last.mined_in < self.section.every_epochs

    def _mine(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int32]:
        begun = self._clock()
        pairs = self._embed(rows, epoch)
        embedded = self._clock()
        count = self.section.per_sample * _CANDIDATES
        neighbours = find_hard_negatives(pairs, count, below_own=self.section.below_own)
        done = self._clock()
        self.seconds += done - begun
        if rank() == 0:
            logger.info(
                "Epoch %d: %d of %d samples have hard negatives; %.1f s to embed all, %.1f s to search",
                *(epoch, int((neighbours[:, 0] >= 0).sum()), len(neighbours), embedded - begun, done - embedded),
            )
        return neighbours
