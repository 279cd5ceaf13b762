"""How a dual encoder learns from another which images and texts are near each other, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from mmhf.conventions import IGNORED_IMAGE
from mmhf.models.contrastive_loss import EmbeddedPairs, block_size


def affinity_losses(
    pairs: EmbeddedPairs, taught: EmbeddedPairs, logit_scale: Tensor, *, temperature: float, rows: range
) -> Iterator[Tensor]:
    """T² · KL(teacher ‖ model) of each image's similarities to all texts, and of each text's to all images.

    Similarities become probabilities by a softmax at temperature T; the loss is the mean over the pairs and over both
    directions. Pairs of one image or caption are compared like others: the teacher knows how alike they are. Source:
    affinity mimicking, Wu et al., "TinyCLIP", https://arxiv.org/abs/2309.12314, and contrastive relational
    distillation, Yang et al., "CLIP-KD", https://arxiv.org/abs/2307.12732, with the factor of Hinton et al.,
    https://arxiv.org/abs/1503.02531.

    Args:
        pairs ([`EmbeddedPairs`]): Of the model.
        taught ([`EmbeddedPairs`]): The teacher's of the same pairs; its own logit scale is in its `image_embeds`.
        logit_scale (`Tensor`): What the model's similarities are multiplied with.
        temperature (`float`): T.
        rows (`range`): Only these rows' share; the shares of all rows add up to the loss.

    Yields:
        `Tensor`: scalars in fp32, of one block of rows each.
    """
    absent, size = pairs.image_index == IGNORED_IMAGE, block_size(len(pairs))
    ways = [
        (pairs.image_embeds, pairs.text_embeds, taught.image_embeds, taught.text_embeds),
        (pairs.text_embeds, pairs.image_embeds, taught.text_embeds, taught.image_embeds),
    ]
    for start in range(rows.start, rows.stop, size):
        block = slice(start, min(start + size, rows.stop))
        with torch.autocast(pairs.image_embeds.device.type, enabled=False):
            total = torch.zeros((), device=absent.device)
            for own, others, own_taught, others_taught in ways:
                logits = logit_scale.float() * (own[block].float() @ others.float().T) / temperature
                wanted = own_taught[block].float() @ others_taught.float().T / temperature
                # Not minus infinity, of which the divergence would be no number.
                least = torch.finfo(logits.dtype).min
                log_probabilities, log_targets = (
                    each.masked_fill(absent, least).log_softmax(dim=1) for each in (logits, wanted)
                )
                losses = functional.kl_div(log_probabilities, log_targets, reduction="none", log_target=True)
                total = total + losses.sum(dim=1).masked_fill(absent[block], 0.0).sum()
        yield temperature**2 * total / 2 / pairs.count.clamp(min=1)
