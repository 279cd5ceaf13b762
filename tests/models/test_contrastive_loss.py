from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional

from mmhf.conventions import IGNORED_IMAGE
from mmhf.models.contrastive_loss import Contrast, EmbeddedPairs, block_losses, caption_ids, contrastive_loss

ROWS, WIDTH = 12, 16


def make_pairs(image_index: list[int] | None = None, captions: list[int] | None = None) -> EmbeddedPairs:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        functional.normalize(torch.randn(ROWS, WIDTH, generator=generator), dim=-1).requires_grad_() for _ in range(2)
    )
    names = torch.arange(ROWS)
    return EmbeddedPairs(
        images,
        texts,
        names if image_index is None else torch.tensor(image_index),
        names if captions is None else torch.tensor(captions),
    )


def with_gradients(pairs: EmbeddedPairs, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> list:
    scale, bias = torch.tensor([14.0], requires_grad=True), torch.tensor([-5.0], requires_grad=True)
    loss = loss_of(scale, bias)
    inputs = (pairs.image_embeds, pairs.text_embeds, scale, bias)
    return [loss.reshape(()), *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)]


def assert_equal(ours: list, theirs: list) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows_per_block", [None, 5, 1])
def test_softmax_equals_open_clip_s(rows_per_block: int | None) -> None:
    pairs = make_pairs()
    ours = with_gradients(
        pairs,
        lambda scale, bias: contrastive_loss(pairs, scale, None, Contrast("softmax"), rows_per_block=rows_per_block),
    )
    theirs = with_gradients(pairs, lambda scale, bias: ClipLoss()(pairs.image_embeds, pairs.text_embeds, scale))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("rows_per_block", [None, 5, 1])
def test_sigmoid_equals_open_clip_s(rows_per_block: int | None) -> None:
    pairs = make_pairs()
    ours = with_gradients(
        pairs,
        lambda scale, bias: contrastive_loss(pairs, scale, bias, Contrast("sigmoid"), rows_per_block=rows_per_block),
    )
    theirs = with_gradients(
        pairs, lambda scale, bias: SigLipLoss()(pairs.image_embeds, pairs.text_embeds, scale, bias)
    )
    assert_equal(ours, theirs)


