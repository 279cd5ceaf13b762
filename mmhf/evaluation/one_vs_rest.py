"""What frozen features give for several labels a row without training a network: a logistic regression for each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

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
    """scikit-learn's `LogisticRegression` of each label on standardised features.

    Args:
        rows ([`Rows`]): What they learn from; labels are (N, C), 0 and 1.
        strength (`float`): scikit-learn's `C`; larger is less regularised.
        start ([`OneVsRest`], *optional*): Begin where these ended, which saves time; of the same rows.
    """

    def __init__(self, rows: Rows, *, strength: float, start: OneVsRest | None = None) -> None:
        # Here, because scikit-learn takes a second to load, which nobody waits for who only plans.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self.strength = strength
        labels = np.asarray(rows.labels) > 0.5
        self._mean, self._scale = mean_and_scale(rows.features)
        features = (rows.features - self._mean) / self._scale
        self._weight, self._bias = np.zeros((labels.shape[1], features.shape[1])), np.zeros(labels.shape[1])
        tolerance = 1e-6 if features.dtype == np.float64 else 1e-4
        regression = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=tolerance, warm_start=True)
        for label, present in enumerate(labels.T):
            if present.all() or not present.any():
                self._bias[label] = np.log(len(present) + 1) * (1 if present.all() else -1)
                continue
            if start is not None:
                regression.coef_, regression.intercept_ = start._weight[label : label + 1], start._bias[[label]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                regression.fit(features, present)
            self._weight[label], self._bias[label] = regression.coef_[0], regression.intercept_[0]
            del regression.coef_  # the next label has nothing to do with this one

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """(N, C) of (N, D) features."""
        answers: Floats = (features - self._mean) / self._scale @ self._weight.T + self._bias
        return answers


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
    tried = along_strengths(
        lambda strength, start: OneVsRest(learnt, strength=strength, start=start),
        lambda probe: multi_label_metrics(probe.logits(judge.features), judge.labels, label_names).get("map", 0.0),
    )
    best = max(tried, key=itemgetter(0))[1]
    limits = None
    if validation is not None and len(validation.labels) and with_thresholds:
        limits = fit_thresholds(best.logits(validation.features), validation.labels)
    if learnt is not train:
        best = OneVsRest(train, strength=best.strength)
    found = {
        split: evaluate_multi_label(best.logits(rows.features), rows.labels, label_names, thresholds=limits).metrics
        for split, rows in tested.items()
    }
    seconds = time.process_time() - begun
    return {split: {**scores, CPU_SECONDS: seconds} for split, scores in found.items()}
