"""How far a classifier's probabilities can be trusted, and when it should rather not answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from mmhf.errors import InputError
from mmhf.evaluation.classification import select_labelled, softmax_in_place

NUM_BINS = 15
"""Bins of the expected calibration error, as in Guo et al., 2017."""
TEMPERATURES = (0.02, 50.0)
"""Between which a temperature is looked for."""

CALIBRATION_PROTOCOLS: dict[str, str] = {
    "ece": f"Expected calibration error: mean over {NUM_BINS} equal bins of confidence (the prediction's probability) "
    "of |accuracy - mean confidence|, weighted by rows (Guo et al., 2017).",
    "ece_uncalibrated": "The same of the logits before they are divided by the temperature.",
    "nll": "Mean negative log of the label's probability, in nats, without class weights or smoothing.",
    "brier": "Mean over rows of the squared distance between the probabilities and the label's indicator (0 to 2).",
    "aurc": "Area under the risk-coverage curve: mean, over the rows in order of falling confidence, of the errors' "
    "share among the rows that are at least as sure (Geifman and El-Yaniv, 2017). Lower is better.",
    "coverage": "Share of the rows whose confidence reaches the model's abstention threshold.",
    "selective_accuracy": "Accuracy on those rows.",
}
"""How each number of `evaluate_calibration` is defined."""


Answer = Callable[[NDArray[np.float64]], NDArray[np.int64]]


def most_probable(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) predictions by (N, C) probabilities."""
    predictions: NDArray[np.int64] = probabilities.argmax(axis=1)
    return predictions


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar confidence: the bin's edges, its rows, their mean confidence and their accuracy."""

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class CalibrationEvaluation:
    """All that one split says about a model's confidence.

    Attributes:
        metrics (`dict[str, float]`): The numbers that `protocols` defines; empty when no row has a label.
        bins (`list[ReliabilityBin]`): Those that have rows, in order.
        coverages, accuracies (`NDArray` of shape `(K,)`): The selective-prediction curve: accuracy when only the
            surest share of the rows is answered, at each distinct confidence.
        temperature (`float`): What the logits have been divided by.
        abstain_below (`float`, *optional*): The model's abstention threshold.
        protocols (`Mapping[str, str]`): Each number's definition.
    """

    metrics: dict[str, float]
    bins: list[ReliabilityBin]
    coverages: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    temperature: float = 1.0
    abstain_below: float | None = None
    protocols: Mapping[str, str] = field(default_factory=lambda: CALIBRATION_PROTOCOLS)


