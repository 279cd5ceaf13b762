import math

import pytest
import torch

from mmhf.evaluation.retrieval import alignment, geometry, uniformity


def on_sphere(rows, width=8, seed=0):
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def test_both_are_the_papers_formulas():
    x, y = on_sphere(50), on_sphere(50, seed=1)
    assert alignment(x, y) == pytest.approx((x - y).norm(dim=1).pow(2).mean().item(), rel=1e-5)
    assert uniformity(x) == pytest.approx(torch.pdist(x).pow(2).mul(-2).exp().mean().log().item(), rel=1e-5)
    assert uniformity(x, t=3) == pytest.approx(torch.pdist(x).pow(2).mul(-3).exp().mean().log().item(), rel=1e-5)


def test_blocks_change_nothing(monkeypatch):
    x, y = on_sphere(50), on_sphere(50, seed=1)
    expected = alignment(x, y), uniformity(x)
    monkeypatch.setattr(geometry, "_BLOCK_ROWS", 7)
    assert (alignment(x, y), uniformity(x)) == pytest.approx(expected, rel=1e-6)


def test_extremes():
    x = on_sphere(2)
    assert alignment(x, x) == 0 and alignment(x, -x) == pytest.approx(4)
    assert uniformity(torch.stack([x[0], -x[0]])) == pytest.approx(-8, rel=1e-6)
    assert uniformity(x[:1].repeat(5, 1)) == pytest.approx(0, abs=1e-6)


def test_many_rows_are_sampled_always_alike(monkeypatch):
    x = on_sphere(400)
    monkeypatch.setattr(geometry, "MAX_UNIFORMITY_ROWS", 200)
    assert uniformity(x) == uniformity(x)
    assert math.isclose(uniformity(x), torch.pdist(x).pow(2).mul(-2).exp().mean().log().item(), rel_tol=0.05)


def test_one_row_has_no_pair():
    with pytest.raises(ValueError, match="pairs"):
        uniformity(on_sphere(1))
