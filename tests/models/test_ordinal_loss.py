"""CORAL: its loss by the authors' formula, probabilities that are some, and ranks in order."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mmhf.models.ordinal_loss import OrdinalHead, OrdinalLoss, median_classes

CLASSES = 5


def reference(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss as the authors publish it: levels of 1 below the class, and 0 from it on."""
    levels = torch.stack([torch.tensor([1.0] * int(y) + [0.0] * (CLASSES - 1 - int(y))) for y in labels])
    terms = functional.logsigmoid(logits) * levels + (functional.logsigmoid(logits) - logits) * (1 - levels)
    return torch.mean(-torch.sum(terms, dim=1))


@pytest.fixture
def head() -> OrdinalHead:
    torch.manual_seed(0)
    head = OrdinalHead(8, CLASSES)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.3, 1.7, -2.0, 0.9]))
    return head


@pytest.fixture
def features() -> torch.Tensor:
    return 3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


def test_loss_and_gradients_are_those_of_the_authors_formula(head: OrdinalHead, features: torch.Tensor) -> None:
    labels = torch.arange(40) % CLASSES
    found, expected = OrdinalLoss()(head(features), labels), reference(head(features), labels)
    torch.testing.assert_close(found, expected)
    for own, other in zip(
        torch.autograd.grad(found, list(head.parameters())),
        torch.autograd.grad(expected, list(head.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_thresholds_share_weights_and_stay_in_order(head: OrdinalHead, features: torch.Tensor) -> None:
    logits = head(features)
    assert (logits.diff(dim=1) <= 0).all(), "although the biases are not in order"
    torch.testing.assert_close(logits.diff(dim=1), logits.diff(dim=1)[:1].expand(40, -1))
    assert sorted(dict(head.named_parameters())) == ["bias", "score.weight"]
    even = OrdinalHead(8, CLASSES)
    chances = OrdinalLoss().outputs(even(torch.zeros(1, 8))).exp()
    torch.testing.assert_close(chances, torch.full((1, CLASSES), 1 / CLASSES))


def test_outputs_are_log_probabilities_and_the_answer_is_the_median(head: OrdinalHead, features: torch.Tensor) -> None:
    logits = head(features)
    above = torch.sigmoid(logits.double())
    bounds = torch.cat([torch.ones(40, 1), above, torch.zeros(40, 1)], dim=1)
    outputs = OrdinalLoss().outputs(logits)
    torch.testing.assert_close(outputs.exp().double(), -bounds.diff(dim=1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(outputs.exp().sum(dim=1), torch.ones(40))
    chosen = median_classes(outputs.softmax(dim=1))
    assert chosen.tolist() == (logits > 0).sum(dim=1).tolist(), "the paper's rule"
    assert (chosen != outputs.argmax(dim=1)).any(), "which is not the most probable class"
    far = OrdinalLoss().outputs(torch.tensor([[200.0, 200.0, -200.0, -200.0]]))
    assert far.isfinite().all()


def test_rows_without_a_label_weights_and_shares() -> None:
    logits = (
        torch.randn(6, CLASSES - 1, generator=torch.Generator().manual_seed(0)).sort(dim=1, descending=True).values
    )
    labels = torch.tensor([0, 1, 2, 3, 4, -100])
    loss = OrdinalLoss()
    torch.testing.assert_close(loss(logits, labels), reference(logits[:5], labels[:5]))
    assert loss(logits[5:], labels[5:]).item() == 0
    shares = functional.one_hot(labels.clamp(min=0), CLASSES).float() * (labels >= 0)[:, None]
    torch.testing.assert_close(loss(logits, shares), loss(logits, labels))
    weighted = OrdinalLoss([1.0, 2.0, 1.0, 1.0, 1.0])
    terms = torch.stack([reference(logits[at : at + 1], labels[at : at + 1]) for at in range(5)])
    torch.testing.assert_close(weighted(logits, labels), (terms * torch.tensor([1.0, 2, 1, 1, 1])).sum() / 6)
    tally = loss.tally(loss.outputs(logits), labels)
    assert tally.tolist() == [int(((logits > 0).sum(dim=1)[:5] == labels[:5]).sum()), 5]
