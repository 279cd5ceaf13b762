"""METEOR by nltk, for machines on which nltk finds WordNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import meteor_score
from numpy.typing import NDArray

NO_WORDNET = "nltk finds no WordNet; fetch it with `python -m nltk.downloader wordnet`, or set NLTK_DATA to its folder"


class _RememberingStemmer(PorterStemmer):
    """nltk stems every word again for each pair of captions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cache(super().stem)


def is_wordnet_installed() -> bool:
    """Whether nltk finds its WordNet data, whole; nothing is downloaded."""
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
    stemmer = _RememberingStemmer()
    scores = [
        meteor_score(of_image, tokens, stemmer=stemmer) if tokens else 0.0
        for tokens, of_image in zip(predictions, references, strict=True)
    ]
    return np.array(scores, dtype=np.float64)
