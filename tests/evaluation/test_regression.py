"""Numbers of regressions: equal to scikit-learn's and scipy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics as sk
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mmhf.errors import InputError
from mmhf.evaluation.baselines import RIDGE_STRENGTHS, Rows, ridge_regression
from mmhf.evaluation.plots import plot_residuals
from mmhf.evaluation.regression import constant_metrics, evaluate_regression, rank_correlations


@pytest.fixture
def split() -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels (N, 2), with ties."""
    random = np.random.default_rng(0)
    labels = np.stack([random.integers(1, 9, size=200), random.normal(2000, 30, size=200)], axis=1)
    return labels + random.normal(size=labels.shape) * [1.0, 20.0], labels


def test_metrics_are_those_of_scikit_learn_and_scipy(split):
    answers, labels = split
    found = evaluate_regression(answers, labels, ["a", "b"], loss=0.5)
    expected = {
        "loss": 0.5,
        "mae": sk.mean_absolute_error(labels, answers),
        "rmse": sk.root_mean_squared_error(labels, answers),
        "r2": sk.r2_score(labels, answers),
        "spearman": np.mean([stats.spearmanr(answers[:, at], labels[:, at]).statistic for at in (0, 1)]),
        "kendall": np.mean([stats.kendalltau(answers[:, at], labels[:, at]).statistic for at in (0, 1)]),
    }
    assert found.metrics == pytest.approx(expected, abs=1e-9)
    assert [row["number"] for row in found.by_number] == ["a", "b"]
    assert found.by_number[1]["r2"] == pytest.approx(sk.r2_score(labels[:, 1], answers[:, 1]))
    mean = constant_metrics(labels.mean(axis=0), found)
    assert mean["r2"] == pytest.approx(0) and "spearman" not in mean
    assert mean["mae"] == pytest.approx(sk.mean_absolute_error(labels, np.tile(labels.mean(axis=0), (200, 1))))


def test_rows_without_numbers_are_left_out_and_the_largest_errors_found(split):
    answers, labels = split
    labels = labels.copy()
    labels[3, 1] = labels[7] = np.nan
    answers[9, 0] = 100.0
    found = evaluate_regression(answers, labels, ["a", "b"])
    assert (found.num_rows, found.num_ignored) == (198, 2)
    kept = np.isfinite(labels).all(axis=1)
    assert found.metrics["mae"] == pytest.approx(sk.mean_absolute_error(labels[kept], answers[kept]))
    assert found.rows[found.furthest_off()[0]] == 9


def test_what_cannot_be_defined_is_said():
    same = evaluate_regression(np.zeros((3, 1)), np.ones((3, 1)), ["a"])
    assert set(same.metrics) == {"mae", "rmse"} and set(same.undefined) == {"r2", "spearman", "kendall"}
    nothing = evaluate_regression(np.zeros((2, 1)), np.full((2, 1), np.nan), ["a"])
    assert nothing.metrics == {} and nothing.num_rows == 0
    assert rank_correlations(np.array([1.0]), np.array([2.0])) == (None, None)
    with pytest.raises(InputError, match="1 of 2 rows are NaN or infinite: the training has diverged"):
        evaluate_regression([[np.inf], [0.0]], [[1.0], [2.0]], ["a"])
    with pytest.raises(ValueError, match="expected answers and labels"):
        evaluate_regression(np.zeros((3, 2)), np.zeros((3, 1)), ["a"])


def test_the_ridge_is_scikit_learns():
    random = np.random.default_rng(0)
    features = random.normal(3, 2, size=(300, 12))
    labels = features[:, :2] @ random.normal(size=(2, 2)) + random.normal(size=(300, 2))
    train, validation, test = (Rows(features[at], labels[at]) for at in np.split(np.arange(300), [180, 240]))
    found = ridge_regression(train, validation, {"validation": validation, "test": test}, ["a", "b"])
    scaler = StandardScaler().fit(train.features)
    scores = {}
    for strength in RIDGE_STRENGTHS:
        ridge = Ridge(alpha=strength * 180).fit(scaler.transform(train.features), train.labels)
        judged = sk.r2_score(validation.labels, ridge.predict(scaler.transform(validation.features)))
        scores[judged] = sk.r2_score(test.labels, ridge.predict(scaler.transform(test.features)))
    assert found["test"]["r2"] == pytest.approx(scores[max(scores)], abs=1e-9)
    assert found["validation"]["cpu_seconds"] > 0
    alone = ridge_regression(train, None, {"test": test}, ["a", "b"])
    assert alone["test"]["r2"] == pytest.approx(found["test"]["r2"], abs=0.05)


def test_residuals_are_drawn(split, tmp_path: Path):
    plot_residuals(*split, ["how many", "when"], tmp_path / "plots" / "residuals.png")
    with Image.open(tmp_path / "plots" / "residuals.png") as image:
        width, height = image.size
    assert width > height > 500
