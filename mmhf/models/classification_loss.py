"""The loss of every classifier. Depends on torch and transformers only, so that a release can carry this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

IGNORED_LABEL = -100


class ClassificationLoss(nn.Module):
    """Cross-entropy over class indices or probabilities, weighted and smoothed as in `torch.nn.CrossEntropyLoss`.

    Rows labelled -100, or with the probability 0 for all classes, do not count, and a batch of only such rows has loss
    0, where torch gives NaN. Probabilities of 0 and 1 have the same loss as indices, with class weights, too, where
    torch divides by another number.

    Args:
        class_weights (`Sequence[float]`, *optional*): Weight of each class.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        # In the config already, so not in the weights: a recipe that changes them must not meet the old ones.
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.weight: Tensor | None
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean loss of (B, C) logits and labels: (B,) class ids or (B, C) probabilities; scalar, fp32.

        `num_items_in_batch`, the `count` of all batches that one optimizer step accumulates on all processes, is what
        the sum is divided by; absent, it is this batch's. So a step is the same however its rows are cut into batches.
        """
        total = self._sum(logits.float(), labels)
        divisor = self.count(labels) if num_items_in_batch is None else num_items_in_batch
        divisor = torch.as_tensor(divisor, dtype=total.dtype, device=total.device)
        return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))

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

    def _weight(self) -> Tensor:
        assert self.weight is not None
        return self.weight.float()  # a model in half precision has halved its buffers too

    @torch.no_grad()
    def restore_weight(self) -> None:
        """Fill the buffer again, which `from_pretrained` leaves unset."""
        if self.weight is not None:
            init.copy_(self.weight, torch.tensor(self.class_weights))
