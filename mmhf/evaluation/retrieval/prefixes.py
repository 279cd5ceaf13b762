"""Retrieval by the first numbers of embeddings that were trained for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.retrieval.metrics import RETRIEVAL_PROTOCOLS, retrieval_metrics

_RECALLS = tuple(name for name in RETRIEVAL_PROTOCOLS if "recall" in name)


def prefix_protocols(sizes: Sequence[int]) -> dict[str, str]:
    """How each number of `prefix_recalls` is defined."""
    return {
        f"first_{size}_{name}": f"{name} by the first {size} numbers of each embedding, brought to length 1."
        for size in sizes
        for name in _RECALLS
    }


def prefix_recalls(
    images: NDArray[np.float32], texts: NDArray[np.float32], image_index: ArrayLike, sizes: Sequence[int]
) -> dict[str, float]:
    """Recalls in both directions, and their mean, by the first numbers of each embedding.

    Args:
        images (`NDArray` of shape `(I, D)`): One row an image.
        texts (`NDArray` of shape `(T, D)`): One row a caption.
        image_index (`ArrayLike` of shape `(T,)`): As of `evaluate_retrieval`.
        sizes (`Sequence[int]`): How many numbers, each at most D.
    """
    recalls = {}
    for size in sizes:
        metrics = retrieval_metrics(images[:, :size], texts[:, :size], image_index)
        recalls.update({f"first_{size}_{name}": metrics[name] for name in _RECALLS})
    return recalls
