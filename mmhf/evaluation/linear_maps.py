"""Two linear maps of frozen features of images and texts into one space, which retrieval by training must beat."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from mmhf.evaluation.baselines import CPU_SECONDS, Floats
from mmhf.evaluation.retrieval import retrieval_metrics

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Regularisation of the projections that are tried, in units of the features' mean variance."""
_SEARCHED_DIMS = (64, 256, 512)


class Pairs(NamedTuple):
    """Features of images (I, D) and of captions (T, E), and the number of each caption's image (T,)."""

    images: NDArray[np.floating]
    texts: NDArray[np.floating]
    owners: NDArray[np.int64]


class LinearMaps(NamedTuple):
    """Maps of image features and of text features into one space.

    Attributes:
        images, texts (`NDArray`): (D, K) and (E, K); the directions in which the two agree most come first.
        image_mean, text_mean (`NDArray`): (D,) and (E,), which are taken off first.
    """

    images: Floats
    texts: Floats
    image_mean: Floats
    text_mean: Floats

    def measure(self, pairs: Pairs) -> dict[str, float]:
        """The numbers of `retrieval_metrics`."""
        images = (pairs.images - self.image_mean) @ self.images
        return retrieval_metrics(images, (pairs.texts - self.text_mean) @ self.texts, pairs.owners)


def best_linear_maps(train: Pairs, validation: Pairs | None, *, most_dims: int | None = None) -> LinearMaps:
    """Two linear maps of frozen features into one space, found in closed form.

    They are those of regularised canonical correlation analysis (Vinod, 1976); each direction counts by its
    correlation.

    Args:
        train, validation ([`Pairs`]): What they are found from, and what ridge and number of directions are chosen on,
            by mean recall; without the second, a part of the first.
        most_dims (`int`, *optional*): Directions that there may be; absent: any number.
    """
    if validation is None or not len(validation.owners):
        train, validation = _split_pairs(train)
    moments = _Moments.of(train)
    means = np.asarray(train.images.mean(axis=0), np.float64), np.asarray(train.texts.mean(axis=0), np.float64)
    best: tuple[float, LinearMaps] | None = None
    for ridge in RIDGES:
        images, texts = _canonical_maps(moments, ridge)
        most = min(images.shape[1], most_dims or images.shape[1])
        for dims in sorted({min(dims, most) for dims in _SEARCHED_DIMS}):
            maps = LinearMaps(images[:, :dims], texts[:, :dims], *means)
            score = maps.measure(validation)["mean_recall"]
            if best is None or score > best[0]:
                best = score, maps
    assert best is not None
    return best[1]


def frozen_projections(
    train: Pairs, validation: Pairs | None, tested: Mapping[str, Pairs]
) -> dict[str, dict[str, float]]:
    """Retrieval by the best linear maps of frozen features into one space; see `best_linear_maps`.

    Args:
        train, validation ([`Pairs`]): What the maps are found from, and chosen on.
        tested (`Mapping[str, Pairs]`): What they are measured on, by split.

    Returns:
        `dict[str, dict[str, float]]`: Split → the numbers of `retrieval_metrics`, and `cpu_seconds`.
    """
    begun = time.process_time()
    best = best_linear_maps(train, validation)
    found = {split: best.measure(pairs) for split, pairs in tested.items()}
    seconds = time.process_time() - begun
    return {split: {**scores, CPU_SECONDS: seconds} for split, scores in found.items()}


class _Moments(NamedTuple):
    """Variances of image features (D, D) and text features (E, E), and what the two share (D, E)."""

    images: Floats
    texts: Floats
    shared: Floats

    @classmethod
    def of(cls, pairs: Pairs) -> _Moments:
        images, texts = (np.asarray(each, dtype=np.float64) for each in (pairs.images, pairs.texts))
        images, texts = images - images.mean(axis=0), texts - texts.mean(axis=0)
        summed = np.zeros((len(images), texts.shape[1]))
        np.add.at(summed, pairs.owners, texts)
        return cls(images.T @ images / len(images), texts.T @ texts / len(texts), images.T @ summed / len(texts))


def _canonical_maps(moments: _Moments, ridge: float) -> tuple[Floats, Floats]:
    """(D, K) and (E, K): from image and text features to directions, the most correlated first."""
    roots = []
    for variances in (moments.images, moments.texts):
        size = len(variances)
        roots.append(np.linalg.cholesky(variances + ridge * np.trace(variances) / size * np.eye(size)))
    half = solve_triangular(roots[0], moments.shared, lower=True)
    whitened = solve_triangular(roots[1], half.T, lower=True).T
    left, correlations, right = np.linalg.svd(whitened, full_matrices=False)
    images = solve_triangular(roots[0], left, lower=True, trans="T")
    texts = solve_triangular(roots[1], right.T, lower=True, trans="T")
    return images * np.sqrt(correlations), texts * np.sqrt(correlations)


def _split_pairs(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Four fifths of the images with their captions, and the rest."""
    held = np.arange(len(pairs.images)) % 5 == 1
    parts = []
    for chosen in (~held, held):
        of_chosen = chosen[pairs.owners]
        numbers = np.cumsum(chosen) - 1
        parts.append(Pairs(pairs.images[chosen], pairs.texts[of_chosen], numbers[pairs.owners[of_chosen]]))
    return parts[0], parts[1]
