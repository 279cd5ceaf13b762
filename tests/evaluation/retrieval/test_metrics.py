import math

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval as clip_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mmhf.errors import InputError
from mmhf.evaluation.retrieval import (
    RETRIEVAL_PROTOCOLS,
    alignment,
    evaluate_retrieval,
    metrics,
    modality_gap,
    ranks,
    retrieval_metrics,
    uniformity,
)


class Given:
    """Stands for a model: what it is given are the embeddings."""

    def encode_image(self, embeds):
        return embeds

    def encode_text(self, embeds):
        return embeds


def by_clip_benchmark(images, texts, image_index):
    """CLIP_benchmark's own evaluation; it wants the captions image by image, each a 'text'."""
    batches = [
        (images[at : at + 7], [texts[image_index == i] for i in range(at, min(at + 7, len(images)))])
        for at in range(0, len(images), 7)
    ]
    batches = [(image, [list(of_one) for of_one in of_images]) for image, of_images in batches]
    found = clip_benchmark.evaluate(Given(), batches, torch.stack, "cpu", amp=False, recall_k_list=[1, 5, 10])
    names = {"image_retrieval": "text_to_image", "text_retrieval": "image_to_text"}
    return {f"{ours}_recall@{k}": found[f"{theirs}_recall@{k}"] for theirs, ours in names.items() for k in (1, 5, 10)}


def related(seed, *, images=40, captions=5, width=16):
    """Images whose captions, 1 to `captions` each, lie near them."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, captions + 1, (images,), generator=generator)
    index = torch.arange(images).repeat_interleave(counts)
    image = torch.randn(images, width, generator=generator)
    text = image[index] + 1.5 * torch.randn(len(index), width, generator=generator)
    return image, text, index


@pytest.mark.parametrize("seed", range(5))
def test_recalls_equal_those_of_clip_benchmark(seed):
    images, texts, index = related(seed)
    metrics = retrieval_metrics(images, texts, index)
    expected = by_clip_benchmark(images, texts, index)
    assert 0 < expected["image_to_text_recall@1"] < 1
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(11, 60), levels=st.integers(1, 3))
@pytest.mark.slow
def test_ties_are_decided_as_clip_benchmark_decides_them(seed, images, levels):
    """Each row is one of a few axes, so that similarities are 0 or 1, exactly, in any order of summation."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(images).repeat_interleave(torch.randint(1, 4, (images,), generator=generator))
    image = torch.eye(levels)[torch.randint(0, levels, (images,), generator=generator)]
    text = torch.eye(levels)[torch.randint(0, levels, (len(index),), generator=generator)]
    metrics, expected = retrieval_metrics(image, text, index), by_clip_benchmark(image, text, index)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_collapsed_model_is_not_praised():
    metrics = retrieval_metrics(torch.ones(50, 8), torch.ones(50, 8), torch.arange(50))
    assert metrics["image_to_text_recall@1"] == metrics["text_to_image_recall@1"] == pytest.approx(1 / 50)
    assert metrics["image_to_text_median_rank"] == 25.5
    assert metrics["image_uniformity"] == pytest.approx(0, abs=1e-6)


def test_average_precision_and_ranks_equal_those_of_the_whole_matrix():
    images, texts, index = related(3)
    metrics = retrieval_metrics(images, texts, index)
    unit = [torch.nn.functional.normalize(rows, dim=-1).double() for rows in (images, texts)]
    scores = (unit[0] @ unit[1].T).numpy()
    right = index.numpy() == np.arange(len(images))[:, None]
    for name, matrix, positives in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        precisions = [average_precision_score(*row) for row in zip(positives, matrix, strict=True)]
        firsts = [1 + (row > row[of_row].max()).sum() for row, of_row in zip(matrix, positives, strict=True)]
        assert metrics[f"{name}_map"] == pytest.approx(np.mean(precisions), abs=1e-6)
        assert metrics[f"{name}_median_rank"] == np.median(firsts)
    six = [value for name, value in metrics.items() if "_recall@" in name]
    assert metrics["mean_recall"] == pytest.approx(sum(six) / 6)


def test_blocks_change_nothing(monkeypatch):
    images, texts, index = related(1, images=300)
    whole = evaluate_retrieval(images, texts, index)
    monkeypatch.setattr(ranks, "_MAX_BLOCK_ROWS", 7)
    monkeypatch.setattr(ranks, "_BLOCK_BYTES", 5000)
    blocked = evaluate_retrieval(images, texts, index)
    assert blocked.metrics == whole.metrics
    assert (blocked.image_ranks == whole.image_ranks).all()


def test_captions_need_not_be_in_the_order_of_their_images():
    images, texts, index = related(2)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert retrieval_metrics(images, texts[order], index[order]) == pytest.approx(
        retrieval_metrics(images, texts, index)
    )


