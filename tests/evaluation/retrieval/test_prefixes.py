from __future__ import annotations

import numpy as np
import pytest

from mmhf.evaluation.retrieval import prefix_protocols, prefix_recalls, retrieval_metrics


def test_each_size_has_the_recalls_of_embeddings_that_are_no_longer() -> None:
    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(20, 8)), generator.normal(size=(30, 8))
    # The first 3 numbers of a text are those of its image, made longer; the others are noise.
    owners = np.arange(30) % 20
    texts[:, :3] = 7 * images[owners][:, :3]
    recalls = prefix_recalls(images, texts, owners, [3, 5])
    assert recalls["first_3_mean_recall"] == recalls["first_3_text_to_image_recall@1"] == 1
    of_five = retrieval_metrics(np.ascontiguousarray(images[:, :5]), np.ascontiguousarray(texts[:, :5]), owners)
    assert recalls["first_5_image_to_text_recall@1"] == pytest.approx(of_five["image_to_text_recall@1"])
    assert of_five["mean_recall"] < 1
    assert set(recalls) == set(prefix_protocols([3, 5])) and len(recalls) == 14
