from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from mmhf.errors import InputError
from mmhf.evaluation.calibration import (
    abstention_threshold,
    evaluate_calibration,
    fit_temperature,
    reliability_bins,
    selective_curve,
)
from mmhf.evaluation.plots import plot_reliability, plot_selective


@pytest.fixture
def honest() -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the distribution that the labels are drawn from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6000, 4))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((6000, 1))).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(honest, scale):
    logits, labels = honest
    temperature = fit_temperature(scale * logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)

    def loss(at: float) -> float:
        return -log_softmax(scale * logits / at, axis=1)[np.arange(len(labels)), labels].mean()

    assert loss(temperature) <= min(loss(temperature * 1.01), loss(temperature / 1.01))


def test_rows_without_a_label_do_not_count(honest):
    logits, labels = honest
    with_others = np.concatenate([labels, np.full(50, -100)]), np.concatenate([logits, np.full((50, 4), 9.0)])
    assert fit_temperature(with_others[1], with_others[0]) == pytest.approx(fit_temperature(logits, labels))
    with pytest.raises(InputError, match="no validation row has a label"):
        fit_temperature(logits[:2], [-100, -100])


def test_overconfidence_is_measured_and_calibrated_away(honest):
    logits, labels = honest
    sure = evaluate_calibration(3 * logits, labels, 4)
    served = evaluate_calibration(logits, labels, 4, temperature=3.0)
    assert sure.metrics["ece"] > 0.1 > 0.03 > served.metrics["ece"]
    assert served.metrics["ece_uncalibrated"] == pytest.approx(sure.metrics["ece"])
    assert served.metrics["nll"] == pytest.approx(log_loss(labels, softmax(logits, axis=1)))
    one_hot = np.eye(4)[labels]
    assert served.metrics["brier"] == pytest.approx(((softmax(logits, axis=1) - one_hot) ** 2).sum(axis=1).mean())


def test_the_error_by_hand():
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.6])
    bins = reliability_bins(confidences, np.array([True, True, True, False, True, False]), num_bins=10)
    assert [(each.num_rows, round(each.accuracy, 3)) for each in bins] == [(2, 0.5), (4, 0.75)]
    assert [round(each.confidence, 3) for each in bins] == [0.575, 0.95]
    logits = np.log(np.array([[0.95, 0.05]] * 4 + [[0.55, 0.45], [0.3, 0.7]]))
    evaluated = evaluate_calibration(logits, [0, 0, 0, 1, 0, 0], 2)
    assert evaluated.metrics["ece"] == pytest.approx((4 * 0.2 + 0.45 + 0.7) / 6)


def test_answering_the_surest_first():
    coverages, accuracies, thresholds = selective_curve(
        np.array([0.9, 0.6, 0.6, 0.8, 0.5]), np.array([True, True, False, True, False])
    )
    assert coverages.tolist() == [0.2, 0.4, 0.8, 1.0]
    assert accuracies.tolist() == [1.0, 1.0, 0.75, 0.6]
    assert thresholds.tolist() == [0.9, 0.8, 0.6, 0.5]


def test_the_threshold_reaches_its_target(honest):
    logits, labels = honest
    threshold = abstention_threshold(logits, labels, 0.9)
    served = evaluate_calibration(logits, labels, 4, abstain_below=threshold)
    assert 0.9 <= served.metrics["selective_accuracy"] < 0.91
    looser = evaluate_calibration(logits, labels, 4, abstain_below=threshold - 0.01)
    assert looser.metrics["selective_accuracy"] < 0.9 and looser.metrics["coverage"] > served.metrics["coverage"]
    wrong = np.eye(4)[(labels + 1) % 4]
    assert abstention_threshold(wrong, labels, 0.9) is None


def test_ranking_confidence_well_lowers_the_risk(honest):
    logits, labels = honest
    right = logits.argmax(axis=1) == labels
    sureness = np.where(right, 5.0, 1.0) + np.random.default_rng(1).random(len(labels))
    best = np.eye(4)[np.where(right, labels, (labels + 1) % 4)] * sureness[:, None]
    evaluated = evaluate_calibration(best, labels, 4)
    error = 1 - right.mean()
    assert evaluated.metrics["aurc"] == pytest.approx(error + (1 - error) * np.log(1 - error), abs=1e-3)


@pytest.mark.usefixtures("drawn_figures")
def test_the_diagrams_are_drawn(honest, tmp_path):
    logits, labels = honest
    evaluated = evaluate_calibration(2 * logits, labels, 4, temperature=1.5, abstain_below=0.8)
    plot_reliability(evaluated, tmp_path / "plots" / "reliability.png")
    plot_selective(evaluated, tmp_path / "plots" / "selective.png")
    for name in ("reliability", "selective"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as image:
            assert min(image.size) > 300 and len(set(image.convert("L").tobytes())) > 20


def test_a_split_without_labels_has_no_numbers():
    evaluated = evaluate_calibration(np.zeros((3, 2)), [-100] * 3, 2)
    assert evaluated.metrics == {} and evaluated.bins == []
