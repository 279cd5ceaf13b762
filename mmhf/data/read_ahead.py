"""Fetching images behind URLs before their batch is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.remote.images import RemoteImageFeature, parse_reference


class ReadAhead:
    """Guesses from the batches that it sees which come next, and begins to fetch their images.

    A process or worker gets every n-th batch of an epoch's order, whatever n is. A wrong guess costs a few images
    that are fetched in vain.

    Args:
        table (`Dataset`):
            Rows with a `RemoteImageFeature`.
        order_of (`Callable`):
            Epoch → the rows' positions in the table, in the order in which the epoch goes through them.
    """

    def __init__(self, table: datasets.Dataset, order_of: Callable[[int], NDArray[np.int64]]) -> None:
        self._feature: RemoteImageFeature = table.features["image"]
        self._images = table.select_columns(["image"]).with_format("arrow")
        self._order_of = order_of
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._last = self._step = self._reached = 0

    def after(self, epoch: int, positions: Sequence[int]) -> None:
        """Fetch what comes after a batch.

        Args:
            epoch (`int`):
                Of the batch.
            positions (`Sequence[int]`):
                Its rows in the table.
        """
        is_first = epoch != self._epoch
        if is_first:
            self._epoch, self._order = epoch, self._order_of(epoch)
        place = find_run(self._order, positions)
        if place is None:
            return
        step = len(positions) if is_first or place <= self._last else place - self._last
        if is_first or step != self._step:
            self._reached = place
        self._last, self._step = place, step
        starts = range(place + step, place + step * self._feature.prefetch + 1, step)
        ahead = [self._order[start : start + len(positions)] for start in starts if start > self._reached]
        self._reached = max(self._reached, starts[-1])
        self._fetch(np.concatenate([*ahead, np.empty(0, dtype=np.int64)]))

    def _fetch(self, positions: NDArray[np.int64]) -> None:
        files = self._feature.files()
        for image in self._images[positions.tolist()]["image"].to_pylist() if len(positions) else ():
            if image["path"] is not None:
                _, file = parse_reference(image["path"], self._feature.root)
                if file is not None:
                    files.prefetch(file)


def reads_ahead(table: object) -> bool:
    """Whether a table has images that are worth fetching ahead."""
    if not isinstance(table, datasets.Dataset):
        return False
    feature = table.features.get("image")
    return isinstance(feature, RemoteImageFeature) and feature.prefetch > 0


def find_run(order: NDArray[np.int64], run: Sequence[int]) -> int | None:
    """Where a run of numbers stands in an order.

    Args:
        order (`NDArray` of shape `(N,)`):
            Numbers, of which some may be there more than once.
        run (`Sequence[int]`):
            At least one.

    Returns:
        `int` or `None`: the first place where all of the run follow each other.
    """
    wanted = np.asarray(run, dtype=np.int64)
    for place in np.flatnonzero(order[: len(order) - len(wanted) + 1] == wanted[0]).tolist():
        if np.array_equal(order[place : place + len(wanted)], wanted):
            return int(place)
    return None
