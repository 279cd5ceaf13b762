"""Head and loss of classifiers of ordered classes. Releases carry this file.

Source: CORAL, Cao et al., "Rank consistent ordinal regression for neural networks with application to age estimation",
https://arxiv.org/abs/1901.07884.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmhf.models.classification_loss import LEAST_DOUBT, ClassificationLoss
from mmhf.models.views import mean_of_odds


class OrdinalHead(nn.Module):
    """One score a row, and a bias for each but the lowest of C classes: (B, width) → (B, C - 1).

    Output k is the logit of a class above k. All share the weights of the score, and biases are used from the highest
    to the lowest, so that a higher class is never more probable to be reached than a lower one.

    Args:
        width (`int`): Of the features.
        num_labels (`int`): C.
    """

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(self.even_biases(num_labels))

    @staticmethod
    def even_biases(num_labels: int) -> Tensor:
        """(C - 1,): those with which all classes are as probable at a score of 0."""
        return torch.logit(1 - torch.arange(1, num_labels) / num_labels)

    def forward(self, features: Tensor) -> Tensor:
        score: Tensor = self.score(features)
        return score + self.bias.sort(descending=True).values


class OrdinalLoss(ClassificationLoss):
    """Sum over the thresholds between C ordered classes of the cross-entropy of being above; mean over rows.

    Equation 4 of the paper, with equal weights of the thresholds.

    Args:
        class_weights (`Sequence[float]`, *optional*): Weight of the rows of each class.
    """

    def outputs(self, logits: Tensor) -> Tensor:
        """(B, C) logarithms of the classes' probabilities, of (B, C - 1) logits of being above; fp32."""
        logits = logits.float()
        above, below = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        # Of two thresholds a and b: log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - exp(b - a)).
        gaps = torch.log((-torch.expm1(logits[:, 1:] - logits[:, :-1])).clamp_min(LEAST_DOUBT))
        return torch.cat([below[:, :1], above[:, :-1] + below[:, 1:] + gaps, above[:, -1:]], dim=1)

    def average(self, logits: Sequence[Tensor]) -> Tensor:
        """See [`TargetLoss`]; where probabilities of being above are averaged, those of the classes are."""
        return mean_of_odds(logits)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of (B, C - 1) logits of being above and labels: (B,) class ids or (B, C) probabilities."""
        shares = labels.float() if labels.is_floating_point() else self._one_hot(labels, logits.shape[1] + 1)
        weights = shares.sum(dim=1) if self.weight is None else shares @ self._weight()
        above = 1 - shares.cumsum(dim=1)[:, :-1]
        terms = functional.binary_cross_entropy_with_logits(logits, above, reduction="none")
        return (terms.sum(dim=1) * weights).sum()

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See [`TargetLoss`]; the answer is the median class."""
        return self._tally_of(median_classes(logits.softmax(dim=1)), labels)


def median_classes(probabilities: Tensor) -> Tensor:
    """(…,): the lowest class up to which at least half of the (…, C) probability lies.

    The paper's answer: the number of thresholds that are passed with a probability above 1/2. It has the least
    expected distance to the true class, where the most probable class is the one that is right most often.
    """
    passed = 1 - probabilities.cumsum(dim=-1)[..., :-1] > 0.5
    return passed.sum(dim=-1)
