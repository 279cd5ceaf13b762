"""Numbers for a classifier's predictions, by scikit-learn, each with the sentence that defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.conventions import IGNORED_LABEL
from mmhf.errors import InputError
from mmhf.evaluation.split_evaluation import SplitEvaluation, sort_out

_MEAN = "Classes that occur in neither the labels nor the predictions are left out, as scikit-learn does by default"

PROTOCOLS: dict[str, str] = {
    "loss": "Cross-entropy as the model was trained with it (class weights, label smoothing), averaged over batches.",
    "accuracy": "Share of rows whose most probable class is the label.",
    "f1_macro": f"Unweighted mean over classes of F1, the harmonic mean of precision and recall. {_MEAN}.",
    "f1_weighted": "Mean over classes of F1, each class weighted by its number of rows.",
    "precision_macro": f"Unweighted mean over classes of precision; 0 for a class never predicted. {_MEAN}.",
    "recall_macro": f"Unweighted mean over classes of recall; 0 for a class predicted but without rows. {_MEAN}.",
    "precision_weighted": "Mean over classes of precision, each class weighted by its number of rows.",
    "recall_weighted": "Mean over classes of recall, each class weighted by its number of rows; equals accuracy.",
    "roc_auc": "Area under the ROC curve of the softmax probabilities. Two classes: of class 1 (the second label). "
    "More: unweighted mean of one class against the rest, over the classes that have rows.",
    "average_precision": "Mean of precision over the recall steps, without interpolation, of the softmax "
    "probabilities. Two classes: of class 1. More: unweighted mean over the classes that have rows.",
}
"""How each number of `classification_metrics` is defined (and `loss`, which Trainer computes)."""


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluation(SplitEvaluation):
    """All that one split\'s predictions say, as plain numbers; `PROTOCOLS` defines its metrics.

    Attributes:
        per_class (`list[dict[str, Any]]`): one row a class, see `classification_table`.
        confusion (`NDArray[np.int64]` of shape `(C, C)`): rows are labels, columns are predictions.
    """

    per_class: list[dict[str, Any]]
    confusion: NDArray[np.int64]


def evaluate_classification(
    logits: ArrayLike, labels: ArrayLike, label_names: Sequence[str], *, loss: float | None = None
) -> ClassificationEvaluation:
    """Compute every number of one split at once.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): unnormalised scores.
        labels (`ArrayLike` of shape `(N,)`): class ids; rows with -100 are excluded.
        label_names (`Sequence[str]`): names of the C classes.
        loss (`float`, *optional*): Trainer's loss, to stand beside the metrics.

    Raises:
        InputError: if a logit is NaN or infinite: the training has diverged.
        ValueError: if the shapes disagree, or a label is neither -100 nor below C.
    """
    all_labels = np.asarray(labels)
    scores, targets = select_labelled(logits, labels, len(label_names))
    probabilities = softmax_in_place(scores, targets)[0] if len(targets) else scores
    predictions = probabilities.argmax(axis=1) if len(targets) else targets
    per_class = _per_class_rows(probabilities, targets, predictions, label_names)
    why, found = "no row has a label", {}
    if len(targets):
        only, found = per_class[int(targets[0])]["label"], _overall(targets, predictions, per_class)
        why = f"every row has the label {only!r}; ranking needs rows of another class too"
    metrics, undefined = sort_out(found, PROTOCOLS, why=why, loss=loss)
    return ClassificationEvaluation(
        label_names=tuple(label_names),
        metrics=metrics,
        undefined=undefined,
        per_class=per_class,
        confusion=confusion(targets, predictions, len(label_names)),
        num_rows=len(targets),
        num_ignored=len(all_labels) - len(targets),
    )


def classification_metrics(logits: ArrayLike, labels: ArrayLike, label_names: Sequence[str]) -> dict[str, float]:
    """The overall numbers alone, for Trainer's `compute_metrics`; what is undefined for these labels is left out.

    Args and errors are those of `evaluate_classification`, whose `undefined` names what is left out and why.
    """
    return evaluate_classification(logits, labels, label_names).metrics


def classification_table(logits: ArrayLike, labels: ArrayLike, label_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class: label, precision, recall, f1, support, roc_auc, average_precision.

    The last two are of the class against the rest, and None where the class has no rows (or, for roc_auc, has them
    all). A class without predictions has precision 0, one without rows recall 0. Args and errors are those of
    `evaluate_classification`.
    """
    return evaluate_classification(logits, labels, label_names).per_class


def confusion(labels: ArrayLike, predictions: ArrayLike, num_labels: int) -> NDArray[np.int64]:
    """Count (label, prediction) pairs.

    Args:
        labels (`ArrayLike` of shape `(N,)`): class ids; rows with -100 are excluded.
        predictions (`ArrayLike` of shape `(N,)`): class ids.
        num_labels (`int`): number of classes C.

    Returns:
        `NDArray[np.int64]` of shape `(C, C)`: rows are labels, columns are predictions.
    """
    targets, predicted = np.asarray(labels), np.asarray(predictions)
    labelled = targets != IGNORED_LABEL
    # Not scikit-learn's confusion_matrix: that refuses no rows and warns when there is one class.
    pairs = targets[labelled].astype(np.int64) * num_labels + predicted[labelled].astype(np.int64)
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels).astype(np.int64)


