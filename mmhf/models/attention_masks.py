"""Attention masks in the form that layers read, so that a step on a GPU waits for none.

transformers looks at the values of a mask, or of positions, to see whether it is needed at all; on a GPU that waits,
in each step, for all that was asked for before. A mask with four axes is taken as it is. On a CPU, and for models that
may want another form, everything stays with transformers.

Depends on torch and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    causal_mask_function,
)

from mmhf.conventions import HOST_DEVICES

# Models that take masks with four axes, and what their tokens see of each other.
_PATTERNS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("bert", "distilbert", "mpnet", "roberta", "xlm-roberta"), bidirectional_mask_function),
    "siglip_text_model": bidirectional_mask_function,
    **dict.fromkeys(("clip_text_model", "llama", "mistral", "qwen2", "qwen3"), causal_mask_function),
}


def padding_mask(encoder: PreTrainedModel, attention_mask: Tensor) -> Tensor:
    """What a text encoder is given for a mask (B, T): the same, or (B, 1, T, T)."""
    if not _is_known(encoder, attention_mask):
        return attention_mask
    return _with_four_axes(encoder, attention_mask, len(attention_mask))


def causal_mask(language: PreTrainedModel, embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
    """What a language model is given for embeddings (B, T, D).

    Without a mask there is no padding, and it is (1, 1, T, T) or nothing; with one (B, T), it is (B, 1, T, T) or the
    same.
    """
    window = vars(language.config).get("sliding_window")
    if not _is_known(language, embeds) or (window is not None and embeds.shape[1] >= window):
        return attention_mask
    if attention_mask is not None:
        return _with_four_axes(language, attention_mask, len(attention_mask))
    return _with_four_axes(language, torch.ones(1, embeds.shape[1], device=embeds.device), 1)


def _is_known(model: PreTrainedModel, inputs: Tensor) -> bool:
    is_known = model.config.model_type in _PATTERNS and model.config._attn_implementation in ("sdpa", "eager")
    return is_known and inputs.device.type not in HOST_DEVICES


def _with_four_axes(model: PreTrainedModel, mask: Tensor, batch_size: int) -> Tensor:
    made: Tensor = ALL_MASK_ATTENTION_FUNCTIONS[model.config._attn_implementation](
        batch_size=batch_size,
        q_length=mask.shape[1],
        kv_length=mask.shape[1],
        mask_function=_PATTERNS[model.config.model_type],
        attention_mask=mask.bool(),
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        dtype=model.dtype,
        device=mask.device,
    )
    return made
