"""Retrieval where captions of equal text are one caption, which is right for every image that has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK_PRODUCTS = 1 << 25


def unique_text_recalls(
    images: torch.Tensor, texts: torch.Tensor, owners: NDArray[np.int64], captions: Sequence[str], ks: Sequence[int]
) -> dict[str, float]:
    """Recalls in both directions, `unique_image_to_text_recall@K` and `unique_text_to_image_recall@K`.

    The usual protocol counts a caption that two images share as wrong for one of them, whatever the model does.

    Args:
        images (`torch.Tensor` of shape `(I, D)`): Of length 1.
        texts (`torch.Tensor` of shape `(T, D)`): Of length 1; of equal captions the first one's counts.
        owners (`NDArray` of shape `(T,)`): The image of each caption.
        captions (`Sequence[str]`): T texts; blanks at their ends make no difference.
        ks (`Sequence[int]`): Among how many of the most similar ones.
    """
    numbers: dict[str, int] = {}
    text_of = np.array([numbers.setdefault(caption.strip(), len(numbers)) for caption in captions], np.int64)
    _, first = np.unique(text_of, return_index=True)
    distinct = texts[torch.from_numpy(first)]
    recalls = {}
    for name, queries, candidates, query_of, right_of in (
        ("unique_image_to_text", images, distinct, owners, text_of),
        ("unique_text_to_image", distinct, images, text_of, owners),
    ):
        ranks = _first_ranks(queries, candidates, np.unique(np.stack([query_of, right_of], axis=1), axis=0))
        recalls.update({f"{name}_recall@{k}": float((ranks <= k).mean()) for k in ks})
    return recalls


def _first_ranks(queries: torch.Tensor, candidates: torch.Tensor, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of the first right candidate, of equal ones the earlier, for each query that has one.

    Args:
        queries, candidates (`torch.Tensor`): (Q, D) and (C, D).
        pairs (`NDArray` of shape `(P, 2)`): Query and right candidate, sorted.
    """
    asked, begins = np.unique(pairs[:, 0], return_index=True)
    ends = np.append(begins[1:], len(pairs))
    step = max(_BLOCK_PRODUCTS // len(candidates), 1)
    ranks = np.empty(len(asked), np.int64)
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        products = (queries[torch.from_numpy(asked[part])] @ candidates.T).numpy()
        for place, (row, begin, end) in enumerate(zip(products, begins[part], ends[part], strict=True), start):
            right = pairs[begin:end, 1]
            best = right[np.argmax(row[right])]
            ranks[place] = 1 + np.count_nonzero(row > row[best]) + np.count_nonzero(row[:best] == row[best])
    return ranks
