"""Confidence intervals by drawing images again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
CONFIDENCE = 0.95
_MAX_COUNTS = 4_000_000
"""Drawn images held at once."""


def bootstrap_interval(
    statistics: NDArray[np.float64],
    value_of: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The percentile interval of a number that is a function of sums over images.

    Efron, 1979, https://doi.org/10.1214/aos/1176344552: N images are drawn from the N with replacement.

    Args:
        statistics (`NDArray[np.float64]` of shape `(N, S)`): what each image adds to the sums; N > 0.
        value_of (`Callable`): makes `(R, M)` numbers from `(R, S)` sums over images.
        resamples (`int`, *optional*, defaults to 1000): How often the images are drawn.
        seed (`int`, *optional*, defaults to 0): Of the drawing; equal N and seed draw the same images.

    Returns:
        `NDArray[np.float64]` of shape `(2, M)`: the 2.5 % and the 97.5 % quantile.
    """
    sums = [counts @ statistics for counts in _draw(len(statistics), resamples, seed)]
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(value_of(np.concatenate(sums)), (tail, 1 - tail), axis=0)


def _draw(num_images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    evenly = np.full(num_images, 1 / num_images)
    at_once = max(1, _MAX_COUNTS // num_images)
    for start in range(0, resamples, at_once):
        yield generator.multinomial(num_images, evenly, size=min(at_once, resamples - start))
