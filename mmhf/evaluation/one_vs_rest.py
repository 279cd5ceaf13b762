"""What frozen features give for several labels a row without training a network: a logistic regression for each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from mmhf.evaluation.baselines import (
    CPU_SECONDS,
    MAX_ITERATIONS,
    Floats,
    Rows,
    along_strengths,
    learnt_rows,
    mean_and_scale,
)
from mmhf.evaluation.multi_label import evaluate_multi_label, fit_thresholds, multi_label_metrics


class OneVsRest:
    """A logistic regression of each label on standardised features, as scikit-learn's, and all of them at once.

    Args:
        rows ([`Rows`]): What they learn from; labels are (N, C), 0 and 1.
        strength (`float`): scikit-learn's `C`; larger is less regularised.
        start ([`OneVsRest`], *optional*): Begin where these ended, which saves time; of the same rows.
    """

    def __init__(self, rows: Rows, *, strength: float, start: OneVsRest | None = None) -> None:
        self.strength = strength
        labels = np.asarray(rows.labels) > 0.5
        self._mean, self._scale = mean_and_scale(rows.features)
        features = (rows.features - self._mean) / self._scale
        self._weight = np.zeros((labels.shape[1], features.shape[1]), features.dtype)
        always = labels.all(axis=0)
        self._bias = np.log(len(labels) + 1) * np.where(always, 1.0, -1.0).astype(features.dtype)
        learnt = labels.any(axis=0) & ~always
        if start is None:
            weights, biases = self._weight[learnt], np.zeros(learnt.sum(), features.dtype)
        else:
            weights, biases = start._weight[learnt], start._bias[learnt]
        if learnt.any():
            targets = labels[:, learnt].astype(features.dtype)
            self._weight[learnt], self._bias[learnt] = _minimise(features, targets, strength, weights, biases)

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """(N, C) of (N, D) features."""
        answers: Floats = (features - self._mean) / self._scale @ self._weight.T + self._bias
        return answers


def _minimise(
    features: NDArray[np.floating],
    targets: NDArray[np.floating],
    strength: float,
    weights: NDArray[np.floating],
    biases: NDArray[np.floating],
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Weights (C, D) and biases (C,) of least mean cross entropy, and penalty, beginning with those given."""
    penalty = 1 / (strength * len(features))

    def loss_and_gradient(flat: NDArray[np.floating]) -> tuple[float, NDArray[np.floating]]:
        weights, biases = np.split(flat.reshape(targets.shape[1], -1), [-1], axis=1)
        logits = features @ weights.T + biases[:, 0]
        loss = (np.logaddexp(0, logits) - targets * logits).sum() / len(features)
        off = (expit(logits) - targets) / len(features)
        gradient = np.concatenate([off.T @ features + penalty * weights, off.sum(axis=0)[:, None]], axis=1)
        return float(loss + penalty / 2 * (weights**2).sum()), gradient.ravel()

    found = minimize(
        loss_and_gradient,
        np.concatenate([weights, biases[:, None]], axis=1).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "gtol": 1e-6 if features.dtype == np.float64 else 1e-4},
    ).x.reshape(len(weights), -1)
    return found[:, :-1], found[:, -1]


def one_vs_rest(
    train: Rows,
    validation: Rows | None,
    tested: Mapping[str, Rows],
    label_names: Sequence[str],
    *,
    with_thresholds: bool = True,
) -> dict[str, dict[str, float]]:
    """What the best of a few regularisations of one logistic regression a label scores.

    Args:
        train, validation ([`Rows`]): What they learn from, and what regularisation, by mean average precision, and
            thresholds are chosen on; without the second, a fifth of the first chooses the former.
        tested (`Mapping[str, Rows]`): What they are measured on, by split.
        label_names (`Sequence[str]`): The labels.
        with_thresholds (`bool`): Whether a label is given from the probability on that is best for its F1, as the
            model's is; else from 0.5 on.

    Returns:
        `dict[str, dict[str, float]]`: Split → the numbers of `multi_label_metrics`, and `cpu_seconds`.
    """
    begun = time.process_time()
    kept = learnt_rows(len(train.labels), train.features.shape[1], len(label_names))
    train = learnt = Rows(train.features[kept], train.labels[kept])
    judge = validation
    if judge is None or not len(judge.labels):
        held = np.arange(len(train.labels)) % 5 == 1
        learnt, judge = (Rows(train.features[chosen], train.labels[chosen]) for chosen in (~held, held))
    found = along_strengths(
        lambda strength, start: OneVsRest(learnt, strength=strength, start=start),
        lambda probe: multi_label_metrics(probe.logits(judge.features), judge.labels, label_names).get("map", 0.0),
    )
    best = max(found, key=itemgetter(0))[1]
    limits = None
    if validation is not None and len(validation.labels) and with_thresholds:
        limits = fit_thresholds(best.logits(validation.features), validation.labels)
    if learnt is not train:
        best = OneVsRest(train, strength=best.strength)
    measured = {
        split: evaluate_multi_label(best.logits(rows.features), rows.labels, label_names, thresholds=limits).metrics
        for split, rows in tested.items()
    }
    seconds = time.process_time() - begun
    return {split: {**scores, CPU_SECONDS: seconds} for split, scores in measured.items()}
