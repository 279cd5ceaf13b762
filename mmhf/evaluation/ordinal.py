"""Numbers for classifiers of ordered classes, equal to scikit-learn's and scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.classification import confusion, select_labelled, softmax_in_place
from mmhf.evaluation.regression import rank_correlations
from mmhf.evaluation.split_evaluation import SplitEvaluation, label_scores, sort_out

_ANSWER = "the answer is the median class, the lowest up to which at least half the probability lies"
ORDINAL_PROTOCOLS: dict[str, str] = {
    "loss": "The loss as the model was trained with it, averaged over batches.",
    "accuracy": f"Share of rows whose answer is the label; {_ANSWER}.",
    "f1_macro": "Unweighted mean over classes of F1; classes in neither the labels nor the answers are left out.",
    "kappa_quadratic": "Cohen's kappa with weights that grow with the square of the difference of ranks.",
    "mae": "Mean absolute difference of the ranks of answer and label; neighbouring classes are 1 apart.",
    "spearman": "Spearman's rank correlation of label and expected rank, the mean of ranks by their probabilities.",
    "kendall": "Kendall's tau-b of label and expected rank.",
    "nll": "Mean negative log of the label's probability, in nats.",
}
"""How each number of `evaluate_ordinal` is defined (and `loss`, which Trainer computes)."""


@dataclass(frozen=True, kw_only=True)
class OrdinalEvaluation(SplitEvaluation):
    """All that one split\'s predictions say, as plain numbers; `ORDINAL_PROTOCOLS` defines its metrics.

    Attributes:
        per_class (`list[dict[str, Any]]`): One row a class: label, support, predicted, precision, recall, f1, mae.
        confusion (`NDArray[np.int64]` of shape `(C, C)`): Rows are labels, columns are answers.
        labels, answers, expected (`NDArray` of shape `(M,)`): Label, answer and expected rank of each evaluated row.
        rows (`NDArray` of shape `(M,)`): Which these are.
    """

    per_class: list[dict[str, Any]]
    confusion: NDArray[np.int64]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    expected: NDArray[np.float64]
    rows: NDArray[np.int64]

    def furthest_off(self, count: int = 24) -> NDArray[np.int64]:
        """Positions among the evaluated rows whose expected rank is furthest from the label, and over half a class."""
        distance = np.abs(self.expected - self.labels)
        order = np.argsort(-distance, kind="stable")[:count]
        return order[distance[order] > 0.5]


def evaluate_ordinal(
    logits: ArrayLike, labels: ArrayLike, label_names: Sequence[str], *, loss: float | None = None
) -> OrdinalEvaluation:
    """Compute every number of one split at once.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Logarithms of probabilities, up to a constant a row.
        labels (`ArrayLike` of shape `(N,)`): Class ids, in the order of the classes; rows with -100 are left out.
        label_names (`Sequence[str]`): Names of the C classes, the lowest first.
        loss (`float`, *optional*): Trainer's loss, to stand beside the metrics.

    Raises:
        InputError: A logit is NaN or infinite: the training has diverged.
        ValueError: The shapes disagree, or a label is none of the classes.
    """
    count = len(label_names)
    scores, targets = select_labelled(logits, labels, count)
    rows = np.flatnonzero(np.asarray(labels) >= 0)
    probabilities, losses = softmax_in_place(scores, targets)
    answers = median_answers(probabilities)
    expected = probabilities @ np.arange(count)
    counts = confusion(targets, answers, count)
    found: dict[str, float | None] = {}
    if len(rows):
        spearman, kendall = rank_correlations(expected, targets)
        found = {"spearman": spearman, "kendall": kendall, "nll": float(losses.mean()), **_of_confusion(counts)}
    why = "all rows are of one class, or get one answer" if len(rows) else "no row has a label"
    metrics, undefined = sort_out(found, ORDINAL_PROTOCOLS, why=why, loss=loss)
    return OrdinalEvaluation(
        label_names=tuple(label_names),
        metrics=metrics,
        undefined=undefined,
        per_class=_per_class(counts, label_names) if len(rows) else [],
        confusion=counts,
        labels=targets,
        answers=answers,
        expected=expected,
        rows=rows,
        num_rows=len(rows),
        num_ignored=len(np.asarray(labels)) - len(rows),
    )


def median_answers(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,): the lowest class up to which at least half of the (N, C) probability lies."""
    answers: NDArray[np.int64] = (1 - probabilities.cumsum(axis=1)[:, :-1] > 0.5).sum(axis=1)
    return answers


def ordinal_metrics(logits: ArrayLike, labels: ArrayLike, label_names: Sequence[str]) -> dict[str, float]:
    """The overall numbers alone, for Trainer's `compute_metrics`."""
    return evaluate_ordinal(logits, labels, label_names).metrics


def constant_metrics(label: int, evaluation: OrdinalEvaluation) -> dict[str, float]:
    """What answering with the same class for each row scores; there has to be a row."""
    counts = np.zeros_like(evaluation.confusion)
    counts[:, label] = evaluation.confusion.sum(axis=1)
    return {name: value for name, value in _of_confusion(counts).items() if value is not None}


def rank_distances(size: int) -> NDArray[np.int64]:
    """(size, size): by how many ranks each class is away from each other."""
    distances: NDArray[np.int64] = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return distances


def _of_confusion(counts: NDArray[np.int64]) -> dict[str, float | None]:
    total, distance = int(counts.sum()), rank_distances(len(counts))
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    disagreement = float((distance**2 * by_chance).sum())
    either = counts.sum(axis=0) + counts.sum(axis=1)
    f1 = 2 * np.diag(counts)[either > 0] / either[either > 0]
    return {
        "accuracy": float(np.trace(counts) / total),
        "f1_macro": float(f1.mean()),
        "kappa_quadratic": 1 - float((distance**2 * counts).sum()) / disagreement if disagreement > 0 else None,
        "mae": float((distance * counts).sum() / total),
    }


def _per_class(counts: NDArray[np.int64], label_names: Sequence[str]) -> list[dict[str, Any]]:
    table, distances = [], rank_distances(len(counts))
    for at, name in enumerate(label_names):
        right, support, predicted = (int(each) for each in (counts[at, at], counts[at].sum(), counts[:, at].sum()))
        table.append(
            {
                "label": name,
                "support": support,
                "predicted": predicted,
                **label_scores(right, predicted, support),
                "mae": float((distances[at] * counts[at]).sum() / support) if support else None,
            }
        )
    return table
