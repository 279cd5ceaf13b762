"""Two linear maps of frozen features of images and texts into one space, which retrieval by training must beat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from mmhf.evaluation.baselines import CPU_SECONDS
from mmhf.evaluation.retrieval import retrieval_metrics

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Regularisation of the projections that are tried, in units of the features' mean variance."""
DIMS = (64, 256, 512)
"""Numbers of directions that are tried, as far as there are so many."""

Values = NDArray[np.floating]


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

    images: Values
    texts: Values
    image_mean: Values
    text_mean: Values

    def measure(self, pairs: Pairs) -> dict[str, float]:
        """The numbers of `retrieval_metrics`."""
        return retrieval_metrics(*self._project(pairs), pairs.owners)

    def mean_recalls(self, pairs: Pairs, dims: Iterable[int]) -> dict[int, float]:
        """By the first directions alone: how many → mean recall."""
        images, texts = self._project(pairs)
        return {
            size: retrieval_metrics(images[:, :size], texts[:, :size], pairs.owners)["mean_recall"] for size in dims
        }

    def first(self, dims: int) -> LinearMaps:
        """The maps to the first directions alone."""
        return self._replace(images=self.images[:, :dims], texts=self.texts[:, :dims])

    def _project(self, pairs: Pairs) -> tuple[Values, Values]:
        return (pairs.images - self.image_mean) @ self.images, (pairs.texts - self.text_mean) @ self.texts


class LinearMapsSearch:
    """Two linear maps of frozen features into one space, found in closed form.

    They are those of regularised canonical correlation analysis (Vinod, 1976); each direction counts by its
    correlation. They are computed in the features' own precision, in which fp32 takes half the time of fp64.

    Args:
        train, validation ([`Pairs`]): What they are found from, and what ridge and number of directions are chosen on,
            by mean recall; without the second, a part of the first.
        dims (`Sequence[int]`): Numbers of directions that are tried, as far as there are so many.

    Attributes:
        seconds (`float`): CPU time that it took.
    """

    def __init__(self, train: Pairs, validation: Pairs | None, *, dims: Sequence[int] = DIMS) -> None:
        begun = time.process_time()
        self._digest = _digest(train, validation)
        if validation is None or not len(validation.owners):
            train, validation = _split_pairs(train)
        means = train.images.mean(axis=0), train.texts.mean(axis=0)
        moments = _Moments.of(train)
        most = min(len(moments.images), len(moments.texts))
        sizes = {min(size, most) for size in dims}
        self._best: dict[int, tuple[float, LinearMaps]] = {}
        for ridge in RIDGES:
            maps = LinearMaps(*_canonical_maps(moments, ridge), *means)
            for size, score in maps.mean_recalls(validation, sizes).items():
                if size not in self._best or score > self._best[size][0]:
                    self._best[size] = score, maps.first(size)
        self.seconds = time.process_time() - begun

    def is_of(self, train: Pairs, validation: Pairs | None) -> bool:
        """Whether these are the features that were searched."""
        return self._digest == _digest(train, validation)

    def best(self, most_dims: int | None = None) -> LinearMaps:
        """The best maps to no more directions than these; absent: to any number."""
        allowed = [each for size, each in self._best.items() if most_dims is None or size <= most_dims]
        return max(allowed, key=lambda each: each[0])[1]


def frozen_projections(search: LinearMapsSearch, tested: Mapping[str, Pairs]) -> dict[str, dict[str, float]]:
    """Retrieval by the best linear maps of frozen features into one space.

    Args:
        search ([`LinearMapsSearch`]): Of the training pairs.
        tested (`Mapping[str, Pairs]`): What they are measured on, by split.

    Returns:
        `dict[str, dict[str, float]]`: Split → the numbers of `retrieval_metrics`, and `cpu_seconds`, the search's too.
    """
    begun = time.process_time()
    best = search.best()
    found = {split: best.measure(pairs) for split, pairs in tested.items()}
    seconds = search.seconds + time.process_time() - begun
    return {split: {**scores, CPU_SECONDS: seconds} for split, scores in found.items()}


class _Moments(NamedTuple):
    """Variances of image features (D, D) and text features (E, E), and what the two share (D, E)."""

    images: Values
    texts: Values
    shared: Values

    @classmethod
    def of(cls, pairs: Pairs) -> _Moments:
        images, texts = (each - each.mean(axis=0) for each in (pairs.images, pairs.texts))
        summed = np.zeros((len(images), texts.shape[1]), texts.dtype)
        np.add.at(summed, pairs.owners, texts)
        return cls(images.T @ images / len(images), texts.T @ texts / len(texts), images.T @ summed / len(texts))


def _canonical_maps(moments: _Moments, ridge: float) -> tuple[Values, Values]:
    """(D, K) and (E, K): from image and text features to directions, the most correlated first."""
    roots = []
    for variances in (moments.images, moments.texts):
        regularised = variances.copy()
        regularised[np.diag_indices_from(regularised)] += ridge * np.trace(variances) / len(variances)
        roots.append(cholesky(regularised, lower=True, overwrite_a=True))
    half = solve_triangular(roots[0], moments.shared, lower=True)
    whitened = solve_triangular(roots[1], half.T, lower=True).T
    left, correlations, right = np.linalg.svd(whitened, full_matrices=False)
    images = solve_triangular(roots[0], left, lower=True, trans="T")
    texts = solve_triangular(roots[1], right.T, lower=True, trans="T")
    return images * np.sqrt(correlations), texts * np.sqrt(correlations)


def _digest(train: Pairs, validation: Pairs | None) -> bytes:
    digest = hashlib.blake2b()
    for each in (*train, *(validation or ())):
        digest.update(np.ascontiguousarray(each).view(np.uint8).data)
    return digest.digest()


def _split_pairs(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Four fifths of the images with their captions, and the rest."""
    held = np.arange(len(pairs.images)) % 5 == 1
    parts = []
    for chosen in (~held, held):
        of_chosen = chosen[pairs.owners]
        numbers = np.cumsum(chosen) - 1
        parts.append(Pairs(pairs.images[chosen], pairs.texts[of_chosen], numbers[pairs.owners[of_chosen]]))
    return parts[0], parts[1]
