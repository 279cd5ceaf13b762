"""CIDEr-D: n-grams weighed by how few images' references have them.

Vedantam et al., 2015, https://arxiv.org/abs/1411.5726, in the form of COCO's evaluation server (clipped counts, a
Gaussian penalty on the difference in length, times 10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmhf.evaluation.captions.ngrams import MAX_ORDER, CountedCaption, Ngram

SIGMA = 6.0
"""Standard deviation of the penalty on the difference in length, in tokens."""


@dataclass(frozen=True)
class _Weighted:
    """A caption's tf-idf weights and their norm by n-gram order, and its number of 2-grams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def cider_d(
    predictions: Sequence[CountedCaption], references: Sequence[Sequence[CountedCaption]]
) -> NDArray[np.float64]:
    """CIDEr-D of each image; the corpus' CIDEr-D is their mean.

    The document frequencies are those of the references given: the number of images whose references have an n-gram.
    With a single image every n-gram is in all of them, so the score is 0.

    Returns:
        `NDArray[np.float64]` of shape `(N,)`: from 0 to 10.
    """
    frequencies = Counter(
        ngram for of_image in references for ngram in {ngram for each in of_image for ngram in _ngrams(each)}
    )
    log_images = math.log(max(1, len(references)))
    rarity = {ngram: log_images - math.log(frequency) for ngram, frequency in frequencies.items()}
    scores = [
        _score(_weigh(prediction, rarity, log_images), [_weigh(each, rarity, log_images) for each in of_image])
        for prediction, of_image in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def _ngrams(caption: CountedCaption) -> list[Ngram]:
    return [ngram for counts in caption.counts for ngram in counts]


def _weigh(caption: CountedCaption, rarity: Mapping[Ngram, float], unseen: float) -> _Weighted:
    weights = [
        {ngram: count * rarity.get(ngram, unseen) for ngram, count in counts.items()} for counts in caption.counts
    ]
    norms = [math.sqrt(sum(weight * weight for weight in of_order.values())) for of_order in weights]
    return _Weighted(weights, norms, max(0, len(caption.tokens) - 1))


def _score(prediction: _Weighted, references: Sequence[_Weighted]) -> float:
    total = 0.0
    for reference in references:
        penalty = math.exp(-((prediction.length - reference.length) ** 2) / (2 * SIGMA**2))
        total += penalty * sum(_cosine(prediction, reference, order) for order in range(MAX_ORDER))
    return 10 * total / (MAX_ORDER * len(references))


def _cosine(prediction: _Weighted, reference: _Weighted, order: int) -> float:
    norm = prediction.norms[order] * reference.norms[order]
    if norm == 0:
        return 0.0
    others = reference.weights[order]
    shared = prediction.weights[order].keys() & others.keys()
    return sum(min(prediction.weights[order][ngram], others[ngram]) * others[ngram] for ngram in shared) / norm
