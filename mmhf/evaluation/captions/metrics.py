"""All numbers of generated captions at once, for training, `mmhf evaluate` and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.captions.answers import LEAST_ANSWERS
from mmhf.evaluation.intervals import RESAMPLES, bootstrap_interval

if TYPE_CHECKING:
    from mmhf.evaluation.captions.evaluate_metrics import Scores

_ROUGE_SCORE = (
    "by rouge-score: F1, tokens are lower-case runs of a-z and 0-9 (other scripts have no tokens), no stemmer, the "
    "best of the references for each image; mean over images, 0 to 1."
)
_TOKENS = (
    "mmhf's Java-free tokens after the Penn Treebank (as pycocoevalcap: lower case, no punctuation; other than there, "
    "emoji are kept and scripts without spaces are cut into characters)"
)
_ANSWERS = (
    "the normal form of the VQA evaluation: lower case, number words as digits, without articles and punctuation, "
    "contractions with their apostrophes"
)
_BLEU = (
    "with COCO's definition: {orders} of the whole corpus, clipped by the references, brevity penalty against the "
    f"closest reference length; {_TOKENS}; all references; 0 to 1."
)

CAPTION_PROTOCOLS: dict[str, str] = {
    "loss": "Mean cross-entropy, in nats, of each token of a reference and of its end-of-text token, given the image "
    "and the tokens before; padding and prefix excluded.",
    "vqa_accuracy": "VQA accuracy (Antol et al., 2015): min(people who gave this answer / 3, 1), averaged over "
    f"leaving out each person; answers are compared in {_ANSWERS}; mean over questions, 0 to 1.",
    "exact_match": f"Answers that equal one of the references, in {_ANSWERS}; mean over questions, 0 to 1.",
    "rouge1": f"ROUGE-1 (words in common) {_ROUGE_SCORE}",
    "rouge2": f"ROUGE-2 (pairs of words in common) {_ROUGE_SCORE}",
    "rougeL": f"ROUGE-L (longest common subsequence of words) {_ROUGE_SCORE}",
    "rougeL_coco": "ROUGE-L with COCO's definition: F with beta = 1.2 of the best precision and the best recall over "
    f"an image's references; {_TOKENS}; mean over images, 0 to 1.",
    "bleu1": f"BLEU-1 {_BLEU.format(orders='precision of words')}",
    "bleu2": f"BLEU-2 {_BLEU.format(orders='geometric mean of the precisions of 1- and 2-grams')}",
    "bleu3": f"BLEU-3 {_BLEU.format(orders='geometric mean of the precisions of 1- to 3-grams')}",
    "bleu4": f"BLEU-4 {_BLEU.format(orders='geometric mean of the precisions of 1- to 4-grams')}",
    "cider": "CIDEr-D with COCO's definition: tf-idf cosine of 1- to 4-grams, clipped, sigma = 6, times 10, document "
    f"frequencies from the references of the evaluated images; {_TOKENS}; mean over references and images, 0 to 10.",
    "meteor": "METEOR by nltk (not the Java METEOR 1.5 of pycocoevalcap): words, Porter stems and WordNet synonyms, "
    f"alpha 0.9, beta 3, gamma 0.5, the best of the references; {_TOKENS}; mean over images, 0 to 1.",
    "clipscore": "CLIPScore, without references: 2.5 x max(0, cosine) of a CLIP's image embedding and the embedding "
    "of 'A photo depicts' and the caption, cut to the text encoder's length; mean over images. Depends on the CLIP.",
}
"""How each number of `caption_metrics` is defined (and `loss`, which Trainer computes)."""

ANSWER_NUMBERS = ("vqa_accuracy", "exact_match")
"""Those that are measured only where captions are answers to questions."""

BOOTSTRAP_PROTOCOL = (
    "Intervals hold 95 % of 1,000 bootstrap resamples of the images (percentiles; the model, the references of an "
    "image and CIDEr's document frequencies stay as they are)."
)
"""How the intervals of `evaluate_captions` are made."""


@dataclass(frozen=True, kw_only=True)
class CaptionEvaluation:
    """All that the captions generated for one split say.

    Attributes:
        metrics (`dict[str, float]`): the numbers that `CAPTION_PROTOCOLS` defines; never NaN.
        intervals (`dict[str, tuple[float, float]]`): of each metric except the loss, the ends of its 95 % interval.
        per_image (`dict[str, NDArray[np.float64]]`): of each metric except the loss, N scores. Their mean is the
            metric, save for BLEU, which is a number of the whole corpus.
        undefined (`dict[str, str]`): metrics that could not be computed, each with the reason.
        num_images (`int`): images, N.
        num_references (`int`): references of all images together.
        num_empty (`int`): predictions without a token; they score 0.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_image: dict[str, NDArray[np.float64]]
    undefined: dict[str, str]
    num_images: int
    num_references: int
    num_empty: int

    @property
    def num_rows(self) -> int:
        """Images, under the name that every family's evaluation has."""
        return self.num_images


