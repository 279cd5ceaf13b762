"""Numbers of ordered classes: equal to scikit-learn's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax
from sklearn import metrics as sk

from mmhf.evaluation.ordinal import constant_metrics, evaluate_ordinal

NAMES = ["none", "mild", "moderate", "severe"]


@pytest.fixture
def split() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(4, size=150)
    distance = np.abs(np.arange(4) - labels[:, None] - random.normal(size=(150, 1)))
    return log_softmax(-(distance**2), axis=1), labels


def test_metrics_are_those_of_scikit_learn_and_scipy(split):
    logits, labels = split
    found = evaluate_ordinal(logits, labels, NAMES, loss=0.7)
    chances = np.exp(logits)
    answers, expected_ranks = (chances.cumsum(axis=1) >= 0.5).argmax(axis=1), chances @ np.arange(4)
    expected = {
        "loss": 0.7,
        "accuracy": sk.accuracy_score(labels, answers),
        "f1_macro": sk.f1_score(labels, answers, average="macro"),
        "kappa_quadratic": sk.cohen_kappa_score(labels, answers, weights="quadratic"),
        "mae": sk.mean_absolute_error(labels, answers),
        "spearman": stats.spearmanr(expected_ranks, labels).statistic,
        "kendall": stats.kendalltau(expected_ranks, labels).statistic,
        "nll": sk.log_loss(labels, chances),
    }
    assert found.metrics == pytest.approx(expected, abs=1e-9)
    np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(labels, answers))
    columns = sk.precision_recall_fscore_support(labels, answers)
    assert [row["f1"] for row in found.per_class] == pytest.approx(columns[2].tolist())
    same = constant_metrics(1, found)
    assert same["mae"] == pytest.approx(sk.mean_absolute_error(labels, np.ones(150)))
    assert same["kappa_quadratic"] == pytest.approx(0)


def test_rows_without_a_label_are_left_out(split):
    logits, labels = split
    labels = labels.copy()
    labels[[0, 5]] = -100
    found = evaluate_ordinal(logits, labels, NAMES)
    assert (found.num_rows, found.num_ignored) == (148, 2)
    assert found.metrics == pytest.approx(evaluate_ordinal(logits[labels >= 0], labels[labels >= 0], NAMES).metrics)
    places = found.furthest_off(count=5)
    distance = np.abs(found.expected - labels[found.rows])
    assert distance[places[0]] == distance.max() and (distance[places] > 0.5).all()


def test_what_cannot_be_defined_is_said():
    one = evaluate_ordinal(np.zeros((3, 2)), [1, 1, 1], ["a", "b"])
    assert set(one.undefined) == {"spearman", "kendall"} or "kappa_quadratic" in one.undefined
    nothing = evaluate_ordinal(np.zeros((2, 2)), [-100, -100], ["a", "b"])
    assert nothing.metrics == {} and set(nothing.undefined.values()) == {"no row has a label"}
