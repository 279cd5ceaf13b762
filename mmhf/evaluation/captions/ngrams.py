"""A tokenised caption with its n-gram counts, which BLEU and CIDEr share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MAX_ORDER = 4
"""Longest n-gram of COCO's caption metrics."""

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
