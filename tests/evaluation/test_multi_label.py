"""Numbers of several labels a row against scikit-learn, and what they cost."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from mmhf.errors import InputError
from mmhf.evaluation.label_calibration import fit_shared_temperature, label_calibration
from mmhf.evaluation.multi_label import (
    MULTI_LABEL_PROTOCOLS,
    evaluate_multi_label,
    fit_thresholds,
    multi_label_metrics,
    surest_mistakes,
)

NAMES = [f"l{number}" for number in range(7)]
LIMITS = [0.5, 0.3, 0.7, 0.5, 0.2, 0.5, 0.9]


@pytest.fixture(scope="module")
def split() -> tuple[np.ndarray, np.ndarray]:
    """Logits with ties and labels of all frequencies; the last label is in no row, and never predicted."""
    random = np.random.default_rng(0)
    labels = (random.random((5000, 7)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.0]).astype(np.int8)
    logits = np.round(random.normal(size=labels.shape) + 2 * labels - 1, 1).astype(np.float32)
    logits[:, 6] = -9
    return logits, labels


@pytest.mark.parametrize("limits", [None, LIMITS])
def test_they_are_those_of_scikit_learn(split, limits):
    logits, labels = split
    found = evaluate_multi_label(logits, labels, NAMES, thresholds=limits)
    chances = expit(logits.astype(np.float64))
    chosen = (chances >= (0.5 if limits is None else np.array(limits))).astype(int)
    seen = [0, 1, 2, 3, 4, 5]
    expected = {
        "map": sk.average_precision_score(labels[:, seen], logits[:, seen], average="macro"),
        "f1_micro": sk.f1_score(labels, chosen, average="micro"),
        "f1_macro": sk.f1_score(labels, chosen, average="macro", zero_division=np.nan),
        "f1_samples": sk.f1_score(labels, chosen, average="samples", zero_division=1.0),
        "precision_micro": sk.precision_score(labels, chosen, average="micro"),
        "recall_micro": sk.recall_score(labels, chosen, average="micro"),
        "subset_accuracy": sk.accuracy_score(labels, chosen),
        "hamming_loss": sk.hamming_loss(labels, chosen),
        "roc_auc": sk.roc_auc_score(labels[:, seen], logits[:, seen], average="macro"),
        "brier": np.mean([sk.brier_score_loss(labels[:, at], chances[:, at], pos_label=1) for at in range(7)]),
        "nll": np.mean(np.where(labels, -np.log(chances), -np.log1p(-chances))),
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert set(found.metrics) == set(MULTI_LABEL_PROTOCOLS) - {"loss"}
    columns = sk.precision_recall_fscore_support(labels, chosen, average=None, zero_division=0.0)
    for at, row in enumerate(found.per_class):
        assert [row[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(
            [float(column[at]) for column in columns], abs=1e-9
        )
        assert row["predicted"] == chosen[:, at].sum()
        if at in seen:
            assert row["average_precision"] == pytest.approx(sk.average_precision_score(labels[:, at], logits[:, at]))
            assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(labels[:, at], logits[:, at]))
            assert row["brier"] == pytest.approx(sk.brier_score_loss(labels[:, at], chances[:, at]))
        assert row["ece"] == pytest.approx(binned_error(chances[:, at], labels[:, at]))
    assert found.per_class[6]["average_precision"] is None
    assert np.array_equal(found.together, labels.astype(int).T @ labels)


def binned_error(chances: np.ndarray, present: np.ndarray) -> float:
    bins = np.clip(np.ceil(chances * 15).astype(int) - 1, 0, 14)
    return sum(abs(present[bins == each].sum() - chances[bins == each].sum()) for each in set(bins)) / len(bins)


def test_rows_without_labels_are_left_out(split):
    logits, labels = split
    hidden = labels.astype(np.float32)
    hidden[::3] = -100
    kept = np.arange(len(labels)) % 3 > 0
    found = evaluate_multi_label(logits, hidden, NAMES, loss=1.5)
    assert found.num_ignored == (~kept).sum()
    alone = evaluate_multi_label(logits[kept], labels[kept], NAMES)
    assert found.metrics == pytest.approx({"loss": 1.5, **alone.metrics})
    assert fit_thresholds(logits, hidden) == fit_thresholds(logits[kept], labels[kept])
    nothing = evaluate_multi_label(logits, np.full_like(hidden, -100), NAMES)
    assert nothing.metrics == {}
    assert set(nothing.undefined.values()) == {"no row has labels"}


def test_what_cannot_be_measured(split):
    logits, labels = split
    with pytest.raises(ValueError, match=r"expected logits and labels \(N, 6\), got"):
        evaluate_multi_label(logits, labels, NAMES[:6])
    broken = logits.copy()
    broken[17, 3] = np.nan
    with pytest.raises(InputError, match="the logits of 1 of 5000 rows are NaN or infinite"):
        multi_label_metrics(broken, labels, NAMES)


@pytest.mark.slow
def test_each_threshold_has_the_best_f1(split):
    logits, labels = split
    limits = fit_thresholds(logits, labels)
    chances = expit(logits.astype(np.float64))
    best = evaluate_multi_label(logits, labels, NAMES, thresholds=limits)
    for at in range(6):
        tried = [sk.f1_score(labels[:, at], chances[:, at] >= limit) for limit in np.unique(chances[:, at])]
        assert best.per_class[at]["f1"] == pytest.approx(max(tried))
        assert np.abs(chances[:, at] - limits[at]).min() > 1e-4, "half-way, so that rounding decides nothing"
    assert limits[6] == 0.5, "no row has it"


def test_one_temperature_fits_all_labels():
    random = np.random.default_rng(1)
    true = random.normal(size=(4000, 5))
    labels = random.random(true.shape) < expit(true)
    assert fit_shared_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)
    with pytest.raises(InputError, match="no validation row has labels"):
        fit_shared_temperature(true, np.full(true.shape, -100))


def test_all_labels_are_calibrated_as_their_rows_say(split):
    logits, labels = split
    given = logits / np.float32(2.5)
    evaluation = evaluate_multi_label(given, labels, NAMES, temperature=2.5)
    found = label_calibration(evaluation, given, labels)
    chances, raw = expit(given.astype(np.float64)), expit(logits.astype(np.float64))
    pooled = [(each.num_rows, each.confidence, each.accuracy) for each in found.bins]
    numbers = np.clip(np.ceil(chances.ravel() * 15).astype(int) - 1, 0, 14)
    expected = [
        (rows.sum(), chances.ravel()[rows].mean(), labels.ravel()[rows].mean())
        for rows in (numbers == number for number in np.unique(numbers))
    ]
    np.testing.assert_allclose(pooled, expected)
    errors = [binned_error(raw[:, at], labels[:, at]) for at in range(len(NAMES))]
    assert found.metrics["ece_uncalibrated"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert found.metrics["ece"] == evaluation.metrics["ece"]


def test_the_surest_mistakes():
    logits = np.array([[4.0, -4.0], [-3.0, 1.0], [2.0, 2.5], [0.5, -1.0]])
    labels = np.array([[1, 0], [1, 0], [0, 0], [-100, -100]])
    found = surest_mistakes(logits, labels)
    assert [(each.index, each.label, each.has_it) for each in found] == [(1, 0, True), (2, 1, False)]
    assert [each.probability for each in found] == pytest.approx(expit([-3.0, 2.5]))


@pytest.mark.slow
def test_little_memory_beside_the_rows_and_no_more_time_than_scikit_learn():
    random = np.random.default_rng(0)
    labels = (random.random((60_000, 40)) < 0.05).astype(np.float32)
    logits = (random.normal(size=labels.shape) + labels).astype(np.float32)
    names = [str(number) for number in range(40)]
    tracemalloc.start()
    evaluate_multi_label(logits, labels, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.8 * (logits.nbytes + labels.nbytes), "parts of rows, and one label at a time"
    start = time.process_time()
    evaluate_multi_label(logits, labels, names)
    ours = time.process_time() - start
    start = time.process_time()
    chosen = logits >= 0
    sk.average_precision_score(labels, logits, average=None)
    sk.roc_auc_score(labels, logits, average=None)
    for average in ("micro", "macro", "samples"):
        sk.f1_score(labels, chosen, average=average, zero_division=0.0)
    assert ours < 1.5 * (time.process_time() - start)
