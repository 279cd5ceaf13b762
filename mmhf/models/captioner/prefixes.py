"""What stands before the tokens that a captioner writes: masks and padding of prefixes, prompts and beginnings.

Depends on torch and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig


def refuse_assistants(config: GenerationConfig | None, given: dict[str, Any], *, has_begun: bool) -> None:
    """Candidate tokens are checked by token ids alone in transformers 5.24; an image's prefix would be forgotten."""
    asked = {**({} if config is None else config.to_dict()), **given}
    for name in ("assistant_model", "assistant_early_exit"):
        if asked.get(name) is not None:
            raise ValueError(f"{name}: an assistant reads token ids, and an image has none; leave it out")
    if has_begun and asked.get("prompt_lookup_num_tokens") is not None:
        raise ValueError("prompt_lookup_num_tokens: behind input_ids the image is forgotten; leave out one of them")


def prefix_mask(prefix: Tensor, prompt_mask: Tensor | None) -> Tensor:
    """(B, prefix and prompt): 1 but where the prompt is padded."""
    mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
    if prompt_mask is not None:
        mask[:, mask.shape[1] - prompt_mask.shape[1] :] = prompt_mask
    return mask


def padded_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, T, D) and their mask with the padding on the left, so that all rows end together."""
    order = mask.argsort(dim=1, stable=True)
    return embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)


def begun_ids(input_ids: Tensor, mask: Tensor, padding: Tensor | int) -> dict[str, Tensor]:
    """`input_ids` for `generate`: what `mask` leaves of beginnings, (B, longest); no argument if that is nothing."""
    longest = int(mask.sum(dim=1).max())
    if not longest:
        return {}
    last = mask.argsort(dim=1, stable=True)[:, -longest:]
    return {"input_ids": input_ids.masked_fill(mask == 0, padding).gather(1, last)}


def ends(config: GenerationConfig, device: torch.device) -> Tensor:
    """Tokens that end a caption or pad it; -1 where there is none."""
    ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    known = [token for token in [*ids, config.pad_token_id] if token is not None]
    return torch.tensor(known or [-1], device=device)
