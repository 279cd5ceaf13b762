"""What a classifier's outputs stand for: one label a row, or any number. Releases carry this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from mmhf.models.classification_loss import ClassificationLoss, TargetLoss, class_probabilities
from mmhf.models.multi_label_loss import MultiLabelLoss, label_probabilities


@dataclass(frozen=True)
class Target:
    """A kind of labels.

    Args:
        problem_type (`str`): Its name in a config, as transformers knows it.
        make_loss (`Callable`): The loss that a config describes.
        probabilities (`Callable`): (…, C) logits to (…, C) probabilities, float64 on the CPU.
        has_several (`bool`): Whether a row may have several labels, or none: labels are (B, C), and each is decided by
            itself.
    """

    problem_type: str
    make_loss: Callable[[Any], TargetLoss]
    probabilities: Callable[[Tensor], Tensor]
    has_several: bool = False


def _single_label_loss(config: Any) -> TargetLoss:
    focus = {"focal_gamma": config.focal_gamma, "logit_adjustment": config.logit_adjustment}
    return ClassificationLoss(config.class_weights, config.label_smoothing, **focus)


def _multi_label_loss(config: Any) -> TargetLoss:
    focus = {"focal_gamma": config.focal_gamma, "asymmetric": config.asymmetric}
    return MultiLabelLoss(config.class_weights, config.label_smoothing, **focus)


SINGLE_LABEL = Target("single_label_classification", _single_label_loss, class_probabilities)
MULTI_LABEL = Target("multi_label_classification", _multi_label_loss, label_probabilities, has_several=True)


def target_of(config: PreTrainedConfig) -> Target:
    """What the labels of a model with this config are.

    Raises:
        `ValueError`: `problem_type` is one that no classifier of mmhf learns.
    """
    known = {target.problem_type: target for target in (SINGLE_LABEL, MULTI_LABEL)}
    name = config.problem_type or SINGLE_LABEL.problem_type
    if name not in known:
        raise ValueError(f"problem_type {name!r}: {config.model_type} knows {' and '.join(known)}")
    return known[name]
