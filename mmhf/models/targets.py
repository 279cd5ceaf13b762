"""What a model's outputs stand for: classes, labels or numbers, one record a kind. Releases carry this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from mmhf.models.classification_loss import ClassificationLoss, TargetLoss, class_probabilities
from mmhf.models.multi_label_loss import MultiLabelLoss, label_probabilities
from mmhf.models.ordinal_loss import OrdinalHead, OrdinalLoss, median_classes
from mmhf.models.regression_loss import RegressionLoss, plain_numbers

Answers = list[dict[str, Any]]
"""What a pipeline says of one row: `label`, `score` and more for each label."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of target.

    Args:
        problem_type (`str`): Its name in a config, as transformers knows it.
        ordinal (`bool`): Whether the config says so: transformers has no name for classes in an order.
        name (`str`): What an exported model's settings call it.
        learns (`str`): What a row has, for messages.
        make_head (`Callable`): From a config and a width to the last layer.
        make_loss (`Callable`): The loss that a config describes.
        scores (`Callable`): (…, C) logits of a model to what they stand for, (…, C) float64 on the CPU: probabilities,
            or the numbers.
        answers (`Callable`): From (C,) scores, the names of the labels and the config to what a pipeline says.
    """

    problem_type: str
    ordinal: bool = False
    name: str
    learns: str
    make_head: Callable[[Any, int], nn.Module]
    make_loss: Callable[[Any], TargetLoss]
    scores: Callable[[Tensor], Tensor]
    answers: Callable[[list[float], list[str], Any], Answers]


def _linear_head(config: Any, width: int) -> nn.Module:
    return nn.Linear(width, len(config.id2label or {}))


def _ordinal_head(config: Any, width: int) -> nn.Module:
    return OrdinalHead(width, len(config.id2label or {}))


def _single_label_loss(config: Any) -> TargetLoss:
    focus = {"focal_gamma": config.focal_gamma, "logit_adjustment": config.logit_adjustment}
    return ClassificationLoss(config.class_weights, config.label_smoothing, **focus)


def _multi_label_loss(config: Any) -> TargetLoss:
    focus = {"focal_gamma": config.focal_gamma, "asymmetric": config.asymmetric}
    return MultiLabelLoss(config.class_weights, config.label_smoothing, **focus)


def _regression_loss(config: Any) -> TargetLoss:
    count = len(config.id2label or {})
    mean, deviation = config.target_mean or [0.0] * count, config.target_std or [1.0] * count
    return RegressionLoss(mean, deviation, huber_delta=config.huber_delta)


def _ordinal_loss(config: Any) -> TargetLoss:
    return OrdinalLoss(config.class_weights)


def _best_first(scores: list[float], names: list[str]) -> Answers:
    ranked = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    return [{"label": names[index], "score": scores[index]} for index in ranked]


def _single_label_answers(scores: list[float], names: list[str], config: Any) -> Answers:
    answers = _best_first(scores, names)
    if config.abstain_below is None:
        return answers
    return [{**answer, "abstain": answers[0]["score"] < config.abstain_below} for answer in answers]


def _multi_label_answers(scores: list[float], names: list[str], config: Any) -> Answers:
    limits = dict(zip(names, config.thresholds or [0.5] * len(names), strict=True))
    return [{**answer, "given": answer["score"] >= limits[answer["label"]]} for answer in _best_first(scores, names)]


def _regression_answers(scores: list[float], names: list[str], config: Any) -> Answers:
    return [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]


def _ordinal_answers(scores: list[float], names: list[str], config: Any) -> Answers:
    chosen = names[int(median_classes(Tensor(scores)))]
    return [{**answer, "given": answer["label"] == chosen} for answer in _best_first(scores, names)]


SINGLE_LABEL = Target(
    problem_type="single_label_classification",
    name="class",
    learns="one label",
    make_head=_linear_head,
    make_loss=_single_label_loss,
    scores=class_probabilities,
    answers=_single_label_answers,
)
MULTI_LABEL = Target(
    problem_type="multi_label_classification",
    name="labels",
    learns="any number of labels",
    make_head=_linear_head,
    make_loss=_multi_label_loss,
    scores=label_probabilities,
    answers=_multi_label_answers,
)
REGRESSION = Target(
    problem_type="regression",
    name="numbers",
    learns="numbers",
    make_head=_linear_head,
    make_loss=_regression_loss,
    scores=plain_numbers,
    answers=_regression_answers,
)
ORDINAL = Target(
    problem_type="single_label_classification",
    ordinal=True,
    name="ordered class",
    learns="one of several labels in an order",
    make_head=_ordinal_head,
    make_loss=_ordinal_loss,
    scores=class_probabilities,
    answers=_ordinal_answers,
)


def target_named(problem_type: str, *, ordinal: bool) -> Target:
    """The kind of that name; the names are those that transformers lets a config have."""
    kinds = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, ORDINAL)
    return next(kind for kind in kinds if (kind.problem_type, kind.ordinal) == (problem_type, ordinal))


def target_of(config: PreTrainedConfig) -> Target:
    """What the labels of a model with this config are."""
    ordinal: bool = getattr(config, "ordinal", False)  # (which only our own classifiers' configs have)
    return target_named(config.problem_type or SINGLE_LABEL.problem_type, ordinal=ordinal)


def last_layer(config: PreTrainedConfig, width: int) -> nn.Module:
    """The last layer of a head for what the config says: (B, width) → (B, …)."""
    return target_of(config).make_head(config, width)
