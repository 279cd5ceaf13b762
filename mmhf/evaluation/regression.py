"""Numbers for models that answer with numbers, equal to scikit-learn's and scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.errors import InputError
from mmhf.evaluation.split_evaluation import SplitEvaluation, sort_out

_MEAN = "with several numbers to learn the unweighted mean over them"
_CONSTANT = "the labels, or the answers, are all the same"

REGRESSION_PROTOCOLS: dict[str, str] = {
    "loss": "The loss as the model was trained with it, of standardised numbers, averaged over batches.",
    "mae": f"Mean absolute error, in the unit of the labels; {_MEAN}.",
    "rmse": f"Root of the mean squared error, in the unit of the labels; {_MEAN}.",
    "r2": "Coefficient of determination: 1 - sum of squared errors / sum of squared distances of the labels from the "
    f"split's own mean; {_MEAN}.",
    "spearman": f"Spearman's rank correlation of answers and labels, ties at their mean rank; {_MEAN}.",
    "kendall": f"Kendall's tau-b of answers and labels; {_MEAN}.",
}
"""How each number of `evaluate_regression` is defined (and `loss`, which Trainer computes)."""


@dataclass(frozen=True, kw_only=True)
class RegressionEvaluation(SplitEvaluation):
    """All that one split\'s answers say, as plain numbers; `REGRESSION_PROTOCOLS` defines its metrics.

    Attributes:
        by_number (`list[dict[str, Any]]`): One row a number: its metrics, None where one is undefined, and mean and
            deviation of its labels.
        answers, labels (`NDArray` of shape `(M, T)`): Of the rows that were evaluated.
        rows (`NDArray` of shape `(M,)`): Which these are.
    """

    by_number: list[dict[str, Any]]
    answers: NDArray[np.float64]
    labels: NDArray[np.float64]
    rows: NDArray[np.int64]

    def absolute_errors(self) -> NDArray[np.float64]:
        """(M,): each row's, the mean over its numbers."""
        errors: NDArray[np.float64] = np.abs(self.answers - self.labels).mean(axis=1)
        return errors

    def furthest_off(self, count: int = 24) -> NDArray[np.int64]:
        """Positions among the evaluated rows, the largest error first; of several numbers, in deviations of each."""
        spread = self.labels.std(axis=0)
        errors = np.abs(self.answers - self.labels) / np.where(spread > 0, spread, 1.0)
        return np.argsort(-errors.max(axis=1, initial=0.0), kind="stable")[:count]


def evaluate_regression(
    answers: ArrayLike, labels: ArrayLike, names: Sequence[str], *, loss: float | None = None
) -> RegressionEvaluation:
    """Compute every number of one split at once.

    Args:
        answers (`ArrayLike` of shape `(N, T)`): What the model says.
        labels (`ArrayLike` of shape `(N, T)`): What is true; rows with a NaN are left out.
        names (`Sequence[str]`): Of the T numbers.
        loss (`float`, *optional*): Trainer's loss, to stand beside the metrics.

    Raises:
        InputError: An answer is NaN or infinite: the training has diverged.
        ValueError: The shapes disagree.
    """
    given, true = np.asarray(answers, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != len(names) or true.shape != given.shape:
        raise ValueError(f"expected answers and labels (N, {len(names)}), got {given.shape} and {true.shape}")
    rows = np.flatnonzero(np.isfinite(true).all(axis=1))
    given, true = given[rows], true[rows]
    if broken := int((~np.isfinite(given)).any(axis=1).sum()):
        raise InputError(
            f"the answers for {broken} of {len(rows)} rows are NaN or infinite: the training has diverged; "
            "lower training.learning_rate, set training.max_grad_norm, or train in full precision"
        )
    by_number = [_measure(name, given[:, at], true[:, at]) for at, name in enumerate(names)] if len(rows) else []
    found: dict[str, float | None] = {}
    for name in by_number[0].keys() & REGRESSION_PROTOCOLS.keys() if by_number else ():
        values = [row[name] for row in by_number]
        found[name] = None if None in values else float(np.mean(values))
    why = _CONSTANT if by_number else "no row has numbers"
    metrics, undefined = sort_out(found, REGRESSION_PROTOCOLS, why=why, loss=loss)
    return RegressionEvaluation(
        label_names=tuple(names),
        metrics=metrics,
        undefined=undefined,
        by_number=by_number,
        answers=given,
        labels=true,
        rows=rows,
        num_rows=len(rows),
        num_ignored=len(np.asarray(labels)) - len(rows),
    )


def regression_metrics(answers: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """The overall numbers alone, for Trainer's `compute_metrics`."""
    return evaluate_regression(answers, labels, names).metrics


def constant_metrics(value: ArrayLike, evaluation: RegressionEvaluation) -> dict[str, float]:
    """What answering with the same (T,) numbers for each row scores."""
    answers = np.broadcast_to(np.asarray(value, dtype=np.float64), evaluation.labels.shape)
    return regression_metrics(answers, evaluation.labels, evaluation.label_names)


def _measure(name: str, answers: NDArray[np.float64], labels: NDArray[np.float64]) -> dict[str, Any]:
    errors = answers - labels
    squares, spread = float((errors**2).sum()), float(((labels - labels.mean()) ** 2).sum())
    spearman, kendall = rank_correlations(answers, labels)
    return {
        "number": name,
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(squares / len(errors))),
        "r2": 1 - squares / spread if spread > 0 else None,
        "spearman": spearman,
        "kendall": kendall,
        "mean": float(labels.mean()),
        "deviation": float(labels.std()),
    }


def rank_correlations(
    answers: NDArray[np.float64], labels: NDArray[np.float64] | NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Spearman's correlation and Kendall's tau-b of (N,) values; None where either side is constant."""
    # Here, because scipy takes a second to load, which nobody waits for who only plans.
    from scipy.stats import kendalltau, spearmanr

    if len(labels) < 2 or np.ptp(answers) == 0 or np.ptp(labels) == 0:
        return None, None
    return float(spearmanr(answers, labels).statistic), float(kendalltau(answers, labels).statistic)
