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
