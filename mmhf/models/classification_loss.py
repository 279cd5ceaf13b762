"""The loss and the probabilities of classifiers. Depends on torch and transformers only: releases carry this file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init

from mmhf.conventions import IGNORED_LABEL
from mmhf.models.views import mean_of_classes

LEAST_DOUBT = 1e-7
"""Where a focal factor's slope is taken at the latest."""


@dataclass(frozen=True)
class LossSettings:
    """What a classifier's loss is made of, as its config keeps it.

    Attributes:
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`Sequence[float]`, *optional*): Weight of each class; of several labels a row, of its positives.
        focal_gamma (`float`): Exponent of the focal factor; 0 = cross-entropy.
        logit_adjustment (`Sequence[float]`, *optional*): What is added to the logits of each class.
        asymmetric (`Mapping[str, float]`, *optional*): `gamma_positive`, `gamma_negative` and `margin` of
            [`MultiLabelLoss`].
        auxiliary_weights (`Mapping[str, float]`): `image`, `text` → weight of the loss of a classifier that sees this
            modality alone; a fusion classifier's.
        huber_delta (`float`, *optional*): Of [`RegressionLoss`].
        target_mean, target_std (`Sequence[float]`, *optional*): Mean and deviation of each number to learn.
        problem_type (`str`): What the labels are, in transformers' words.
        ordinal (`bool`): Whether the classes have an order.
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    focal_gamma: float = 0.0
    logit_adjustment: Sequence[float] | None = None
    asymmetric: Mapping[str, float] | None = None
    auxiliary_weights: Mapping[str, float] = field(default_factory=dict)
    huber_delta: float | None = None
    target_mean: Sequence[float] | None = None
    target_std: Sequence[float] | None = None
    problem_type: str = "single_label_classification"
    ordinal: bool = False


PLAIN_LOSS = LossSettings()


class TargetLoss(nn.Module, ABC):
    """What comes behind a head: the loss, a sum over what is counted, divided by the count, and the model's answers.

    Args:
        class_weights (`Sequence[float]`, *optional*): Weight of each class.
        label_smoothing (`float`): Share of the target spread evenly over the classes; a stage may change it.
    """

    running: ClassVar[str] = "accuracy"
    """What the tally is called in the log: the first number of it divided by the second."""

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        # In the config already, so not in the weights: a recipe that changes them must not meet the old ones.
        self.weight: Tensor | None
        self.register_buffer("weight", _as_tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean loss of a head's (B, …) logits and their labels; scalar, fp32.

        `num_items_in_batch`, the `count` of all batches that one optimizer step accumulates on all processes, is what
        the sum is divided by; absent, it is this batch's. So a step is the same however its rows are cut into batches.
        """
        total = self.total(logits.float(), labels)
        count = self.count(labels) if num_items_in_batch is None else num_items_in_batch
        if isinstance(count, Tensor):
            count = count.to(total)
            return total / torch.where(count > 0, count, 1.0)
        return total / (count if count > 0 else 1)

    def outputs(self, logits: Tensor) -> Tensor:
        """What the model answers, of a head's logits."""
        return logits

    @abstractmethod
    def average(self, logits: Sequence[Tensor]) -> Tensor:
        """A head's logits (B, …) that stand for the mean of what several say, in probabilities or numbers; fp32."""

    @abstractmethod
    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of a head's (B, …) fp32 logits; scalar."""

    @abstractmethod
    def count(self, labels: Tensor) -> Tensor:
        """What the mean is over; scalar."""

    @abstractmethod
    def hide(self, labels: Tensor, shown: Tensor) -> Tensor:
        """The labels without those of rows that (B,) `shown` leaves out."""

    @abstractmethod
    def known(self, labels: Tensor) -> Tensor:
        """(B,): which rows have something to learn."""

    @abstractmethod
    def imitation(self, answers: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """(B,): how far the model's answers are from a teacher's, (B, …) each, as `outputs` gives them."""

    @abstractmethod
    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(2,): how many of the model's answers are right, and how many there are."""

    def _weight(self) -> Tensor:
        assert self.weight is not None
        return self.weight.float()  # a model in half precision has halved its buffers too

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Fill the buffers again, which `from_pretrained` leaves unset."""
        if self.weight is not None:
            init.copy_(self.weight, torch.tensor(self.class_weights))


class ClassificationLoss(TargetLoss):
    """Cross-entropy over class indices or probabilities, weighted and smoothed as in `torch.nn.CrossEntropyLoss`.

    Rows labelled -100, or with the probability 0 for all classes, do not count, and a batch of only such rows has loss
    0, where torch gives NaN. Probabilities of 0 and 1 have the same loss as indices, with class weights, too, where
    torch divides by another number.

    Args:
        class_weights (`Sequence[float]`, *optional*): Weight of each class.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        focal_gamma (`float`): Each class's term is multiplied with (1 - p)^gamma, p being its probability. Source: Lin
            et al., "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002.
        logit_adjustment (`Sequence[float]`, *optional*): Added to the logits inside the loss alone: tau · log prior of
            each class. Source: Menon et al., "Long-tail learning via logit adjustment",
            https://arxiv.org/abs/2007.07314, equation 10.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        focal_gamma: float = 0.0,
        logit_adjustment: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_weights, label_smoothing)
        self.focal_gamma = focal_gamma
        self.logit_adjustment = logit_adjustment
        self.adjustment: Tensor | None
        self.register_buffer("adjustment", _as_tensor(logit_adjustment), persistent=False)

    def average(self, logits: Sequence[Tensor]) -> Tensor:
        """See [`TargetLoss`]."""
        return mean_of_classes(logits)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of logits and labels: (B,) class ids or (B, C) probabilities."""
        if self.adjustment is not None:
            logits = logits + self.adjustment.float()
        return self._focal_sum(logits, labels) if self.focal_gamma else self._sum(logits, labels)

    def count(self, labels: Tensor) -> Tensor:
        """What the mean is over: the rows that have a label, or the sum of their class weights; scalar."""
        if labels.is_floating_point():
            return (labels.sum(dim=-1) > 0).sum() if self.weight is None else (labels.float() @ self._weight()).sum()
        counted = labels != IGNORED_LABEL
        return counted.sum() if self.weight is None else (self._weight()[labels.clamp(min=0)] * counted).sum()

    def _sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = None if self.weight is None else self._weight()
        if not labels.is_floating_point():
            return functional.cross_entropy(
                logits,
                labels,
                weight=weight,
                ignore_index=IGNORED_LABEL,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
        probabilities = labels.float()
        losses = functional.cross_entropy(
            logits, probabilities, weight=weight, reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses * (probabilities.sum(dim=-1) > 0)).sum()  # smoothing gives a loss to rows without a label

    def _focal_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.float() if labels.is_floating_point() else self._one_hot(labels, logits.shape[-1])
        counted = targets.sum(dim=-1) > 0
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / logits.shape[-1]
        log_probabilities = logits.log_softmax(dim=-1)
        # Below 1, an exponent has an infinite slope at 0.
        factors = (-log_probabilities.expm1()).clamp_min(LEAST_DOUBT) ** self.focal_gamma
        terms = -targets * factors * log_probabilities
        if self.weight is not None:
            terms = terms * self._weight()
        return (terms.sum(dim=-1) * counted).sum()

    @staticmethod
    def _one_hot(labels: Tensor, num_labels: int) -> Tensor:
        return functional.one_hot(labels.clamp(min=0), num_labels).float() * (labels != IGNORED_LABEL)[:, None]

    def hide(self, labels: Tensor, shown: Tensor) -> Tensor:
        """See [`TargetLoss`]."""
        return labels * shown[:, None] if labels.is_floating_point() else labels.where(shown, IGNORED_LABEL)

    def known(self, labels: Tensor) -> Tensor:
        """See [`TargetLoss`]."""
        return labels.sum(dim=1) > 0 if labels.is_floating_point() else labels != IGNORED_LABEL

    def imitation(self, answers: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """See [`TargetLoss`]: T² · KL(teacher ‖ model) of the classes' probabilities at temperature T.

        The factor keeps the size of the gradient. Source: Hinton et al., "Distilling the Knowledge in a Neural
        Network", https://arxiv.org/abs/1503.02531.
        """
        own, wanted = ((logits / temperature).log_softmax(dim=1) for logits in (answers, taught))
        return temperature**2 * functional.kl_div(own, wanted, reduction="none", log_target=True).sum(dim=1)

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See [`TargetLoss`]; of mixed labels, the larger part is the right answer."""
        return self._tally_of(logits.argmax(dim=1), labels)

    def _tally_of(self, answers: Tensor, labels: Tensor) -> Tensor:
        classes = labels if labels.ndim == 1 else labels.argmax(dim=1)
        counted = classes != IGNORED_LABEL
        return torch.stack([((answers == classes) & counted).sum(), counted.sum()])

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """See [`TargetLoss`]."""
        super().restore_buffers()
        if self.adjustment is not None:
            init.copy_(self.adjustment, torch.tensor(self.logit_adjustment))


def _as_tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32)


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature. Source: Guo et al., 2017, https://arxiv.org/abs/1706.04599."""
    return logits if temperature == 1.0 else logits / temperature


def class_probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension in double precision: (…, C) logits of any dtype to (…, C) float64 on the CPU."""
    return torch.softmax(logits.detach().cpu().double(), dim=-1)


def class_names(model: PreTrainedModel) -> list[str]:
    """Names of the classes in the order of their ids."""
    names = model.config.id2label or {}
    return [str(name) for _, name in sorted(names.items())]
