"""Cross-entropy over a large vocabulary, without its logits. Depends on torch only, so that a release can carry it."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from mmhf.conventions import HOST_DEVICES, IGNORED_LABEL

_LOGITS_AT_ONCE = 10_000_000
"""Logits that exist at a time: 65 positions of a vocabulary of 151,936. A CPU gains nothing by more."""
_BYTES_PER_LOGIT_AND_SHARE = 256
"""On a GPU, whose products of few rows are slow: logits of 8 bytes each may take 1/32 of its memory."""


def caption_loss(
    hidden: Tensor,
    labels: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    mixed: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean cross-entropy of the labelled positions; positions labelled -100 cost nothing.

    Logits exist for a chunk of positions at a time, and each chunk's gradient is made while its logits are there, as
    in Liger's fused linear cross-entropy (https://arxiv.org/abs/2410.10989), whose kernel runs where it is installed
    and the tensors are on a GPU.

    Args:
        hidden (`Tensor`): (B, T, D), the state that each position is predicted from.
        labels (`Tensor`): (B, T) token ids, -100 where nothing is predicted. They are not shifted.
        head_weight (`Tensor`): (V, D).
        head_bias (`Tensor`, *optional*): (V,).
        num_items_in_batch (`Tensor` or `int`, *optional*): What the sum is divided by; absent, the number of labelled
            positions. With that of all batches of an optimizer step, each token weighs alike.
        mixed (`tuple`, *optional*): (B, T) shares s and probabilities q: the loss is then that of s P + q instead of
            that of P, the probability of the label. Nothing learns from them.

    Returns:
        `Tensor`: scalar, fp32; 0 when nothing is labelled.
    """
    hidden, targets = hidden.flatten(0, 1), labels.flatten()
    device = hidden.device.type
    # Leaving out what is not labelled takes its number, which fake tensors, with which memory is planned, do not have.
    if device in HOST_DEVICES and not isinstance(labels, FakeTensor):
        kept = targets != IGNORED_LABEL
        hidden, targets = hidden[kept], targets[kept]
        mixed = None if mixed is None else (mixed[0].flatten()[kept], mixed[1].flatten()[kept])
    elif mixed is not None:
        mixed = mixed[0].flatten(), mixed[1].flatten()
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head_weight = hidden.to(dtype), head_weight.to(dtype)
    if mixed is None and hidden.is_cuda and len(targets) and find_spec("liger_kernel") is not None:
        total = _liger_sum(hidden, targets, head_weight, head_bias)
    else:
        total = _ChunkedCrossEntropy.apply(hidden, head_weight, head_bias, targets, *(mixed or (None, None)))
    count = (targets != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        count = count.to(total)
        return total / torch.where(count > 0, count, 1.0)
    return total / max(count, 1)


def _liger_sum(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets, bias).float()
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of (N, D) states, (V, D) weights, (V,) biases and (N,) targets; with (N,)
    `share` and `other`, of share P + other."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        share: Tensor | None,
        other: Tensor | None,
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # Autocast would convert the weight once more for each chunk.
        device = hidden.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            chunk = max(_logits_at_once(hidden) // len(weight), 1)
            for start in range(0, len(targets), chunk):
                rows = slice(start, start + chunk)
                is_learnt = targets[rows] != IGNORED_LABEL
                target = targets[rows].clamp(min=0)[:, None]
                exponentials, sums, losses = _exponentials_and_losses(hidden[rows], weight, bias, target)
                if share is not None and other is not None:
                    own = share[rows].log() - losses
                    losses = -torch.logaddexp(own, other[rows].log())
                    # Where others know the label, as much less is learnt.
                    responsibility = (own + losses).exp()
                total += (losses * is_learnt).sum()
                if not any(ctx.needs_input_grad):
                    continue
                # The gradient with respect to the logits, the probabilities less 1 at the target, times the sums: to
                # divide what comes of it costs a pass over the logits less. Where nothing is learnt it becomes 0.
                exponentials.scatter_(1, target, exponentials.gather(1, target) - sums[:, None])
                sums = sums.masked_fill(~is_learnt, torch.inf)
                if share is not None:
                    sums = sums / responsibility
                scaled = exponentials.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(scaled, weight, out=grad_hidden[rows]).div_(sums[:, None])
                if grad_weight is not None:
                    grad_weight.addmm_(scaled.T, hidden[rows] / sums[:, None].to(hidden.dtype))
                if grad_bias is not None:
                    grad_bias += sums.reciprocal() @ exponentials
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*grads, None, None, None)


def _logits_at_once(hidden: Tensor) -> int:
    if not hidden.is_cuda or isinstance(hidden, FakeTensor):
        return _LOGITS_AT_ONCE
    memory: int = torch.cuda.get_device_properties(hidden.device).total_memory
    return max(memory // _BYTES_PER_LOGIT_AND_SHARE, _LOGITS_AT_ONCE)


def _exponentials_and_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, V) exponentials in fp32, 1 at each highest logit and made in the memory of the logits, their sums (n,), and
    the losses (n,); `target` is (n, 1)."""
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias
    highest = logits.amax(dim=-1, keepdim=True)
    of_target = logits.gather(1, target)
    sums = logits.sub_(highest).exp_().sum(dim=-1)
    return logits, sums, sums.log() + (highest - of_target)[:, 0]