def test_a_similarity_that_another_kernel_rounds_otherwise_is_ranked_anew(monkeypatch):
    images, texts, index = related(4)
    expected = evaluate_retrieval(images, texts, index)
    exact = ranks._RankCounter._right_similarities
    monkeypatch.setattr(ranks._RankCounter, "_right_similarities", lambda self: exact(self) * np.float32(1.2))
    assert (evaluate_retrieval(images, texts, index).image_ranks == expected.image_ranks).all()


def test_captions_without_an_image_take_part_in_nothing():
    images, texts, index = related(5)
    with_strays = evaluate_retrieval(images, torch.cat([images[:3], texts]), torch.cat([torch.full((3,), -1), index]))
    assert with_strays.metrics == retrieval_metrics(images, texts, index)
    assert with_strays.num_ignored == 3 and with_strays.captions[0] == 3


def test_an_image_without_captions_is_searched_among_but_asks_nothing():
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    evaluation = evaluate_retrieval(images, torch.tensor([[1.0, 0.1], [0.5, 0.8]]), [0, 2])
    assert evaluation.queries.tolist() == [0, 2] and evaluation.num_images == 3
    assert evaluation.image_ranks.tolist() == [1, 2]
    assert evaluation.metrics["image_to_text_recall@1"] == 1.0
    assert evaluation.metrics["text_to_image_recall@1"] == 0.5


def test_one_pair_is_found_and_its_uniformity_is_undefined():
    evaluation = evaluate_retrieval(torch.ones(1, 4), torch.ones(1, 4), [0])
    assert evaluation.metrics["text_to_image_recall@10"] == 1.0
    assert evaluation.undefined.keys() == {"image_uniformity", "text_uniformity"}


def test_every_number_has_its_protocol():
    assert retrieval_metrics(*related(0)).keys() == RETRIEVAL_PROTOCOLS.keys()


def test_half_precision_arrays_serve_as_well():
    images, texts, index = related(6)
    halves = retrieval_metrics(images.half().numpy(), texts.bfloat16(), index.tolist())
    assert halves["mean_recall"] == pytest.approx(retrieval_metrics(images, texts, index)["mean_recall"], abs=0.05)


def test_nan_is_a_diverged_training():
    images, texts, index = related(0)
    texts[3, 2] = float("nan")
    with pytest.raises(InputError, match="text embeddings of 1 of .* diverged"):
        retrieval_metrics(images, texts, index)


@pytest.mark.parametrize(
    ("images", "texts", "index", "message"),
    [
        ((3, 4), (2, 5), [0, 1], "got"),
        ((3, 4), (2, 4), [0, 1, 2], "got"),
        ((3, 4), (2, 4), [0, 3], "image_index 3 is outside the 3 images"),
        ((3, 4), (2, 4), [-1, -1], "no caption has an image"),
    ],
)
def test_shapes_that_disagree_are_refused(images, texts, index, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(torch.ones(images), torch.ones(texts), index)


def on_sphere(rows, width=8, seed=0):
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def test_both_are_the_papers_formulas():
    x, y = on_sphere(50), on_sphere(50, seed=1)
    assert alignment(x, y) == pytest.approx((x - y).norm(dim=1).pow(2).mean().item(), rel=1e-5)
    assert uniformity(x) == pytest.approx(torch.pdist(x).pow(2).mul(-2).exp().mean().log().item(), rel=1e-5)
    assert uniformity(x, t=3) == pytest.approx(torch.pdist(x).pow(2).mul(-3).exp().mean().log().item(), rel=1e-5)


def test_the_gap_is_between_the_means():
    x, y = on_sphere(50), on_sphere(30, seed=1)
    assert modality_gap(x, y) == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)), rel=1e-5)
    assert modality_gap(x, x) == 0
    assert evaluate_retrieval(5 * x, 0.1 * x, np.arange(50)).metrics["modality_gap"] == pytest.approx(0, abs=1e-6)


def test_blocks_change_neither_alignment_nor_uniformity(monkeypatch):
    x, y = on_sphere(50), on_sphere(50, seed=1)
    expected = alignment(x, y), uniformity(x)
    monkeypatch.setattr(metrics, "_BLOCK_ROWS", 7)
    assert (alignment(x, y), uniformity(x)) == pytest.approx(expected, rel=1e-6)


def test_extremes():
    x = on_sphere(2)
    assert alignment(x, x) == 0 and alignment(x, -x) == pytest.approx(4)
    assert uniformity(torch.stack([x[0], -x[0]])) == pytest.approx(-8, rel=1e-6)
    assert uniformity(x[:1].repeat(5, 1)) == pytest.approx(0, abs=1e-6)


def test_many_rows_are_sampled_always_alike(monkeypatch):
    x = on_sphere(400)
    monkeypatch.setattr(metrics, "MAX_UNIFORMITY_ROWS", 200)
    assert uniformity(x) == uniformity(x)
    assert math.isclose(uniformity(x), torch.pdist(x).pow(2).mul(-2).exp().mean().log().item(), rel_tol=0.05)


def test_one_row_has_no_pair():
    with pytest.raises(ValueError, match="pairs"):
        uniformity(on_sphere(1))
