"""The metrics of captions, each a metric of the `evaluate` library: no network, and they combine with its others.

These are the ones that training and `mmhf evaluate` report, computed here and nowhere else.

```python
both = evaluate.combine([RougeScore(), CocoRouge()])
both.compute(predictions=["grinning face"], references=[["grinning face with big eyes", "smiley"]])
```
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from mmhf.evaluation.captions.answers import exact_matches, vqa_accuracies
from mmhf.evaluation.captions.metrics import CAPTION_PROTOCOLS
from mmhf.evaluation.captions.rouge import ROUGE_SCORE_TYPES, coco_rouge_l, rouge_scores
from mmhf.evaluation.captions.tokenization import coco_tokens
from mmhf.evaluation.captions.word_scores import (
    MAX_ORDER,
    NO_WORDNET,
    CountedCaption,
    bleu_scores,
    bleu_statistics,
    cider_d,
    count_ngrams,
    is_wordnet_installed,
    meteor_scores,
)

_ANTOL = "Antol et al., 2015. VQA: Visual Question Answering. https://arxiv.org/abs/1505.00468"
_LIN = "Lin, 2004. ROUGE: A Package for Automatic Evaluation of Summaries. https://aclanthology.org/W04-1013"


@dataclass(frozen=True)
class CaptionPairs:
    """Captions and what they are held against; each text is cut into tokens once, for all metrics.

    Attributes:
        predictions (`Sequence[str]`): One caption an image, N of them.
        references (`Sequence[Sequence[str]]`): At least one an image, in the same order.

    Raises:
        ValueError: The lengths disagree, or an image has no reference.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.references):
            raise ValueError(f"{len(self.predictions)} predictions, but references of {len(self.references)} images")
        for at, of_image in enumerate(self.references):
            if isinstance(of_image, str) or not len(of_image):
                raise ValueError(f"image {at}: expected a list of at least one reference, got {of_image!r}")

    @cached_property
    def guesses(self) -> list[CountedCaption]:
        """The predictions' tokens and n-grams."""
        return [self._counted[text] for text in self.predictions]

    @cached_property
    def answers(self) -> list[list[CountedCaption]]:
        """The references' tokens and n-grams."""
        return [[self._counted[text] for text in of_image] for of_image in self.references]

    @property
    def guess_tokens(self) -> list[tuple[str, ...]]:
        """The predictions' tokens."""
        return [guess.tokens for guess in self.guesses]

    @property
    def answer_tokens(self) -> list[list[tuple[str, ...]]]:
        """The references' tokens."""
        return [[answer.tokens for answer in of_image] for of_image in self.answers]

    @cached_property
    def _counted(self) -> dict[str, CountedCaption]:
        texts = {*self.predictions, *(text for of_image in self.references for text in of_image)}
        return {text: count_ngrams(coco_tokens(text)) for text in texts}


@dataclass(frozen=True)
class Scores:
    """The numbers of one metric: what each image adds, its own scores, and how the numbers come from sums over images.

    Attributes:
        names (`tuple[str, ...]`): Of its K numbers.
        statistics (`NDArray` of shape (N, S)): What each image adds; any selection of images may be summed up.
        per_image (`NDArray` of shape (N, K)): Each image's own scores.
        value_of (`Callable`): From sums (..., S) to the numbers (..., K).
    """

    names: tuple[str, ...]
    statistics: NDArray[np.float64]
    per_image: NDArray[np.float64]
    value_of: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    @classmethod
    def means(cls, scores: Mapping[str, NDArray[np.float64]]) -> Scores:
        """Of numbers that are means over images: name → (N,)."""
        columns = np.stack(list(scores.values()), axis=1)
        return cls(tuple(scores), columns, columns, lambda sums: sums / len(columns))

    def overall(self) -> dict[str, float]:
        """Name → number."""
        values = self.value_of(self.statistics.sum(axis=0))
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}


class CaptionMetric(evaluate.Metric):
    """Base of the metrics of captions, given as one text an image, against one or many references an image.

    `compute(predictions=..., references=...)` gives the numbers in `numbers`; `CAPTION_PROTOCOLS` defines them.
    """

    numbers: ClassVar[tuple[str, ...]]
    source: ClassVar[str]

    @classmethod
    @abstractmethod
    def scores(cls, pairs: CaptionPairs) -> Scores:
        """Score N > 0 captions."""

    @classmethod
    def missing(cls) -> str | None:
        """What keeps this metric from being computed here; None where nothing does."""
        return None

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="\n".join(f"{name}: {CAPTION_PROTOCOLS[name]}" for name in self.numbers),
            citation=self.source,
            inputs_description="predictions: a caption an image; references: a caption, or a list of them, an image",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str] | str]) -> dict[str, float]:
        return self.scores(_pairs(predictions, references)).overall()


