"""What dual encoders pool by beyond what all families have: learnt attention, and the end-of-text token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmhf.models.encoders import pool_text_output

_HEAD_WIDTH = 64
# A pooling that reads the same features in the same layout, by which an encoder is described.
_DESCRIBED_AS = {("vision", "attention"): "avg", ("text", "attention"): "mean", ("text", "eot"): "last_token"}


def described_as(tower: str, pooling: str) -> str:
    """The pooling of `mmhf.models.encoders` that leaves the same parameters of an encoder unused."""
    return _DESCRIBED_AS.get((tower, pooling), pooling)


class AttentionPooling(nn.Module):
    """One learnt query looks at all tokens, as in CoCa (Yu et al., https://arxiv.org/abs/2205.01917).

    Args:
        width (`int`): Of the tokens and of the result. Heads are as near to 64 wide as divides it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = max(width // _HEAD_WIDTH, 1)
        while width % heads:
            heads -= 1
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, C) → (B, C); what `attention_mask` (B, T) leaves out is not looked at."""
        tokens = self.norm(tokens)
        ignored = None if attention_mask is None else attention_mask == 0
        query = self.query.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        pooled: Tensor = self.attention(query, tokens, tokens, key_padding_mask=ignored, need_weights=False)[0]
        return pooled.squeeze(1)


def pool_caption(
    output: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    pooling: str,
    *,
    eot_token_id: int | None,
    attention: AttentionPooling | None,
) -> Tensor:
    """One vector (B, width) of a text encoder's output."""
    if attention is not None:
        pooled: Tensor = attention(output.last_hidden_state, attention_mask)
        return pooled
    if pooling != "eot":
        return pool_text_output(output, attention_mask, pooling)
    if eot_token_id is not None:
        # Whatever follows the first end-of-text token is padding, also where no mask says so.
        ends = input_ids == eot_token_id
        attention_mask = attention_mask * ((ends.cumsum(dim=1) - ends.to(torch.long)) == 0)
    return pool_text_output(output, attention_mask, "last_token")
