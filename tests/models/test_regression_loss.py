"""The loss of numbers: torch's own of standardised labels, and answers in the user's units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmhf.models.regression_loss import RegressionLoss

MEAN, DEVIATION = [40.0, 2015.3], [12.0, 4.5]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(MEAN) + torch.tensor(DEVIATION) * torch.randn(6, 2, generator=generator)
    return 2 * torch.randn(6, 2, generator=generator), labels


@pytest.mark.parametrize("delta", [None, 0.7])
def test_is_torchs_loss_of_standardised_labels(batch: tuple[Tensor, Tensor], delta: float | None) -> None:
    logits, labels = batch
    standard = (labels - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    torchs = torch.nn.MSELoss() if delta is None else torch.nn.HuberLoss(delta=delta)
    loss = RegressionLoss(MEAN, DEVIATION, huber_delta=delta)
    torch.testing.assert_close(loss(logits, labels), torchs(logits, standard), rtol=1e-5, atol=1e-6)
    one = RegressionLoss(MEAN[:1], DEVIATION[:1], huber_delta=delta)
    torch.testing.assert_close(one(logits[:, :1], labels[:, 0]), one(logits[:, :1], labels[:, :1]))


def test_what_is_not_known_has_no_loss_and_no_gradient(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch[0].clone().requires_grad_(), batch[1].clone()
    labels[1, 0] = labels[4] = float("nan")
    loss = RegressionLoss(MEAN, DEVIATION)
    assert loss.count(labels).item() == 9
    loss(logits, labels).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[1, 0] == 0 and (logits.grad[4] == 0).all() and logits.grad[1, 1] != 0
    nothing = torch.full_like(labels, float("nan"))
    assert loss(logits, nothing).item() == 0
    hidden = loss.hide(batch[1], torch.tensor([1, 0, 1, 1, 1, 1]))
    assert hidden.isnan().sum() == 2 and hidden[1].isnan().all()


def test_a_step_is_the_same_however_its_rows_are_cut(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    loss = RegressionLoss(MEAN, DEVIATION)
    count = loss.count(labels)
    parts = loss(logits[:2], labels[:2], count) + loss(logits[2:], labels[2:], count)
    torch.testing.assert_close(parts, loss(logits, labels))


def test_answers_are_in_the_users_units_even_in_half_precision(batch: tuple[Tensor, Tensor]) -> None:
    loss = RegressionLoss(MEAN, DEVIATION).half()
    zeros = loss.outputs(torch.zeros(1, 2, dtype=torch.bfloat16))
    assert zeros.dtype == torch.float32
    torch.testing.assert_close(zeros, torch.tensor([MEAN]))  # bfloat16 has no 2015.3
    answers = loss.outputs(batch[0])
    errors, count = loss.tally(answers, batch[1]).tolist()
    assert count == 12 and errors == pytest.approx((answers - batch[1]).abs().sum().item(), rel=1e-5)
