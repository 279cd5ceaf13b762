"""Attention over few tokens in bf16 on a CPU, as products of matrices.

torch's fused kernel for CPUs walks over a sequence in blocks that are made for long ones. In bf16 it takes, forward
and backward, 48 ms for 32 × 9 heads of 20 tokens where the plain products take 7 (16 × 9 of 128 tokens: 112 and 44;
8 × 9 of 256: 91 and 114); in fp32 it is as fast as they are. A mode of torch catches the call wherever it is made:
transformers, timm, torch.nn.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MOST_TOKENS = 128


def short_attention(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """What the passes of a model enter: the products for short sequences where they are faster, else nothing.

    Args:
        device (`torch.device`): Where training is.
        precision (`str`): What is computed under autocast: `bf16`, `fp16`, or `no`.
    """
    return _ByProducts() if device.type == "cpu" and precision == "bf16" else contextlib.nullcontext()


class _ByProducts(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and _is_short(*args, **kwargs):
            return attend(*args, **kwargs)
        return func(*args, **kwargs)


def _is_short(query: Tensor, key: Tensor, *_: Any, **__: Any) -> bool:
    is_low = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return is_low and max(query.shape[-2], key.shape[-2]) <= _MOST_TOKENS


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` computes, which see; the softmax is in fp32."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return functional.dropout(weights, dropout_p) @ value
