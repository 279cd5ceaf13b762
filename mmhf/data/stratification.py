"""Cutting rows with several labels so that each split has its share of every label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def iterative_stratification(
    matrix: NDArray[np.int8], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Deal rows to splits label by label, the rarest label first.

    Source: Sechidis et al., "On the Stratification of Multi-Label Data", 2011, algorithm 1. Each row of the label goes
    to the split that lacks most rows of it; of several such, to the one that lacks most rows at all; of several such,
    to one at random. Rows without any label are dealt last.

    Args:
        matrix (`NDArray` of shape `(N, C)`):
            1 where a row has a label.
        shares (`NDArray` of shape `(S,)`):
            The share of each split, of 1.
        rng (`np.random.Generator`):
            Puts the rows in order, and breaks ties.

    Returns:
        `NDArray` of shape `(N,)`: the number of each row's split.
    """
    order = rng.permutation(len(matrix))
    shuffled = matrix[order] > 0
    rows_of = [np.flatnonzero(shuffled[:, label]) for label in range(matrix.shape[1])]
    labels_of = [np.flatnonzero(row) for row in shuffled]
    remaining = shuffled.sum(axis=0).astype(np.int64)
    lacking = np.outer(remaining, shares)
    lacking_rows = len(matrix) * shares
    split_of = np.full(len(matrix), -1)

    def deal(row: int, wanted: NDArray[np.float64]) -> None:
        best = np.flatnonzero(wanted == wanted.max())
        if len(best) > 1:
            best = best[lacking_rows[best] == lacking_rows[best].max()]
        split = best[0] if len(best) == 1 else best[rng.integers(len(best))]
        split_of[row] = split
        labels = labels_of[row]
        lacking[labels, split] -= 1
        lacking_rows[split] -= 1
        remaining[labels] -= 1

    while remaining.any():
        label = int(np.where(remaining > 0, remaining, len(matrix) + 1).argmin())
        for row in rows_of[label].tolist():
            if split_of[row] < 0:
                deal(row, lacking[label])
    for row in np.flatnonzero(split_of < 0).tolist():
        deal(row, lacking_rows)
    assigned = np.empty(len(matrix), dtype=np.int64)
    assigned[order] = split_of
    return assigned
