"""What a classifier's training counts beside its loss: right answers, and the measure that its loss has of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmhf.models.classification_loss import TargetLoss


class Answers:
    """Counts on the device until a run logs, so that no step waits for it; false for a model that is no classifier.

    Args:
        model (`PreTrainedModel`): The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._losses = [module for module in model.modules() if isinstance(module, TargetLoss)]
        self._counts = torch.zeros(2, dtype=torch.long)

    def __bool__(self) -> bool:
        return bool(self._losses)

    def measure(self, batches: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """What the losses of a step's micro-batches are divided by; None where Trainer's count of labels is right.

        A loss with class weights or soft labels has its own measure of a batch.
        """
        if len(self._losses) != 1 or not batches or "labels" not in batches[0]:
            return None
        device = self._model.device
        return torch.stack([self._losses[0].count(batch["labels"].to(device)) for batch in batches]).sum()

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count the answers (B, classes) to labels, as the model's loss takes them."""
        found = self._losses[0].tally(logits.detach(), labels)
        self._counts = self._counts.to(found.device) + found

    @property
    def name(self) -> str:
        """What `take` gives: `accuracy`, or for numbers `mae`."""
        return self._losses[0].running

    def take(self, total: Callable[[Tensor], Tensor]) -> float:
        """The share of right answers since the last time; `total` sums a tensor over all processes."""
        right, answered = total(self._counts).tolist()
        self._counts = torch.zeros_like(self._counts)
        share: float = right / max(answered, 1)
        return share
