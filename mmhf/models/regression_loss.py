"""The loss of models that answer with numbers. Releases carry this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mmhf.models.classification_loss import TargetLoss


class RegressionLoss(TargetLoss):
    """Mean squared error, as `torch.nn.MSELoss`, or Huber's loss, as `torch.nn.HuberLoss`, of standardised numbers.

    A head gives standardised numbers; labels, and what the model answers, are in the user's units. The mean is over
    rows and numbers; those that are NaN do not count, and a batch of only such ones has loss 0.

    Args:
        mean, deviation (`Sequence[float]`): Of each number in the training split: the model's answer is its head's
            times the deviation plus the mean.
        huber_delta (`float`, *optional*): Up to how many deviations an error counts by its square, and beyond by its
            size; absent: always by its square. Source: Huber, "Robust Estimation of a Location Parameter", 1964.
    """

    running = "mae"

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], *, huber_delta: float | None = None) -> None:
        super().__init__()
        self.mean, self.deviation = [float(value) for value in mean], [float(value) for value in deviation]
        self.huber_delta = huber_delta

    def outputs(self, logits: Tensor) -> Tensor:
        """Numbers in the user's units: (B, T), fp32."""
        # As numbers and no tensors: a model in half precision would round a mean of 2015.3 to 2016.
        columns = zip(logits.float().unbind(dim=1), self.deviation, self.mean, strict=True)
        return torch.stack([column * deviation + mean for column, deviation, mean in columns], dim=1)

    def average(self, logits: Sequence[Tensor]) -> Tensor:
        """See [`TargetLoss`]."""
        return torch.stack([each.float() for each in logits]).mean(dim=0)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of (B, T) standardised numbers and labels, (B, T), or (B,) where there is one number."""
        targets = _by_row(labels)
        columns = zip(targets.unbind(dim=1), self.deviation, self.mean, strict=True)
        standard = torch.stack([(column - mean) / deviation for column, deviation, mean in columns], dim=1)
        counted = targets.isfinite()
        wanted = torch.where(counted, standard, logits.detach())  # an error of 0, and a gradient of 0
        if self.huber_delta is None:
            return functional.mse_loss(logits, wanted, reduction="sum")
        return functional.huber_loss(logits, wanted, reduction="sum", delta=self.huber_delta)

    def count(self, labels: Tensor) -> Tensor:
        """The numbers that are not NaN."""
        return labels.isfinite().sum()

    def hide(self, labels: Tensor, shown: Tensor) -> Tensor:
        """See [`TargetLoss`]."""
        return _by_row(labels).masked_fill(~shown[:, None].bool(), float("nan"))

    def known(self, labels: Tensor) -> Tensor:
        """See [`TargetLoss`]."""
        return _by_row(labels).isfinite().any(dim=1)

    def imitation(self, answers: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """See [`TargetLoss`]: mean over the numbers of the squared error, in deviations."""
        columns = zip((answers - taught).unbind(dim=1), self.deviation, strict=True)
        return torch.stack([(error / deviation).square() for error, deviation in columns], dim=1).mean(dim=1)

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(2,): the sum of absolute errors, and how many numbers there are."""
        errors = (logits - _by_row(labels)).abs()
        counted = errors.isfinite()
        return torch.stack([errors.where(counted, 0.0).sum(), counted.sum().float()])


def _by_row(labels: Tensor) -> Tensor:
    return (labels[:, None] if labels.ndim == 1 else labels).float()


def plain_numbers(logits: Tensor) -> Tensor:
    """A model's answers in double precision: (…, T) of any dtype to (…, T) float64 on the CPU."""
    return logits.detach().cpu().double()
