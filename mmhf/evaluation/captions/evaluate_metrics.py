"""Both definitions of ROUGE as metrics of the `evaluate` library: no network, and they combine with its others.

```python
both = evaluate.combine([RougeScore(), CocoRouge()])
both.compute(predictions=["grinning face"], references=[["grinning face with big eyes", "smiley"]])
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import datasets
import evaluate

from mmhf.evaluation.captions.metrics import CAPTION_PROTOCOLS
from mmhf.evaluation.captions.rouge import ROUGE_SCORE_TYPES, coco_rouge_l, rouge_scores
from mmhf.evaluation.captions.tokenization import coco_tokens


class _CaptionMetric(evaluate.Metric):
    """A metric of captions, given as one text an image, against one or many references an image."""

    numbers: ClassVar[Sequence[str]]

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="\n".join(f"{name}: {CAPTION_PROTOCOLS[name]}" for name in self.numbers),
            citation="Lin, 2004. ROUGE: A Package for Automatic Evaluation of Summaries. https://aclanthology.org/W04-1013",
            inputs_description="predictions: a caption an image; references: a caption, or a list of them, an image",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )


class RougeScore(_CaptionMetric):
    """ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score, under the names `rouge1`, `rouge2` and `rougeL`.

    `compute` takes `use_stemmer` (*optional*, defaults to `False`).
    """

    numbers = ROUGE_SCORE_TYPES

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str] | str],
        *,
        use_stemmer: bool = False,
    ) -> dict[str, float]:
        scores = rouge_scores(predictions, [_listed(each) for each in references], use_stemmer=use_stemmer)
        return {name: float(values.mean()) for name, values in scores.items()}


class CocoRouge(_CaptionMetric):
    """ROUGE-L by COCO's definition, under the name `rougeL_coco`."""

    numbers = ("rougeL_coco",)

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str] | str]) -> dict[str, float]:
        guesses = [coco_tokens(text) for text in predictions]
        answers = [[coco_tokens(text) for text in _listed(each)] for each in references]
        return {"rougeL_coco": float(coco_rouge_l(guesses, answers).mean())}


def _listed(references: Sequence[str] | str) -> Sequence[str]:
    return [references] if isinstance(references, str) else references
