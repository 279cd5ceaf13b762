"""Embeddings in two dimensions: which pairs, on which plane, in which colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmhf.evaluation.retrieval.embedding_view import embedding_view
from mmhf.evaluation.retrieval.plots import plot_embeddings


def pairs(count: int, gap: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Images spread along the second axis, and their captions a step along the first away."""
    rng = np.random.default_rng(0)
    images = rng.normal(scale=[1e-3, 0.3, 0.01, 0.001], size=(count, 4))
    return images, images + [gap, 0, 0, 0]


def test_the_first_axis_is_the_gap_and_goes_when_it_is_centred():
    images, texts = pairs(50)
    view = embedding_view(images, texts, np.arange(50))
    assert view is not None
    apart = view.joint.texts[:, 0] - view.joint.images[:, 0]
    np.testing.assert_allclose(np.abs(apart), 1.0, atol=0.02)
    assert len(set(np.sign(apart))) == 1
    np.testing.assert_allclose(view.centred.images, view.centred.texts, atol=1e-12)
    spread = np.linalg.eigvalsh(np.cov(np.concatenate([images, texts]).T))[::-1]
    np.testing.assert_allclose(view.joint.variances, spread[:2] / spread.sum(), rtol=1e-6)


def test_each_image_has_its_first_caption_and_the_value_of_its_own_row():
    images, texts = pairs(6)
    owners = np.array([3, 0, -1, 3, 5, 0])
    columns = {"group": [f"g{row}" for row in range(6)]}
    view = embedding_view(images, texts, owners, columns=columns)
    assert view is not None
    assert view.rows.tolist() == [0, 3, 5] and view.groups == {"group": ["g0", "g3", "g5"]}
    own = embedding_view(images[[0, 3, 5]], texts[[1, 0, 4]], np.arange(3))
    assert own is not None
    np.testing.assert_allclose(view.joint.texts, own.joint.texts, atol=1e-12)
    assert embedding_view(images, texts, np.full(6, -1)) is None
    assert embedding_view(images[:, :1], texts[:, :1], np.arange(6)) is None


def test_of_many_the_same_are_drawn_each_time():
    images, texts = pairs(60)
    first, again = (embedding_view(images, texts, np.arange(60), max_pairs=20) for _ in range(2))
    assert first is not None and again is not None
    assert len(first.rows) == 20 and first.rows.tolist() == again.rows.tolist() == sorted(set(first.rows.tolist()))


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [None, 3, 14])
def test_the_picture_has_a_panel_for_each_column_and_grey_for_small_groups(values: int | None, tmp_path: Path):
    images, texts = pairs(60)
    columns = {} if values is None else {"the $group": [f"value_{row % values}" for row in range(60)]}
    view = embedding_view(images, texts, np.arange(60), columns=columns)
    assert view is not None
    plot_embeddings(view, tmp_path / "view.png")
    with Image.open(tmp_path / "view.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape[1] > (1000 if values else 500)
    assert (pixels.shape[1] > 1000) == (values is not None)
    half = pixels[:, pixels.shape[1] // 2 :] if values else pixels
    colourful = (np.ptp(half, axis=2) > 60).sum()
    assert colourful > 300


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.filterwarnings("error")
def test_points_that_are_all_the_same_are_drawn(tmp_path: Path):
    same = np.ones((5, 3))
    view = embedding_view(same, same, np.arange(5))
    assert view is not None and view.joint.variances == (0.0, 0.0)
    plot_embeddings(view, tmp_path / "view.png")
    assert (tmp_path / "view.png").is_file()