def evaluate_calibration(
    logits: ArrayLike,
    labels: ArrayLike,
    num_labels: int,
    *,
    temperature: float = 1.0,
    abstain_below: float | None = None,
    answer: Answer = most_probable,
) -> CalibrationEvaluation:
    """Measure the confidence of a split's predictions.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): As the model gives them, already divided by its temperature.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are excluded.
        num_labels (`int`): Number of classes C.
        temperature (`float`): What the logits were divided by.
        abstain_below (`float`, *optional*): The model's abstention threshold.
        answer (`Callable`, *optional*): From probabilities (N, C) to the predictions (N,).
    """
    scores, targets = select_labelled(logits, labels, num_labels)
    if not len(targets):
        return CalibrationEvaluation(metrics={}, bins=[], coverages=np.zeros(0), accuracies=np.zeros(0))
    probabilities, losses = softmax_in_place(scores, targets)
    confidences, right = _confidences(probabilities, targets, answer)
    coverages, accuracies, thresholds = selective_curve(confidences, right)
    bins = reliability_bins(confidences, right)
    probabilities[np.arange(len(targets)), targets] -= 1
    metrics = {
        "ece": calibration_error(bins),
        "nll": float(losses.mean()),
        "brier": float(np.square(probabilities, out=probabilities).sum(axis=1).mean()),
        "aurc": float(((1 - accuracies) * np.diff(coverages, prepend=0.0)).sum()),
    }
    if temperature != 1.0:
        scores, _ = select_labelled(logits, labels, num_labels)
        scores *= temperature
        raw = _confidences(softmax_in_place(scores, targets)[0], targets, answer)
        metrics["ece_uncalibrated"] = calibration_error(reliability_bins(*raw))
    if abstain_below is not None:
        answered = confidences >= abstain_below
        metrics["coverage"] = float(answered.mean())
        if answered.any():
            metrics["selective_accuracy"] = float(right[answered].mean())
    return CalibrationEvaluation(
        metrics=metrics,
        bins=bins,
        coverages=coverages,
        accuracies=accuracies,
        temperature=temperature,
        abstain_below=abstain_below,
    )


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Temperature at which the labels are most probable. Source: Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Of rows that the model was not trained on.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are excluded.

    Returns:
        `float` between 0.02 and 50; predictions that are all right, or no better than chance, lie at an end of it.

    Raises:
        InputError: no row has a label, or a logit is NaN or infinite.
    """
    scores, targets = select_labelled(logits, labels, np.asarray(logits).shape[1])
    if not len(targets):
        raise InputError("evaluation.calibrate: no validation row has a label to fit the temperature on")
    rows = np.arange(len(targets))

    def loss(log_inverse: float) -> float:
        return float(-log_softmax(scores * np.exp(log_inverse), axis=1)[rows, targets].mean())

    # The loss is convex in 1 / T, so that it has one minimum in its logarithm, too.
    bounds = tuple(sorted(-np.log(TEMPERATURES)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return float(np.exp(-found.x))


def abstention_threshold(logits: ArrayLike, labels: ArrayLike, target_accuracy: float) -> float | None:
    """Lowest confidence from which on predictions are right as often as wanted.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Divided by the temperature, if there is one.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are excluded.
        target_accuracy (`float`): Between 0 and 1.

    Returns:
        `float`, or None when not even the surest predictions are right as often.
    """
    scores, targets = select_labelled(logits, labels, np.asarray(logits).shape[1])
    if not len(targets):
        return None
    _, accuracies, thresholds = selective_curve(*_confidences(softmax_in_place(scores, targets)[0], targets))
    enough = np.flatnonzero(accuracies >= target_accuracy)
    return float(thresholds[enough[-1]]) if len(enough) else None


def selective_curve(
    confidences: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Answer the surest rows only: share of rows answered and accuracy among them, at each distinct confidence.

    Args:
        confidences (`NDArray` of shape `(N,)`): Probability of each prediction.
        right (`NDArray` of shape `(N,)`): Whether the prediction is the label.

    Returns:
        `tuple`: coverages, rising to 1, accuracies, and the confidences from which on rows are answered, falling.
    """
    order = np.argsort(-confidences, kind="stable")
    falling = confidences[order]
    # Rows that are equally sure are answered together.
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    answered = last + 1
    return answered / len(falling), np.cumsum(right[order])[last] / answered, falling[last]


def reliability_bins(
    confidences: NDArray[np.float64], right: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Sort predictions into equal bins of confidence, each open below and closed above; empty ones are left out."""
    numbers = np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [
        ReliabilityBin(
            low=number / num_bins,
            high=(number + 1) / num_bins,
            num_rows=int((numbers == number).sum()),
            confidence=float(confidences[numbers == number].mean()),
            accuracy=float(right[numbers == number].mean()),
        )
        for number in np.unique(numbers).tolist()
    ]


def calibration_error(bins: list[ReliabilityBin]) -> float:
    """Expected calibration error of binned predictions."""
    total = sum(each.num_rows for each in bins)
    return sum(each.num_rows * abs(each.accuracy - each.confidence) for each in bins) / total


def _confidences(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], answer: Answer = most_probable
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    predictions = answer(probabilities)
    return probabilities[np.arange(len(targets)), predictions], predictions == targets
