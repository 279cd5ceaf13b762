"""A dual encoder's embeddings in two dimensions, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_PAIRS = 1000
"""Images that are shown, each with its first caption: of more, so many are drawn, always the same ones."""


@dataclass(frozen=True)
class EmbeddingPlane:
    """Embeddings on the plane of their first two principal components.

    Attributes:
        images, texts (`NDArray` of shape `(N, 2)`): Row n of either is the n-th pair.
        variances (`tuple[float, float]`): Share of the variance along each axis.
    """

    images: NDArray[np.float64]
    texts: NDArray[np.float64]
    variances: tuple[float, float]


@dataclass(frozen=True)
class EmbeddingView:
    """Images with their first captions, in two dimensions.

    Attributes:
        rows (`NDArray` of shape `(N,)`): Rows of the images among all embeddings.
        joint (`EmbeddingPlane`): Of images and texts as they are: where they lie apart, that is what it shows first.
        centred (`EmbeddingPlane`): Of images and texts, each without their mean: what is alike in both.
        groups (`Mapping[str, Sequence[str]]`): Column → its value in each pair.
    """

    rows: NDArray[np.int64]
    joint: EmbeddingPlane
    centred: EmbeddingPlane
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


def embedding_view(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    image_index: ArrayLike,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    max_pairs: int = MAX_PAIRS,
) -> EmbeddingView | None:
    """Project embeddings onto two dimensions by principal component analysis.

    Args:
        image_embeds (`ArrayLike` of shape `(I, D)`): One row an image, of length 1.
        text_embeds (`ArrayLike` of shape `(T, D)`): One row a caption, of length 1.
        image_index (`ArrayLike` of shape `(T,)`): Row of each caption's image; -1 leaves the caption out.
        columns (`Mapping[str, Sequence[str]]`, *optional*): Column → its value in each of the I images.
        max_pairs (`int`, defaults to 1000): Pairs that are shown.

    Returns:
        [`EmbeddingView`], or None where there are fewer than two pairs or dimensions.
    """
    images, texts, index = np.asarray(image_embeds), np.asarray(text_embeds), np.asarray(image_index)
    captions = np.flatnonzero(index >= 0)
    rows, first = np.unique(index[captions], return_index=True)
    if len(rows) < 2 or images.shape[1] < 2:
        return None
    if len(rows) > max_pairs:
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:max_pairs])
        rows, first = rows[chosen], first[chosen]
    images, texts = images[rows].astype(np.float64), texts[captions[first]].astype(np.float64)
    groups = {name: [values[row] for row in rows.tolist()] for name, values in (columns or {}).items()}
    centred = _plane(images - images.mean(axis=0), texts - texts.mean(axis=0))
    return EmbeddingView(rows, _plane(images, texts), centred, groups)


def _plane(images: NDArray[np.float64], texts: NDArray[np.float64]) -> EmbeddingPlane:
    both = np.concatenate([images, texts])
    # Here, because scikit-learn takes a second to load, which nobody waits for who only plans.
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):  # scikit-learn's own shares, of points that are all the same
        points = pca.fit_transform(both)
    total = float(both.var(axis=0, ddof=1).sum())
    first, second = (float(along / total) if total else 0.0 for along in pca.explained_variance_)
    return EmbeddingPlane(points[: len(images)], points[len(images) :], (first, second))
