"""The loss of several labels a row against torch, timm and the formulas of the papers."""

from __future__ import annotations

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional

from mmhf.models.multi_label_loss import MultiLabelLoss, label_probabilities

WEIGHTS = [1.0, 3.0, 0.5]


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return (torch.rand(7, 3, generator=torch.Generator().manual_seed(1)) > 0.6).float()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_the_binary_cross_entropy_of_torch(logits, labels, weights, smoothing):
    targets = (1 - smoothing) * labels + smoothing / 2
    positive = None if weights is None else torch.tensor(weights)
    expected = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive)
    torch.testing.assert_close(MultiLabelLoss(weights, smoothing)(logits, labels), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("positive", "negative", "margin"), [(1.0, 4.0, 0.05), (0.0, 2.0, 0.0), (0.0, 4.0, 0.2)])
def test_asymmetric_loss_is_that_of_timm(logits, labels, weights, positive, negative, margin):
    settings = {"gamma_positive": positive, "gamma_negative": negative, "margin": margin}
    of_positives = None if weights is None else torch.tensor(weights)
    timm = AsymmetricLossMultiLabel(negative, positive, margin, reduction="mean", pos_weight=of_positives)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = MultiLabelLoss(weights, asymmetric=settings)(ours, labels), timm(theirs, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_focal_loss_is_that_of_the_paper(logits, labels):
    right = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-((1 - right) ** 2) * right.log()).mean()
    torch.testing.assert_close(MultiLabelLoss(focal_gamma=2.0)(logits, labels), expected)


def test_entries_below_0_do_not_count(logits, labels):
    loss = MultiLabelLoss(WEIGHTS)
    hidden = labels.clone()
    hidden[2], hidden[4, 1] = -100, -100
    counted = hidden >= 0
    whole = functional.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=torch.tensor(WEIGHTS), reduction="none"
    )
    torch.testing.assert_close(loss(logits, hidden), whole[counted].mean())
    assert loss.count(hidden) == counted.sum() == 17
    assert loss(logits, torch.full_like(labels, -100)) == 0


def test_two_batches_of_a_step_make_the_loss_of_one(logits, labels):
    loss = MultiLabelLoss()
    parts = [loss(logits[at], labels[at], loss.count(labels)) for at in (slice(0, 2), slice(2, 7))]
    torch.testing.assert_close(sum(parts), loss(logits, labels))


def test_hidden_rows_and_right_answers(logits, labels):
    loss = MultiLabelLoss()
    shown = torch.tensor([True] * 6 + [False])
    hidden = loss.hide(labels, shown)
    assert (hidden[6] == -100).all()
    assert torch.equal(hidden[:6], labels[:6])
    right = ((logits[:6] >= 0) == (labels[:6] == 1)).sum()
    assert loss.tally(logits, hidden).tolist() == [right.item(), 18]


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_no_probability_makes_a_gradient_infinite(gamma):
    logits = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 1e-8]], requires_grad=True)
    loss = MultiLabelLoss(asymmetric={"gamma_positive": gamma, "gamma_negative": gamma, "margin": 0.05})
    loss(logits, torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])).backward()
    assert torch.isfinite(logits.grad).all()


def test_probabilities_are_sigmoids_and_need_not_add_up_to_1():
    found = label_probabilities(torch.tensor([[0.0, 40.0]], dtype=torch.bfloat16))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0]], dtype=torch.float64))
