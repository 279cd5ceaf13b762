"""How far the probabilities of several labels a row can be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from mmhf.errors import InputError
from mmhf.evaluation.calibration import CALIBRATION_PROTOCOLS, TEMPERATURES, CalibrationEvaluation, ReliabilityBin
from mmhf.evaluation.multi_label import (
    MULTI_LABEL_PROTOCOLS,
    NUM_BINS,
    MultiLabelEvaluation,
    add_to_bins,
    calibration_errors,
    parts_of,
)

LABEL_CALIBRATION_PROTOCOLS = {
    "ece": MULTI_LABEL_PROTOCOLS["ece"],
    "ece_uncalibrated": CALIBRATION_PROTOCOLS["ece_uncalibrated"],
    "nll": MULTI_LABEL_PROTOCOLS["nll"],
    "brier": MULTI_LABEL_PROTOCOLS["brier"],
}
"""How each number of `label_calibration` is defined."""


def label_calibration(evaluation: MultiLabelEvaluation, logits: ArrayLike, labels: ArrayLike) -> CalibrationEvaluation:
    """The calibration of all labels together; the reliability of each is in the evaluation's bins.

    Args:
        evaluation ([`MultiLabelEvaluation`]): Of the split.
        logits, labels (`ArrayLike` of shape `(N, C)`): What it was made of.
    """
    metrics = {name: evaluation.metrics[name] for name in LABEL_CALIBRATION_PROTOCOLS if name in evaluation.metrics}
    if evaluation.temperature != 1 and evaluation.num_rows:
        bins = np.zeros_like(evaluation.bins)
        for _, present, scores in parts_of(np.asarray(logits), np.asarray(labels)):
            add_to_bins(bins, present, expit(scores * evaluation.temperature))
        metrics["ece_uncalibrated"] = float(calibration_errors(bins).mean())
    return CalibrationEvaluation(
        metrics=metrics,
        bins=label_bins(evaluation.bins.sum(axis=1)),
        coverages=np.zeros(0),
        accuracies=np.zeros(0),
        temperature=evaluation.temperature,
        protocols=LABEL_CALIBRATION_PROTOCOLS,
    )


def label_bins(bins: NDArray[np.float64]) -> list[ReliabilityBin]:
    """Of (3, B) sums over rows: the bins that have rows; `accuracy` is the share of rows that have the label."""
    return [
        ReliabilityBin(
            low=at / NUM_BINS,
            high=(at + 1) / NUM_BINS,
            num_rows=int(rows),
            confidence=float(said / rows),
            accuracy=float(present / rows),
        )
        for at, (rows, present, said) in enumerate(bins.T)
        if rows
    ]


def fit_shared_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature at which the labels' sigmoid probabilities fit best, one for all labels, between 0.02 and 50.

    Args:
        logits, labels (`ArrayLike` of shape `(N, C)`): As `evaluate_multi_label` takes them.

    Raises:
        InputError: No row has labels.
    """
    scores, targets = np.asarray(logits), np.asarray(labels)

    def slope(log_inverse: float) -> float:
        """Of the loss, which is convex in 1 / T, over 1 / T."""
        inverse, total, count = np.exp(log_inverse), 0.0, 0
        for part in parts_of(scores, targets):
            signed = np.where(part.present, -part.scores, part.scores)
            total += float((signed * expit(signed * inverse)).sum())
            count += len(signed)
        if not count:
            raise InputError("evaluation.calibrate: no validation row has labels to fit the temperature on")
        return total / count

    low, high = sorted(-np.log(TEMPERATURES))
    if slope(low) >= 0:
        return TEMPERATURES[1]
    return TEMPERATURES[0] if slope(high) <= 0 else float(np.exp(-brentq(slope, low, high, xtol=1e-7)))
