"""The rows on which a classifier is sure and wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from scipy.special import softmax

from mmhf.conventions import IGNORED_LABEL
from mmhf.data.images import BadImageError, decode_image
from mmhf.evaluation.classification import select_labelled


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: row number in the evaluated split (from 0), class ids, probability of the prediction."""

    index: int
    label: int
    prediction: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class MistakeExample:
    """A wrong prediction as a person looks at it; `image` is None where it cannot be read."""

    id: str
    image: Image.Image | None
    text: str
    label: str
    prediction: str
    confidence: float


def most_confident_mistakes(
    logits: ArrayLike, labels: ArrayLike, num_labels: int, *, count: int = 24
) -> list[Mistake]:
    """Find the wrong predictions with the highest softmax probability, the surest first.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): unnormalised scores, in the order of the split's rows.
        labels (`ArrayLike` of shape `(N,)`): class ids; rows with -100 are passed over.
        num_labels (`int`): number of classes C.
        count (`int`, *optional*, defaults to 24): how many to return at most.
    """
    rows = np.flatnonzero(np.asarray(labels) != IGNORED_LABEL)
    scores, targets = select_labelled(logits, labels, num_labels)
    if not len(targets):
        return []
    probabilities = softmax(scores, axis=1)
    predictions = probabilities.argmax(axis=1)
    confidences = probabilities.max(axis=1)
    wrong = np.flatnonzero(predictions != targets)
    surest = wrong[np.argsort(-confidences[wrong], kind="stable")][:count]
    return [Mistake(int(rows[at]), int(targets[at]), int(predictions[at]), float(confidences[at])) for at in surest]


def mistake_examples(
    mistakes: Sequence[Mistake], rows: Iterable[Mapping[str, Any]], label_names: Sequence[str]
) -> list[MistakeExample]:
    """Put mistakes together with their image and text.

    Args:
        mistakes (`Sequence[Mistake]`): what `most_confident_mistakes` found.
        rows (`Iterable[Mapping[str, Any]]`): the data set's rows of these mistakes, in the same order, with `id`,
            `image` and `text`: `dataset.select([mistake.index for mistake in mistakes])`.
        label_names (`Sequence[str]`): names of the classes.
    """
    return [
        MistakeExample(
            id=row["id"],
            image=_image_or_none(row["image"]),
            text=row["text"],
            label=label_names[mistake.label],
            prediction=label_names[mistake.prediction],
            confidence=mistake.confidence,
        )
        for mistake, row in zip(mistakes, rows, strict=True)
    ]


def _image_or_none(image: Any) -> Image.Image | None:
    try:
        return decode_image(image)
    except BadImageError:
        return None