def _pairs(predictions: Sequence[str], references: Sequence[Sequence[str] | str]) -> CaptionPairs:
    return CaptionPairs(predictions, [[each] if isinstance(each, str) else each for each in references])


class RougeScore(CaptionMetric):
    """ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score, under the names `rouge1`, `rouge2` and `rougeL`.

    `compute` takes `use_stemmer` (*optional*, defaults to `False`).
    """

    numbers = ROUGE_SCORE_TYPES
    source = _LIN

    @classmethod
    def scores(cls, pairs: CaptionPairs, *, use_stemmer: bool = False) -> Scores:
        """By rouge-score's own tokens."""
        return Scores.means(rouge_scores(pairs.predictions, pairs.references, use_stemmer=use_stemmer))

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str] | str], *, use_stemmer: bool = False
    ) -> dict[str, float]:
        return self.scores(_pairs(predictions, references), use_stemmer=use_stemmer).overall()


class MeanMetric(CaptionMetric):
    """One number, the mean of a score of each caption's own, over COCO's tokens.

    `score_each` goes from N pairs to (N,).
    """

    score_each: ClassVar[staticmethod[[CaptionPairs], NDArray[np.float64]]]

    @classmethod
    def scores(cls, pairs: CaptionPairs) -> Scores:
        """By COCO's tokens."""
        return Scores.means({cls.numbers[0]: cls.score_each(pairs)})


class CocoRouge(MeanMetric):
    """ROUGE-L by COCO's definition, under the name `rougeL_coco`."""

    numbers = ("rougeL_coco",)
    source = _LIN
    score_each = staticmethod(lambda pairs: coco_rouge_l(pairs.guess_tokens, pairs.answer_tokens))


class CocoBleu(CaptionMetric):
    """BLEU-1 to BLEU-4 of a whole corpus by COCO's definition, under the names `bleu1` to `bleu4`."""

    numbers = tuple(f"bleu{order}" for order in range(1, MAX_ORDER + 1))
    source = "Papineni et al., 2002. BLEU: a Method for Automatic Evaluation of MT. https://aclanthology.org/P02-1040"

    @classmethod
    def scores(cls, pairs: CaptionPairs) -> Scores:
        """By COCO's tokens."""
        statistics = bleu_statistics(pairs.guesses, pairs.answers)
        return Scores(cls.numbers, statistics, bleu_scores(statistics), bleu_scores)


class CiderD(MeanMetric):
    """CIDEr-D by COCO's definition, under the name `cider`; document frequencies are those of the references given."""

    numbers = ("cider",)
    source = (
        "Vedantam et al., 2015. CIDEr: Consensus-based Image Description Evaluation, https://arxiv.org/abs/1411.5726"
    )
    score_each = staticmethod(lambda pairs: cider_d(pairs.guesses, pairs.answers))


class Meteor(MeanMetric):
    """METEOR by nltk, under the name `meteor`; it needs nltk's WordNet.

    Raises:
        LookupError: nltk finds no WordNet.
    """

    numbers = ("meteor",)
    source = (
        "Banerjee and Lavie, 2005. METEOR: An Automatic Metric for MT Evaluation. https://aclanthology.org/W05-0909"
    )
    score_each = staticmethod(lambda pairs: meteor_scores(pairs.guess_tokens, pairs.answer_tokens))

    @classmethod
    def missing(cls) -> str | None:
        """Whether nltk lacks WordNet."""
        return None if is_wordnet_installed() else NO_WORDNET


class ExactMatch(MeanMetric):
    """Answers that one of the references gives, under the name `exact_match`."""

    numbers = ("exact_match",)
    source = _ANTOL
    score_each = staticmethod(lambda pairs: exact_matches(pairs.predictions, pairs.references))


class VqaAccuracy(MeanMetric):
    """How many of a question's answers agree with the given one, under the name `vqa_accuracy`."""

    numbers = ("vqa_accuracy",)
    source = _ANTOL
    score_each = staticmethod(lambda pairs: vqa_accuracies(pairs.predictions, pairs.references))


CAPTION_METRICS: tuple[type[CaptionMetric], ...] = (RougeScore, CocoRouge, CocoBleu, CiderD, Meteor)
"""All that `evaluate_captions` computes from texts alone."""
