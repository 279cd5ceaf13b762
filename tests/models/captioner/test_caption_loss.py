from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmhf.models.captioner import caption_loss as module
from mmhf.models.captioner.caption_loss import caption_loss


def _case(vocabulary: int = 50, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, width, requires_grad=True)
    weight, bias = torch.randn(vocabulary, width, requires_grad=True), torch.randn(vocabulary, requires_grad=True)
    labels = torch.randint(0, vocabulary, (3, 7))
    labels[0, 4:], labels[2, :2] = -100, -100
    return hidden, labels, weight, bias


def _gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, leaves))


@pytest.mark.parametrize("logits_at_once", [50, 350, 10_000])
def test_loss_and_all_gradients_equal_cross_entropy_of_full_logits(
    monkeypatch: pytest.MonkeyPatch, logits_at_once: int
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", logits_at_once)
    hidden, labels, weight, bias = _case()
    ours = caption_loss(hidden, labels, weight, bias)
    reference = functional.cross_entropy((hidden @ weight.T + bias).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(ours, reference)
    for mine, theirs in zip(
        _gradients(ours, hidden, weight, bias), _gradients(reference, hidden, weight, bias), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_mixed_with_other_probabilities_loss_and_gradients_are_those_of_the_mixture() -> None:
    hidden, labels, weight, bias = _case()
    share, other = torch.rand(labels.shape), torch.rand(labels.shape)
    share[0, 0], other[0, :2] = 1.0, 0.0
    ours = caption_loss(hidden, labels, weight, bias, mixed=(share, other))
    probabilities = (hidden @ weight.T + bias).softmax(dim=-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    reference = -(share * probabilities + other).log()[labels != -100].mean()
    torch.testing.assert_close(ours, reference)
    for mine, theirs in zip(
        _gradients(ours, hidden, weight, bias), _gradients(reference, hidden, weight, bias), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_frozen_head_gets_no_gradient_and_the_states_get_theirs() -> None:
    hidden, labels, weight, _ = _case()
    caption_loss(hidden, labels, weight.detach()).backward()
    reference = functional.cross_entropy((hidden.detach().requires_grad_() @ weight.T).flatten(0, 1), labels.flatten())
    assert weight.grad is None and hidden.grad is not None
    assert hidden.grad[0, 4:].abs().sum() == 0  # padding
    assert reference > 0


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.full((1, 2, 1), 300.0, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    loss = caption_loss(hidden, torch.tensor([[0, 1]]), weight)
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_without_labels_the_loss_is_zero_and_differentiable() -> None:
    hidden, labels, weight, _ = _case()
    loss = caption_loss(hidden, torch.full_like(labels, -100), weight)
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and hidden.grad.abs().sum() == 0


def test_num_items_in_batch_weighs_tokens_alike_however_rows_are_cut() -> None:
    hidden, labels, weight, _ = _case()
    whole = caption_loss(hidden, labels, weight)
    count = (labels != -100).sum()
    parts = [
        caption_loss(hidden[row : row + 1], labels[row : row + 1], weight, num_items_in_batch=count)
        for row in range(len(labels))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_autocast_computes_in_half_precision_and_sums_in_single() -> None:
    hidden, labels, weight, _ = _case()
    exact = caption_loss(hidden, labels, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = caption_loss(hidden, labels, weight)
    assert rough.dtype == torch.float32
    assert rough.item() != exact.item()
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0)
    gradient = torch.autograd.grad(rough, hidden)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, hidden)[0], rtol=0.1, atol=2e-2)


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 4000)
    hidden, weight = torch.randn(4, 16, 8, requires_grad=True), torch.randn(2000, 8)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        caption_loss(hidden, torch.randint(0, 2000, (4, 16)), weight).backward()
    assert max(sizes) == weight.numel()  # the transposed view of the weights; all logits would be 64 x 2000


def test_ligers_kernel_is_called_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    called = {}

    class FusedLoss:
        def __init__(self, *, reduction: str) -> None:
            called["reduction"] = reduction

        def __call__(self, weight: Tensor, hidden: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
            return functional.cross_entropy(functional.linear(hidden, weight, bias), targets, reduction="sum")

    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    monkeypatch.setattr(inner, "LigerFusedLinearCrossEntropyLoss", FusedLoss, raising=False)
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    hidden, labels, weight, bias = _case()
    kept = labels != -100
    total = module._liger_sum(hidden[kept], labels[kept], weight, bias)
    assert called == {"reduction": "sum"}
    torch.testing.assert_close(total / kept.sum(), caption_loss(hidden, labels, weight, bias))