def caption_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    clip_scores: ArrayLike | None = None,
    answers: bool = False,
) -> dict[str, float]:
    """The overall numbers alone, for evaluations during training; what cannot be computed is left out.

    Args and errors are those of `evaluate_captions`, whose `undefined` names what is left out and why.
    """
    scores, _ = _all_scores(predictions, references, clip_scores, answers=answers)
    return _overall(scores)


def evaluate_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    clip_scores: ArrayLike | None = None,
    answers: bool = False,
    loss: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> CaptionEvaluation:
    """Compute every number of one split's captions, with intervals and the score of each image.

    Args:
        predictions (`Sequence[str]`): One caption an image, N of them, in any script; an empty one scores 0.
        references (`Sequence[Sequence[str]]`): At least one an image, in the same order.
        clip_scores (`ArrayLike` of shape `(N,)`, *optional*): CLIPScore of each image, see `clip_scores`.
        answers (`bool`, *optional*, defaults to `False`): Captions are answers to questions: exact match is measured,
            too, and, where each question has `LEAST_ANSWERS`, VQA accuracy.
        loss (`float`, *optional*): Trainer's loss, to stand beside the metrics.
        resamples (`int`, *optional*, defaults to 1000): Bootstrap resamples of the intervals; 0 = no intervals.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Raises:
        ValueError: The lengths disagree, or an image has no reference.
    """
    scores, num_empty = _all_scores(predictions, references, clip_scores, answers=answers)
    metrics = _overall(scores)
    return CaptionEvaluation(
        metrics=metrics if loss is None else {"loss": float(loss), **metrics},
        intervals=_intervals(scores, resamples, seed),
        per_image={name: column for each in scores for name, column in zip(each.names, each.per_image.T, strict=True)},
        undefined=_undefined(metrics, num_images=len(predictions), answers=answers),
        num_images=len(predictions),
        num_references=sum(map(len, references)),
        num_empty=num_empty,
    )


def _all_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    clip_scores: ArrayLike | None,
    *,
    answers: bool,
) -> tuple[list[Scores], int]:
    # They bring `evaluate`.
    from mmhf.evaluation.captions.evaluate_metrics import (
        CAPTION_METRICS,
        CaptionPairs,
        ExactMatch,
        Scores,
        VqaAccuracy,
    )

    pairs = CaptionPairs(predictions, references)
    if not len(predictions):
        return [], 0
    scores = [metric.scores(pairs) for metric in CAPTION_METRICS if metric.missing() is None]
    if answers:
        scores.append(ExactMatch.scores(pairs))
        if min(map(len, references)) >= LEAST_ANSWERS:
            scores.append(VqaAccuracy.scores(pairs))
    if clip_scores is not None:
        values = np.asarray(clip_scores, dtype=np.float64)
        if values.shape != (len(predictions),):
            raise ValueError(f"expected {len(predictions)} CLIPScores, got shape {values.shape}")
        scores.append(Scores.means({"clipscore": values}))
    return scores, sum(not guess.tokens for guess in pairs.guesses)


def _overall(scores: Sequence[Scores]) -> dict[str, float]:
    values = {name: value for each in scores for name, value in each.overall().items()}
    return {name: values[name] for name in CAPTION_PROTOCOLS if name in values}


def _intervals(scores: Sequence[Scores], resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    if not scores or not resamples:
        return {}
    ends = np.cumsum([each.statistics.shape[1] for each in scores])[:-1]

    def values_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(sums, ends, axis=1)
        return np.hstack([each.value_of(part) for each, part in zip(scores, parts, strict=True)])

    statistics = np.hstack([each.statistics for each in scores])
    low, high = bootstrap_interval(statistics, values_of, resamples=resamples, seed=seed)
    names = [name for each in scores for name in each.names]
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(names)}


def _undefined(metrics: Mapping[str, float], *, num_images: int, answers: bool) -> dict[str, str]:
    if not num_images:
        left_out = {"loss"} if answers else {"loss", *ANSWER_NUMBERS}
        return dict.fromkeys((name for name in CAPTION_PROTOCOLS if name not in left_out), "there is no image")
    from mmhf.evaluation.captions.evaluate_metrics import CAPTION_METRICS

    reasons = {name: metric.missing() for metric in CAPTION_METRICS for name in metric.numbers}
    reasons["clipscore"] = "no CLIP was given"
    if answers:
        reasons["vqa_accuracy"] = f"a question has fewer than {LEAST_ANSWERS} answers"
    return {name: reason for name, reason in reasons.items() if reason is not None and name not in metrics}