def select_labelled(
    logits: ArrayLike, labels: ArrayLike, num_labels: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Check logits and labels, and keep the rows that have a label.

    Returns:
        `tuple`: logits `(M, C)` in float64 and labels `(M,)` in int64, M <= N.

    Raises:
        InputError: if a kept logit is NaN or infinite.
        ValueError: if the shapes disagree, or a label is neither -100 nor below `num_labels`.
    """
    scores, targets = np.asarray(logits), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] != num_labels or targets.shape != scores.shape[:1]:
        raise ValueError(f"expected logits (N, {num_labels}) and labels (N,), got {scores.shape} and {targets.shape}")
    labelled = targets != IGNORED_LABEL
    kept = scores if labelled.all() else scores[labelled]
    scores, targets = kept.astype(np.float64), targets[labelled].astype(np.int64)
    outside = (targets < 0) | (targets >= num_labels)
    if outside.any():
        raise ValueError(f"label {targets[outside][0]} is outside the {num_labels} classes")
    broken = int((~np.isfinite(scores)).any(axis=1).sum())
    if broken:
        raise InputError(
            f"the logits of {broken} of {len(targets)} rows are NaN or infinite: the training has diverged; "
            "lower training.learning_rate, set training.max_grad_norm, or train in full precision"
        )
    return scores, targets


def softmax_in_place(
    scores: NDArray[np.float64], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities (N, C) in the memory of the scores, and the cross-entropies (N,), both as scipy computes them."""
    scores -= scores.max(axis=1, keepdims=True)
    of_label = scores[np.arange(len(targets)), targets]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1, keepdims=True)
    scores /= sums
    return scores, np.log(sums[:, 0]) - of_label


def _per_class_rows(
    probabilities: NDArray[np.float64],
    targets: NDArray[np.int64],
    predictions: NDArray[np.int64],
    label_names: Sequence[str],
) -> list[dict[str, Any]]:
    # Here, because scikit-learn takes a second to load, which nobody waits for who plans or has mistyped something.
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    # It refuses to score no rows at all.
    columns: Any = np.zeros((4, len(label_names)))
    if len(targets):
        ids = np.arange(len(label_names))
        columns = precision_recall_fscore_support(targets, predictions, labels=ids, average=None, zero_division=0)
    rows = []
    for index, (name, precision, recall, f1, support) in enumerate(zip(label_names, *columns, strict=True)):
        positives, of_class = targets == index, probabilities[:, index]
        ranked = 0 < support < len(targets)
        rows.append(
            {
                "label": name,
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
                "roc_auc": float(roc_auc_score(positives, of_class)) if ranked else None,
                "average_precision": float(average_precision_score(positives, of_class)) if support else None,
            }
        )
    return rows


def _overall(
    targets: NDArray[np.int64], predictions: NDArray[np.int64], per_class: Sequence[dict[str, Any]]
) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {"accuracy": float(np.mean(targets == predictions))}
    # As scikit-learn averages: over the classes that are the label or the prediction of some row.
    columns = ("precision", "recall", "f1", "support")
    table = np.array([[row[column] for column in columns] for row in per_class])[np.union1d(targets, predictions)]
    for average, weights in (("macro", None), ("weighted", table[:, 3])):
        for column, value in zip(columns, np.average(table[:, :3], axis=0, weights=weights), strict=False):
            metrics[f"{column}_{average}"] = float(value)
    return metrics | {name: _over_classes(name, per_class) for name in ("roc_auc", "average_precision")}


def _over_classes(name: str, per_class: Sequence[dict[str, Any]]) -> float | None:
    if len(per_class) == 2:
        of_positive: float | None = per_class[1][name]
        return of_positive
    values = [row[name] for row in per_class if row[name] is not None]
    return float(np.mean(values)) if values else None


def constant_answer(evaluation: ClassificationEvaluation, majority: str | None = None) -> dict[str, dict[str, float]]:
    """What one class for every row scores, by a name for it; empty where no row has a label.

    Args:
        evaluation ([`ClassificationEvaluation`]): Of the split.
        majority (`str`, *optional*): The largest class of the training split; absent: that of this one is taken.
    """
    supports, names = evaluation.confusion.sum(axis=1), list(evaluation.label_names)
    if not supports.any():
        return {}
    chosen = names.index(majority) if majority in names else int(supports.argmax())
    share = float(supports[chosen] / supports.sum())
    f1_macro = 2 * share / (1 + share) / int((supports > 0).sum())
    return {f"always “{names[chosen]}”": {"accuracy": share, "f1_macro": f1_macro}}


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: row number in the evaluated split (from 0), class ids, probability of the prediction."""

    index: int
    label: int
    prediction: int
    confidence: float


def most_confident_mistakes(
    logits: ArrayLike, labels: ArrayLike, num_labels: int, *, count: int = 24
) -> list[Mistake]:
    """Find the wrong predictions with the highest softmax probability, the surest first.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): unnormalised scores, in the order of the split's rows.
        labels (`ArrayLike` of shape `(N,)`): class ids; rows with -100 are passed over.
        num_labels (`int`): number of classes C.
        count (`int`, *optional*, defaults to 24): how many to return at most.
    """
    rows = np.flatnonzero(np.asarray(labels) != IGNORED_LABEL)
    scores, targets = select_labelled(logits, labels, num_labels)
    if not len(targets):
        return []
    probabilities, _ = softmax_in_place(scores, targets)
    predictions = probabilities.argmax(axis=1)
    confidences = probabilities.max(axis=1)
    wrong = np.flatnonzero(predictions != targets)
    surest = wrong[np.argsort(-confidences[wrong], kind="stable")][:count]
    return [Mistake(int(rows[at]), int(targets[at]), int(predictions[at]), float(confidences[at])) for at in surest]
