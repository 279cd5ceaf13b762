"""BLEU, CIDEr-D and METEOR of tokenised captions.

BLEU and CIDEr-D follow COCO's caption evaluation, with the constants of `pycocoevalcap`, so that the numbers agree.
METEOR is nltk's, for machines on which nltk finds WordNet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 4
"""Longest n-gram of COCO's caption metrics."""
SIGMA = 6.0
"""Standard deviation of CIDEr-D's penalty on the difference in length, in tokens."""
NO_WORDNET = "nltk finds no WordNet; fetch it with `python -m nltk.downloader wordnet`, or set NLTK_DATA to its folder"
_TINY, _SMALL = 1e-15, 1e-9

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class CountedCaption:
    """The tokens of a caption and how often each n-gram occurs.

    Attributes:
        tokens (`tuple[str, ...]`): in reading order; empty for an empty caption.
        counts (`tuple[Counter[Ngram], ...]`): 1-grams first, `MAX_ORDER` counters.
    """

    tokens: tuple[str, ...]
    counts: tuple[Counter[Ngram], ...]


def count_ngrams(tokens: Sequence[str]) -> CountedCaption:
    """Count the 1- to 4-grams of a tokenised caption."""
    words = tuple(tokens)
    return CountedCaption(
        words,
        tuple(
            Counter(words[at : at + order] for at in range(len(words) - order + 1))
            for order in range(1, MAX_ORDER + 1)
        ),
    )


def bleu_statistics(
    predictions: Sequence[CountedCaption], references: Sequence[Sequence[CountedCaption]]
) -> NDArray[np.float64]:
    """What BLEU needs to know of each image; the rows of any selection of images may be added up.

    Papineni et al., 2002, https://aclanthology.org/P02-1040: corpus statistics, closest reference length.

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


@dataclass(frozen=True)
class _Weighted:
    """A caption's tf-idf weights and their norm by n-gram order, and its number of 2-grams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def cider_d(
    predictions: Sequence[CountedCaption], references: Sequence[Sequence[CountedCaption]]
) -> NDArray[np.float64]:
    """CIDEr-D of each image: n-grams weighed by how few images' references have them. The corpus' is their mean.

    Vedantam et al., 2015, https://arxiv.org/abs/1411.5726, in the form of COCO's evaluation server (clipped counts, a
    Gaussian penalty on the difference in length, times 10).

    The document frequencies are those of the references given: the number of images whose references have an n-gram.
    With a single image every n-gram is in all of them, so the score is 0.

    Returns:
        `NDArray[np.float64]` of shape `(N,)`: from 0 to 10.
    """
    frequencies = Counter(
        ngram
        for of_image in references
        for ngram in {ngram for each in of_image for counts in each.counts for ngram in counts}
    )
    log_images = math.log(max(1, len(references)))
    rarity = {ngram: log_images - math.log(frequency) for ngram, frequency in frequencies.items()}
    scores = [
        _score(_weigh(prediction, rarity, log_images), [_weigh(each, rarity, log_images) for each in of_image])
        for prediction, of_image in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


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


def is_wordnet_installed() -> bool:
    """Whether nltk finds its WordNet data, whole; nothing is downloaded."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):
        return False
    return True


def meteor_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """METEOR of tokenised captions with nltk's parameters (alpha 0.9, beta 3, gamma 0.5); the best reference counts.

    Banerjee and Lavie, 2005, https://aclanthology.org/W05-0909.

    Returns:
        `NDArray[np.float64]` of shape `(N,)`: from 0 to 1.

    Raises:
        LookupError: nltk finds no WordNet.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer = PorterStemmer()
    # nltk stems every word again for each pair of captions.
    stemmer.stem = cache(stemmer.stem)
    scores = [
        meteor_score(of_image, tokens, stemmer=stemmer) if tokens else 0.0
        for tokens, of_image in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)
