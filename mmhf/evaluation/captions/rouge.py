"""ROUGE by the two definitions in use for captions: rouge-score's and COCO's.

Lin, 2004, https://aclanthology.org/W04-1013. The two differ in tokenisation, in the weight of recall and in how
several references are combined, so that numbers of one must not be compared with numbers of the other.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

ROUGE_SCORE_TYPES = ("rouge1", "rouge2", "rougeL")
COCO_BETA = 1.2
"""Weight of recall against precision in COCO's ROUGE-L."""


def rouge_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, use_stemmer: bool = False
) -> dict[str, NDArray[np.float64]]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score; of several references the best counts, for each of the three.

    Args:
        predictions (`Sequence[str]`): One caption an image, N of them.
        references (`Sequence[Sequence[str]]`): At least one an image.
        use_stemmer (`bool`, *optional*, defaults to `False`): Cut words to their stem by Porter's rules; off is the
            default of rouge-score and of `evaluate.load("rouge")`.

    Returns:
        `dict[str, NDArray[np.float64]]`: `rouge1`, `rouge2` and `rougeL`, each of shape `(N,)`, from 0 to 1.
    """
    from rouge_score.rouge_scorer import RougeScorer  # here, because it brings nltk
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer)
    # rouge-score tokenises a prediction again for each of its references.
    tokenizer.tokenize = functools.cache(tokenizer.tokenize)
    scorer = RougeScorer(ROUGE_SCORE_TYPES, tokenizer=tokenizer)
    scores: list[Mapping[str, float]] = []
    for prediction, of_image in zip(predictions, references, strict=True):
        best = scorer.score_multi(of_image, prediction)
        scores.append({name: best[name].fmeasure for name in ROUGE_SCORE_TYPES})
    return {name: np.array([score[name] for score in scores], dtype=np.float64) for name in ROUGE_SCORE_TYPES}


def coco_rouge_l(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """ROUGE-L of COCO's caption evaluation, of tokenised captions.

    F with beta = 1.2 of the best precision and the best recall over the references, which may come from two of them.
    As in `pycocoevalcap`, except that there an empty prediction and an empty reference score 1.

    Returns:
        `NDArray[np.float64]` of shape `(N,)`: from 0 to 1.
    """
    scores = [_coco_rouge_l(tokens, of_image) for tokens, of_image in zip(predictions, references, strict=True)]
    return np.array(scores, dtype=np.float64)


def _coco_rouge_l(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    if not prediction:
        return 0.0
    common = [(common_subsequence_length(reference, prediction), len(reference)) for reference in references]
    precision = max(length for length, _ in common) / len(prediction)
    recall = max(length / max(1, total) for length, total in common)
    if not precision:
        return 0.0
    return (1 + COCO_BETA**2) * precision * recall / (recall + COCO_BETA**2 * precision)


def common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with one bit a token of `first`.

    Hyyrö, 2004, "Bit-parallel LCS-length computation revisited".
    """
    positions: dict[str, int] = {}
    for at, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << at
    everything = (1 << len(first)) - 1
    unmatched = everything
    for token in second:
        matches = unmatched & positions.get(token, 0)
        unmatched = (unmatched + matches | unmatched - matches) & everything
    return len(first) - unmatched.bit_count()
