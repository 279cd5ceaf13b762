"""The losses of dual encoders, block by block. Depends on torch only, so that a release can carry this file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmhf.conventions import IGNORED_IMAGE

_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Contrast:
    """What is contrasted with what, and by which loss.

    Args:
        loss (`str`): `softmax`, the mean of the cross-entropies over all texts for an image and over all images for a
            text (Radford et al., "CLIP", https://arxiv.org/abs/2103.00020), or `sigmoid`, the binary cross-entropy of
            each image with each text, summed and divided by the number of pairs (Zhai et al., "SigLIP",
            https://arxiv.org/abs/2303.15343).
        label_smoothing (`float`): softmax: share of the target spread evenly over all that is compared; sigmoid:
            targets move by half of it towards 1/2.
        same_image (`str`): What two rows of one image are to each other: `negative`, `ignore` or `positive`. Several
            positives share the target of the softmax evenly (Yang et al., "UniCL", https://arxiv.org/abs/2204.03610).
        same_caption (`str`): The same for two rows with one caption. Of both, `positive` goes before `ignore`, and
            that before `negative`.
        sizes (`tuple[int, ...]`): The loss is the mean of those of the first so many numbers of the embeddings, each
            prefix brought to length 1 (Kusupati et al., "Matryoshka Representation Learning",
            https://arxiv.org/abs/2205.13147). Empty: of the embeddings alone.
        weights (`tuple[float, ...]`): What each size counts in that mean. Empty: all the same.
    """

    loss: str = "softmax"
    label_smoothing: float = 0.0
    same_image: str = "ignore"
    same_caption: str = "ignore"
    sizes: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class EmbeddedPairs:
    """N images and the N texts that belong to them.

    Args:
        image_embeds (`Tensor`): (N, D), of length 1.
        text_embeds (`Tensor`): (N, D), of length 1.
        image_index (`Tensor`): (N,), equal where the image is; -1 = the row takes part in nothing.
        caption_id (`Tensor`): (N,), equal where the text is.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    image_index: Tensor
    caption_id: Tensor
    count: Tensor = field(init=False)
    """Scalar: the rows that take part."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", (self.image_index != IGNORED_IMAGE).sum())

    def __len__(self) -> int:
        return len(self.image_index)


def caption_ids(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """One number for each text: equal for equal texts, and for others only by a coincidence in 64 bits.

    Args:
        input_ids (`Tensor`): (B, T).
        attention_mask (`Tensor`, *optional*): (B, T); what it leaves out does not count.

    Returns:
        `Tensor` of shape (B,), int64.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
    # A polynomial in an odd number, modulo 2**64, over the tokens that are no padding.
    powers = torch.full_like(input_ids, 0x5851F42D4C957F2D).cumprod(dim=1)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ((input_ids + 0x14057B7EF767814F) * powers.gather(1, places) * mask).sum(dim=1)


def unit_prefix(embeds: Tensor, size: int) -> Tensor:
    """The first `size` numbers of embeddings of length 1, brought to length 1 again: (N, D) → (N, size)."""
    return embeds if size == embeds.shape[-1] else functional.normalize(embeds[..., :size], dim=-1)


def block_losses(
    pairs: EmbeddedPairs,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    contrast: Contrast,
    *,
    rows: range | None = None,
    rows_per_block: int | None = None,
) -> Iterator[Tensor]:
    """The loss as a sum of parts, each of which needs (rows_per_block, N) of the (N, N) similarities.

    Args:
        pairs ([`EmbeddedPairs`]): All that are contrasted.
        logit_scale, logit_bias (`Tensor`): What similarities are multiplied with, and what is added.
        contrast ([`Contrast`]): The loss.
        rows (`range`, *optional*): Only these rows' share; the shares of all rows add up to the loss. Absent: all.
        rows_per_block (`int`, *optional*): Absent: as many as give blocks of 16 MiB, of all sizes together.

    Yields:
        `Tensor`: scalars in fp32.
    """
    rows = range(len(pairs)) if rows is None else rows
    size = rows_per_block or block_size(len(pairs), len(contrast.sizes))
    for start in range(rows.start, rows.stop, size):
        block = slice(start, min(start + size, rows.stop))
        with torch.autocast(pairs.image_embeds.device.type, enabled=False):
            loss = _block_loss(pairs, logit_scale, logit_bias, contrast, block) / pairs.count.clamp(min=1)
        yield loss


def contrastive_loss(
    pairs: EmbeddedPairs,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    contrast: Contrast,
    *,
    rows_per_block: int | None = None,
) -> Tensor:
    """The loss of all pairs, scalar, fp32; where it takes several blocks, the backward pass computes them again."""
    size = rows_per_block or block_size(len(pairs), len(contrast.sizes))

    def share(start: int) -> Tensor:
        rows = range(start, min(start + size, len(pairs)))
        return next(block_losses(pairs, logit_scale, logit_bias, contrast, rows=rows, rows_per_block=size))

    starts = range(0, len(pairs), size)
    parts = [
        checkpoint(share, start, use_reentrant=False, preserve_rng_state=False) if len(starts) > 1 else share(start)
        for start in starts
    ]
    return torch.stack(parts).sum()


def block_size(num_pairs: int, num_sizes: int = 1) -> int:
    """Rows of similarities to so many pairs that are computed at once, for each of so many sizes of embeddings."""
    return max(_BLOCK_ELEMENTS // (max(num_pairs, 1) * max(num_sizes, 1)), 1)


def _block_loss(
    pairs: EmbeddedPairs, logit_scale: Tensor, logit_bias: Tensor | None, contrast: Contrast, block: slice
) -> Tensor:
    """The sum of a block's losses, averaged over the sizes."""
    positive, compared = _relations(pairs, contrast, block)
    takes_part = pairs.image_index[block] != IGNORED_IMAGE
    sizes = contrast.sizes or (pairs.image_embeds.shape[1],)
    weights = contrast.weights or (1.0,) * len(sizes)
    total = pairs.image_embeds.new_zeros((), dtype=torch.float32)
    for size, weight in zip(sizes, weights, strict=True):
        images, texts = unit_prefix(pairs.image_embeds, size), unit_prefix(pairs.text_embeds, size)
        by_image = _logits(images[block], texts, logit_scale, logit_bias)
        if contrast.loss == "sigmoid":
            part = _sigmoid_part(by_image, positive, compared, takes_part, contrast.label_smoothing)
        else:
            by_text = _logits(texts[block], images, logit_scale, logit_bias)
            part = _softmax_part((by_image, by_text), positive, compared, takes_part, contrast.label_smoothing)
        total = total + weight / sum(weights) * part
    return total


def _softmax_part(
    both: tuple[Tensor, Tensor], positive: Tensor, compared: Tensor, takes_part: Tensor, label_smoothing: float
) -> Tensor:
    total = both[0].new_zeros(())
    for logits in both:
        normaliser = logits.masked_fill(~compared, -torch.inf).logsumexp(dim=1)
        target = (logits * positive).sum(dim=1) / positive.sum(dim=1)
        if label_smoothing:
            everything = (logits * compared).sum(dim=1) / compared.sum(dim=1)
            target = target.lerp(everything, label_smoothing)
        total = total + ((normaliser - target) * takes_part).sum()
    return total / 2


def _sigmoid_part(
    logits: Tensor, positive: Tensor, compared: Tensor, takes_part: Tensor, label_smoothing: float
) -> Tensor:
    targets = positive.to(logits.dtype).lerp(torch.full_like(logits, 0.5), label_smoothing)
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * (compared & takes_part.unsqueeze(1))).sum()


def _relations(pairs: EmbeddedPairs, contrast: Contrast, block: slice) -> tuple[Tensor, Tensor]:
    """Which columns are a row's positives, and which it is compared with at all; both (rows, N), of bools."""
    positions = torch.arange(len(pairs), device=pairs.image_index.device)
    own = positions[block].unsqueeze(1) == positions
    present = pairs.image_index != IGNORED_IMAGE
    positive, compared = own, present.expand_as(own)
    for relation, ids in ((contrast.same_image, pairs.image_index), (contrast.same_caption, pairs.caption_id)):
        if relation == "positive":
            positive = positive | (ids[block].unsqueeze(1) == ids) & present
        elif relation == "ignore":
            compared = compared & (ids[block].unsqueeze(1) != ids)
    return positive, positive | compared


def _logits(rows: Tensor, columns: Tensor, logit_scale: Tensor, logit_bias: Tensor | None) -> Tensor:
    logits = logit_scale.float() * (rows.float() @ columns.float().T)
    return logits if logit_bias is None else logits + logit_bias.float()
