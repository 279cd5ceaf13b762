from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mmhf.models.classification_loss import ClassificationLoss

SETTINGS = [(None, 0.0), (None, 0.1), ([1.0, 2.0, 0.5], 0.0), ([1.0, 2.0, 0.5], 0.1)]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_certain_probabilities_equal_class_ids(logits, weights, smoothing):
    loss = ClassificationLoss(weights, smoothing)
    labels = torch.tensor([0, 1, 2, 2, -100, 1])
    soft = functional.one_hot(labels.clamp(min=0), 3).float() * (labels >= 0)[:, None]
    expected = functional.cross_entropy(logits, labels, weight=loss.weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, soft), expected)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS[:2])
def test_probabilities_have_the_loss_of_torch(logits, weights, smoothing):
    soft = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    expected = functional.cross_entropy(logits, soft, label_smoothing=smoothing)
    torch.testing.assert_close(ClassificationLoss(weights, smoothing)(logits, soft), expected)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_mixing_an_image_with_itself_changes_nothing(logits, weights, smoothing):
    """The loss of a mixture is the mixture of the losses, when both have the same weight."""
    loss = ClassificationLoss(weights, smoothing)
    one, two = logits[:1], torch.tensor([[0.3, 0.0, 0.7]])
    parts = [loss(one, torch.tensor([label])) * (1.0 if weights is None else weights[label]) for label in (0, 2)]
    total = 0.3 * parts[0] + 0.7 * parts[1]
    divisor = 1.0 if weights is None else 0.3 * weights[0] + 0.7 * weights[2]
    torch.testing.assert_close(loss(one, two), total / divisor)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
@pytest.mark.parametrize("labels", [torch.full((6,), -100), torch.zeros(6, 3)])
def test_nothing_counted_is_no_loss_and_no_gradient(logits, weights, smoothing, labels):
    logits.requires_grad_()
    value = ClassificationLoss(weights, smoothing)(logits, labels)
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_of_one_row_by_hand(logits, weights, smoothing, gamma):
    loss = ClassificationLoss(weights, smoothing, focal_gamma=gamma)
    probabilities = logits[0].softmax(dim=0)
    target = (1 - smoothing) * torch.tensor([0.0, 1.0, 0.0]) + smoothing / 3
    per_class = torch.tensor([1.0, 1.0, 1.0] if weights is None else weights)
    expected = -(per_class * target * (1 - probabilities) ** gamma * probabilities.log()).sum() / per_class[1]
    torch.testing.assert_close(loss(logits[:1], torch.tensor([1]), None if weights is None else weights[1]), expected)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_a_vanishing_gamma_is_cross_entropy(logits, weights, smoothing):
    labels = torch.tensor([0, 1, 2, 2, -100, 1])
    focal = ClassificationLoss(weights, smoothing, focal_gamma=1e-9)
    torch.testing.assert_close(focal(logits, labels), ClassificationLoss(weights, smoothing)(logits, labels))
    soft = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    torch.testing.assert_close(focal(logits, soft), ClassificationLoss(weights, smoothing)(logits, soft))


def test_focal_gradients_stay_finite_where_a_row_is_certain():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    ClassificationLoss(focal_gamma=0.5)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all() and logits.grad[1].abs().sum() > 0


def test_logit_adjustment_is_cross_entropy_of_shifted_logits(logits):
    shares = torch.tensor([0.7, 0.2, 0.1])
    loss = ClassificationLoss(logit_adjustment=(1.5 * shares.log()).tolist())
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    torch.testing.assert_close(loss(logits, labels), functional.cross_entropy(logits + 1.5 * shares.log(), labels))


def test_logit_adjustment_learns_balanced_probabilities():
    """Trained on imbalanced labels that nothing explains, the logits themselves take all classes to be as likely."""
    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    shares = labels.bincount() / len(labels)
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)
    loss = ClassificationLoss(logit_adjustment=shares.log().tolist())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logits.expand(100, 3), labels)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(dim=0), torch.full((3,), 1 / 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [{"focal_gamma": 2.0}, {"logit_adjustment": [0.0, -1.0, -2.0]}])
def test_what_is_added_up_does_not_depend_on_the_cut(logits, options):
    loss = ClassificationLoss([1.0, 2.0, 0.5], 0.1, **options)
    labels = torch.tensor([0, 1, 2, 2, -100, 1])
    count = loss.count(labels)
    parts = sum(loss(logits[rows], labels[rows], count) for rows in (slice(0, 1), slice(1, 4), slice(4, 6)))
    torch.testing.assert_close(parts, loss(logits, labels))
