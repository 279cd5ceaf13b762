"""The loss of classifiers with any number of labels a row. Releases carry this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mmhf.models.classification_loss import LEAST_DOUBT, TargetLoss
from mmhf.models.views import mean_of_odds


class MultiLabelLoss(TargetLoss):
    """Binary cross-entropy of each label, as `torch.nn.BCEWithLogitsLoss`, or with a focus on hard ones.

    The mean is over rows and labels; entries below 0 (-100) do not count, and a batch of only such ones has loss 0.

    Args:
        class_weights (`Sequence[float]`, *optional*): Weight of each label's positives; torch's `pos_weight`.
        label_smoothing (`float`): Share of each target that moves to 1/2.
        focal_gamma (`float`): Each term is multiplied with (1 - p)^gamma, p being the probability of what is right.
            Source: Lin et al., "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002.
        asymmetric (`Mapping[str, float]`, *optional*): Exponents of their own for positives (`gamma_positive`) and
            negatives (`gamma_negative`), and a `margin` by which the probability of negatives is lowered, so that the
            easiest of them have no loss. Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification",
            https://arxiv.org/abs/2009.14119, equation 7.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        focal_gamma: float = 0.0,
        asymmetric: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(class_weights, label_smoothing)
        focus = asymmetric or {"gamma_positive": focal_gamma, "gamma_negative": focal_gamma, "margin": 0.0}
        self.gamma_positive, self.gamma_negative = focus["gamma_positive"], focus["gamma_negative"]
        self.margin = focus["margin"]

    def average(self, logits: Sequence[Tensor]) -> Tensor:
        """See [`TargetLoss`]."""
        return mean_of_odds(logits)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of (B, C) logits and labels, 0 and 1 or shares between them."""
        targets = labels.float().clamp(min=0)
        if self.label_smoothing:
            targets = (1 - self.label_smoothing) * targets + self.label_smoothing / 2
        present, absent = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        if self.margin:
            absent = (absent.exp() + self.margin).clamp(max=1).log()
        positive = -targets * _focus(present, self.gamma_positive) * present
        if self.weight is not None:
            positive = positive * self._weight()
        negative = -(1 - targets) * _focus(absent, self.gamma_negative) * absent
        return ((positive + negative) * (labels >= 0)).sum()

    def count(self, labels: Tensor) -> Tensor:
        """The entries that are 0 or more."""
        return (labels >= 0).sum()

    def hide(self, labels: Tensor, shown: Tensor) -> Tensor:
        """See [`TargetLoss`]."""
        return labels.masked_fill(~shown[:, None].bool(), -100.0)

    def known(self, labels: Tensor) -> Tensor:
        """See [`TargetLoss`]."""
        return (labels >= 0).any(dim=1)

    def imitation(self, answers: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """See [`TargetLoss`]: T² · binary cross-entropy with the teacher's probabilities, mean over the labels."""
        own, wanted = answers / temperature, torch.sigmoid(taught / temperature)
        losses = functional.binary_cross_entropy_with_logits(own, wanted, reduction="none")
        return temperature**2 * losses.mean(dim=1)

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See [`TargetLoss`]; each label of a row is an answer, given from a probability of 1/2 on."""
        counted = labels >= 0
        return torch.stack([(((logits >= 0) == (labels > 0.5)) & counted).sum(), counted.sum()])


def _focus(log_probability: Tensor, gamma: float) -> Tensor | float:
    """(1 - p)^gamma of what has the logarithm of p."""
    if not gamma:
        return 1.0
    # Below 1, an exponent has an infinite slope at 0.
    return (-log_probability.expm1()).clamp_min(LEAST_DOUBT) ** gamma


def label_probabilities(logits: Tensor) -> Tensor:
    """The probability of each label in double precision: (…, C) logits of any dtype to (…, C) float64 on the CPU."""
    return torch.sigmoid(logits.detach().cpu().double())
