"""BLEU as COCO's caption evaluation computes it: corpus statistics, closest reference length.

Papineni et al., 2002, https://aclanthology.org/P02-1040. The constants are those of `pycocoevalcap`, so that the
numbers agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmhf.evaluation.captions.ngrams import MAX_ORDER, CountedCaption

_TINY, _SMALL = 1e-15, 1e-9


def bleu_statistics(
    predictions: Sequence[CountedCaption], references: Sequence[Sequence[CountedCaption]]
) -> NDArray[np.float64]:
    """What BLEU needs to know of each image; the rows of any selection of images may be added up.

    Returns:
        `NDArray[np.float64]` of shape `(N, 10)`: clipped matches of 1- to 4-grams, n-grams of the prediction,
        tokens of the prediction, tokens of the reference whose length is closest (the shorter of two that are).
    """
    rows = [_statistics(prediction, of_image) for prediction, of_image in zip(predictions, references, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * MAX_ORDER + 2)


def bleu_scores(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1 to BLEU-4 of summed statistics.

    Args:
        statistics (`NDArray[np.float64]` of shape `(..., 10)`): rows of `bleu_statistics`, or sums of them.

    Returns:
        `NDArray[np.float64]` of shape `(..., 4)`: from 0 to 1.
    """
    matches, guesses = statistics[..., :MAX_ORDER], statistics[..., MAX_ORDER : 2 * MAX_ORDER]
    precisions = np.cumprod((matches + _TINY) / (guesses + _SMALL), axis=-1)
    means = precisions ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (statistics[..., -2:-1] + _TINY) / (statistics[..., -1:] + _SMALL)
    return means * np.exp(np.minimum(0, 1 - 1 / ratio))


def _statistics(prediction: CountedCaption, references: Sequence[CountedCaption]) -> list[int]:
    length = len(prediction.tokens)
    matches = [
        sum(
            min(count, max(reference.counts[order][ngram] for reference in references))
            for ngram, count in prediction.counts[order].items()
        )
        for order in range(MAX_ORDER)
    ]
    guesses = [max(0, length - order) for order in range(MAX_ORDER)]
    _, closest = min((abs(len(reference.tokens) - length), len(reference.tokens)) for reference in references)
    return [*matches, *guesses, length, closest]
