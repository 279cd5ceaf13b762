from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmhf.inference.demo.explaining import heat_map, image_relevance, scaled_words, shown_image, word_relevance


@pytest.mark.parametrize(("height", "width"), [(28, 28), (30, 45), (5, 9)])
def test_what_the_score_reads_is_relevant_and_nothing_else_is(height, width):
    """The score is the brightness of one corner: hiding it (0) takes it away, hiding the rest does nothing."""
    corner = (slice(0, height // 2), slice(0, width // 2))

    def score(pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :, corner[0], corner[1]].mean(dim=(1, 2, 3))

    relevance = image_relevance(score, torch.ones(1, 3, height, width))
    window = (max(1, height // 7), max(1, width // 7))
    assert relevance.shape == (height, width)
    assert (relevance[: corner[0].stop - window[0], : corner[1].stop - window[1]] > 0).all()
    assert (relevance[corner[0].stop + window[0] :, :] == 0).all()
    assert (relevance[:, corner[1].stop + window[1] :] == 0).all()


def test_what_speaks_against_the_answer_is_negative():
    relevance = image_relevance(lambda pixels: -pixels.mean(dim=(1, 2, 3)), torch.ones(1, 3, 28, 28))
    assert (relevance < 0).all()


def test_relevance_is_the_mean_fall_over_the_windows_that_hid_a_pixel():
    """Windows of one pixel: the fall is the weight of that pixel."""
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    relevance = image_relevance(lambda pixels: (pixels[:, 0] * weights).sum(dim=(1, 2)), torch.ones(1, 3, 6, 6))
    np.testing.assert_allclose(relevance, weights.numpy(), atol=1e-5)


def test_words_are_left_out_one_at_a_time():
    asked: list[str] = []

    def score(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.tensor([1.0 * ("frog" in text) - 0.5 * ("lamp" in text) for text in texts])

    assert word_relevance(score, " a  frog,\non a lamp ") == [
        ("a", 0.0),
        ("frog,", 1.0),
        ("on", 0.0),
        ("a", 0.0),
        ("lamp", -0.5),
    ]
    assert asked[1:] == ["frog, on a lamp", "a on a lamp", "a frog, a lamp", "a frog, on lamp", "a frog, on a"]


@given(st.text(max_size=60))
def test_every_word_is_named_once_in_order(text):
    words = word_relevance(lambda texts: torch.tensor([float(len(text)) for text in texts]), text)
    assert [word for word, _ in words] == text.split()


def test_scaled_words_lie_between_minus_one_and_one():
    assert scaled_words([("a", 0.02), ("b", -0.04), ("c", 0.0)]) == [("a", 0.5), ("b", -1.0), ("c", 0.0)]
    assert scaled_words([("a", 0.0)]) == [("a", 0.0)]
    assert scaled_words([]) == []


def test_the_model_saw_what_is_shown():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    values = torch.tensor((pixels / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]
    np.testing.assert_array_equal(np.asarray(shown_image(values, mean, std)), pixels)


def test_heat_is_red_for_violet_against_and_grey_for_neither():
    relevance = np.zeros((3, 30))
    relevance[:, :10], relevance[:, 20:] = 0.2, -0.2
    shown = heat_map(Image.new("RGB", (30, 3), (90, 200, 40)), relevance)
    assert shown.size == (384, 38)
    speaks_for, neither, against = (np.asarray(shown)[19, column].astype(int) for column in (20, 192, 364))
    assert speaks_for[0] > speaks_for[2] + 50
    assert against[2] > against[1] + 50
    assert neither[0] == neither[1] == neither[2]


def test_an_answer_that_rests_on_nothing_leaves_the_picture_grey():
    shown = np.asarray(heat_map(Image.new("RGB", (30, 30), (90, 200, 40)), np.zeros((30, 30))))
    assert (shown == shown[0, 0, 0]).all()
