"""What a student learns from the stored answers of a teacher, beside what it learns from its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmhf.models.classification_loss import TargetLoss
from mmhf.parallel import world_size

CLASS_TEMPERATURE = 2.0
"""Of the probabilities of classes, where a recipe does not say; others are taken as they are."""


@dataclass(frozen=True)
class Teaching:
    """How a teacher's answers enter the loss.

    Attributes:
        weight (`float`): Their share of the loss; that of the student's own loss is what is left of 1.
        temperature (`float`): What the logits, or similarities, of both are divided by.
        order (`tuple[int, ...]`, *optional*): For each of the student's labels, its number among the teacher's;
            absent: they are the same.
    """

    weight: float
    temperature: float
    order: tuple[int, ...] | None = None


class Imitation:
    """A classifier's loss with a teacher's share.

    The share is a mean over the rows of a step that have something to learn, over all micro-batches and processes, so
    that it is the same however these are cut.

    Args:
        loss ([`TargetLoss`]): The classifier's own.
        teaching ([`Teaching`]): What the teacher counts.
    """

    def __init__(self, loss: TargetLoss, teaching: Teaching) -> None:
        self._loss = loss
        self._teaching = teaching
        self._order = None if teaching.order is None else torch.tensor(teaching.order)
        self._rows = torch.ones(())

    @classmethod
    def of(cls, model: PreTrainedModel, teaching: Teaching | None) -> Imitation | None:
        """That of a model; None without a teacher, or where the model is no classifier."""
        loss = next((module for module in model.modules() if isinstance(module, TargetLoss)), None)
        return None if teaching is None or loss is None else cls(loss, teaching)

    def begin_step(self, batches: Sequence[Mapping[str, Any]], total: Callable[[Tensor], Tensor]) -> None:
        """Count the rows that a step learns from.

        Args:
            batches (`Sequence[Mapping]`): The step's micro-batches in this process.
            total (`Callable`): Sums a tensor over all processes.
        """
        counts = [self._loss.known(batch["labels"]).sum() for batch in batches]
        self._rows = total(torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long))

    def beside(self, own: Tensor, answers: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
        """The loss of a micro-batch.

        Args:
            own (`Tensor`): Scalar, what the classifier's own loss adds to that of the step, times the number of
                processes, whose mean is taken.
            answers, taught (`Tensor`): (B, C) of the classifier and the teacher.
            labels (`Tensor`): Of the rows; those without a label count in neither loss.
        """
        if self._order is not None:
            self._order = self._order.to(taught.device)
            taught = taught.index_select(1, self._order)
        distances = self._loss.imitation(answers.float(), taught.float(), self._teaching.temperature)
        imitated = (distances * self._loss.known(labels)).sum() * world_size() / self._rows.clamp(min=1)
        return (1 - self._teaching.weight) * own + self._teaching.weight * imitated
