"""How embeddings lie on the sphere: alignment and uniformity (Wang and Isola 2020, arXiv:2005.10242)."""

from __future__ import annotations

import math

import torch

MAX_UNIFORMITY_ROWS = 4096
"""Rows beyond which uniformity is that of a fixed random sample of so many."""
_BLOCK_ROWS = 1024


def alignment(images: torch.Tensor, texts: torch.Tensor) -> float:
    """Mean squared distance of right pairs, `E |f(x) - f(y)|²`: 0 when they coincide, 2 when they are orthogonal.

    Args:
        images (`torch.Tensor` of shape `(N, D)`): Of length 1.
        texts (`torch.Tensor` of shape `(N, D)`): Of length 1; row n belongs to row n of `images`.
    """
    total = sum(
        (left - right).pow(2).sum(dtype=torch.float64).item()
        for left, right in zip(images.split(_BLOCK_ROWS), texts.split(_BLOCK_ROWS), strict=True)
    )
    return total / len(images)


def uniformity(embeds: torch.Tensor, *, t: float = 2.0) -> float:
    """Logarithm of the mean Gaussian potential of pairs, `log E exp(-t |f(x) - f(y)|²)`.

    0 when all embeddings are the same, about -4 (for t = 2) when they fill a sphere of many dimensions evenly.

    Args:
        embeds (`torch.Tensor` of shape `(N, D)`): Of length 1, N at least 2. Of more than 4,096 rows so many are
            drawn, always the same ones.
        t (`float`, defaults to 2): The paper's.

    Raises:
        ValueError: There is no pair.
    """
    if len(embeds) < 2:
        raise ValueError(f"uniformity is of pairs, got {len(embeds)} rows")
    if len(embeds) > MAX_UNIFORMITY_ROWS:
        chosen = torch.randperm(len(embeds), generator=torch.Generator().manual_seed(0))[:MAX_UNIFORMITY_ROWS]
        embeds = embeds[chosen]
    rows = len(embeds)
    total = sum(_block_potential(embeds, start, t) for start in range(0, rows, _BLOCK_ROWS))
    return math.log(max(total / (rows * (rows - 1)), torch.finfo(torch.float64).tiny))


def _block_potential(embeds: torch.Tensor, start: int, t: float) -> float:
    """Sum of the potentials of a block's rows with all others; |x - y|² = 2 - 2 x·y on the sphere."""
    products = embeds[start : start + _BLOCK_ROWS] @ embeds.T
    potentials = ((products - 1).clamp(max=0) * (2 * t)).exp()
    potentials.diagonal(offset=start).zero_()
    return potentials.sum(dtype=torch.float64).item()
