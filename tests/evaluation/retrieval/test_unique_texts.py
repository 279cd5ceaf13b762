"""Equal captions are one caption in the second protocol, whatever image has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmhf.evaluation.retrieval import UNIQUE_TEXT_PROTOCOLS, evaluate_retrieval, unique_texts


def directions(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_caption_that_images_share_is_right_for_each():
    images = torch.eye(3)
    texts = torch.stack([images[0], images[0], images[2]])
    found = evaluate_retrieval(images, texts, [0, 1, 2], captions=["a dog", " a dog ", "a cat"]).metrics
    assert found["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert found["unique_text_to_image_recall@1"] == 1.0
    shared = torch.stack([images[0], images[0] * 0.9 + images[1] * 0.1, images[2]])
    found = evaluate_retrieval(shared, texts, [0, 1, 2], captions=["a dog", "a dog", "a cat"]).metrics
    assert found["unique_image_to_text_recall@1"] == 1.0
    assert found.keys() >= UNIQUE_TEXT_PROTOCOLS.keys()


@pytest.mark.parametrize("products", [1, 1 << 25])
def test_the_numbers_are_those_of_the_whole_matrix(monkeypatch, products):
    monkeypatch.setattr(unique_texts, "_BLOCK_PRODUCTS", products)
    images, texts = directions(30, 0), directions(70, 1)
    owners, said = np.arange(70) % 28, [f"caption {number % 50}" for number in range(70)]
    owners[3] = -1
    found = evaluate_retrieval(images, texts, owners, captions=said).metrics
    right = np.zeros((30, 50), bool)
    for caption, owner in zip(range(70), owners, strict=True):
        if owner >= 0:
            right[owner, caption % 50] = True
    # Caption 3 is left out with its image; the text is there again as caption 53, whose embedding then counts.
    distinct = texts[[number if number != 3 else 53 for number in range(50)]]
    scores = (images @ distinct.T).numpy()
    for name, matrix, answers in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        firsts = [
            1 + (row > row[of_row].max()).sum() for row, of_row in zip(matrix, answers, strict=True) if of_row.any()
        ]
        for k in (1, 5, 10):
            assert found[f"unique_{name}_recall@{k}"] == pytest.approx(np.mean(np.array(firsts) <= k))


def test_without_equal_texts_both_protocols_say_the_same():
    images, texts = directions(20, 2), directions(40, 3)
    found = evaluate_retrieval(
        images, texts, np.arange(40) % 20, captions=[str(number) for number in range(40)]
    ).metrics
    for name, value in found.items():
        if name.startswith("unique_"):
            assert value == pytest.approx(found[name.removeprefix("unique_")])