@pytest.mark.parametrize("rows_per_block", [None, 5])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_several_sizes_have_the_weighted_mean_of_their_losses(kind: str, rows_per_block: int | None) -> None:
    pairs = make_pairs()
    sizes, weights = (2, 7, WIDTH), (1.0, 0.5, 2.5)
    contrast = Contrast(kind, sizes=sizes, weights=weights)
    ours = with_gradients(
        pairs,
        lambda scale, bias: contrastive_loss(
            pairs, scale, bias if kind == "sigmoid" else None, contrast, rows_per_block=rows_per_block
        ),
    )

    def reference(scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for size, weight in zip(sizes, weights, strict=True):
            images, texts = (each[:, :size] for each in (pairs.image_embeds, pairs.text_embeds))
            if size < WIDTH:  # whole embeddings are of length 1 already
                images, texts = (each / each.norm(dim=1, keepdim=True) for each in (images, texts))
            of_size = (
                SigLipLoss()(images, texts, scale, bias) if kind == "sigmoid" else ClipLoss()(images, texts, scale)
            )
            total = total + weight * of_size
        return total / 4.0

    assert_equal(ours, with_gradients(pairs, reference))
    # Without weights all sizes count the same.
    scale, bias = torch.tensor([14.0]), torch.tensor([-5.0]) if kind == "sigmoid" else None
    each = [contrastive_loss(pairs, scale, bias, Contrast(kind, sizes=(size,))) for size in sizes]
    torch.testing.assert_close(
        contrastive_loss(pairs, scale, bias, Contrast(kind, sizes=sizes)), torch.stack(each).mean()
    )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_shares_of_rows_add_up_to_the_loss(kind: str) -> None:
    pairs = make_pairs([0, 0, 0, 1, 1, 2, IGNORED_IMAGE, 3, 4, 4, 5, 5])
    contrast = Contrast(kind, label_smoothing=0.1)
    scale, bias = torch.tensor([10.0]), torch.tensor([-3.0])
    whole = contrastive_loss(pairs, scale, bias, contrast)
    shares = [
        torch.stack(list(block_losses(pairs, scale, bias, contrast, rows=rows, rows_per_block=3))).sum()
        for rows in (range(5), range(5, 12))
    ]
    torch.testing.assert_close(sum(shares), whole)


def test_label_smoothing_is_torch_s() -> None:
    pairs = make_pairs()
    scale = torch.tensor([14.0])
    logits = scale * pairs.image_embeds @ pairs.text_embeds.T
    labels = torch.arange(ROWS)
    expected = (
        functional.cross_entropy(logits, labels, label_smoothing=0.2)
        + functional.cross_entropy(logits.T, labels, label_smoothing=0.2)
    ) / 2
    torch.testing.assert_close(contrastive_loss(pairs, scale, None, Contrast(label_smoothing=0.2)), expected)


def test_ignored_rows_are_no_negatives() -> None:
    image_index = [0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7]
    pairs = make_pairs(image_index)
    scale = torch.tensor([14.0])
    losses = []
    for rows, columns in ((pairs.image_embeds, pairs.text_embeds), (pairs.text_embeds, pairs.image_embeds)):
        for row in range(ROWS):
            kept = [row] + [other for other in range(ROWS) if image_index[other] != image_index[row]]
            logits = scale * rows[row] @ columns[kept].T
            losses.append(functional.cross_entropy(logits, torch.tensor(0)))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(contrastive_loss(pairs, scale, None, Contrast(same_image="ignore")), expected)
    assert not torch.isclose(contrastive_loss(pairs, scale, None, Contrast(same_image="negative")), expected)


def test_several_positives_share_the_target() -> None:
    image_index, captions = [0, 0, *range(1, 11)], [0, 1, 2, 2, *range(3, 11)]
    pairs = make_pairs(image_index, captions)
    scale = torch.tensor([14.0])
    targets = torch.eye(ROWS)
    targets[0, 1] = targets[1, 0] = targets[2, 3] = targets[3, 2] = 1
    targets /= targets.sum(dim=1, keepdim=True)
    logits = scale * pairs.image_embeds @ pairs.text_embeds.T
    expected = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
    contrast = Contrast(same_image="positive", same_caption="positive")
    torch.testing.assert_close(contrastive_loss(pairs, scale, None, contrast), expected)


def test_sigmoid_leaves_ignored_pairs_out_and_takes_positive_ones() -> None:
    pairs = make_pairs([0, 0, *range(1, 11)])
    scale, bias = torch.tensor([10.0]), torch.tensor([-10.0])
    logits = scale * pairs.image_embeds @ pairs.text_embeds.T + bias
    signs = 2 * torch.eye(ROWS) - 1
    losses = -functional.logsigmoid(signs * logits)
    ignored = losses.clone()
    ignored[0, 1] = ignored[1, 0] = 0
    torch.testing.assert_close(contrastive_loss(pairs, scale, bias, Contrast("sigmoid")), ignored.sum() / ROWS)
    signs[0, 1] = signs[1, 0] = 1
    expected = -functional.logsigmoid(signs * logits).sum() / ROWS
    contrast = Contrast("sigmoid", same_image="positive")
    torch.testing.assert_close(contrastive_loss(pairs, scale, bias, contrast), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_rows_that_take_part_in_nothing_change_nothing(kind: str) -> None:
    pairs = make_pairs([*range(9), IGNORED_IMAGE, IGNORED_IMAGE, IGNORED_IMAGE])
    kept = EmbeddedPairs(pairs.image_embeds[:9], pairs.text_embeds[:9], pairs.image_index[:9], pairs.caption_id[:9])
    ours = with_gradients(pairs, lambda scale, bias: contrastive_loss(pairs, scale, bias, Contrast(kind)))
    theirs = with_gradients(pairs, lambda scale, bias: contrastive_loss(kept, scale, bias, Contrast(kind)))
    assert_equal(ours, theirs)


def test_one_row_and_none_have_no_negatives() -> None:
    one = make_pairs([0, *[IGNORED_IMAGE] * 11])
    none = make_pairs([IGNORED_IMAGE] * 12)
    for pairs in (one, none):
        loss, *gradients = with_gradients(
            pairs, lambda scale, bias, pairs=pairs: contrastive_loss(pairs, scale, None, Contrast())
        )
        assert loss == 0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_captions_are_told_apart_by_their_tokens_not_by_padding() -> None:
    texts = torch.tensor([[5, 6, 7, 0], [6, 5, 7, 0], [0, 5, 6, 7], [5, 6, 7, 9], [5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    ids = caption_ids(texts, mask).tolist()
    assert ids[0] == ids[2]
    assert len(set(ids)) == 4
    longer = torch.cat([texts[:1], torch.zeros(1, 3, dtype=torch.long)], dim=1)
    assert caption_ids(longer, torch.tensor([[1, 1, 1, 0, 0, 0, 0]])).tolist() == ids[:1]


def test_random_logits_start_at_chance() -> None:
    pairs = make_pairs()
    assert contrastive_loss(pairs, torch.tensor([0.0]), None, Contrast()).item() == pytest.approx(math.log(ROWS))
