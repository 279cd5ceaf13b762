"""Numbers for classifiers of any number of labels a row, equal to scikit-learn's, in little memory beside the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from mmhf.errors import InputError
from mmhf.evaluation.split_evaluation import SplitEvaluation, label_scores, sort_out

NUM_BINS = 15
_ROWS_AT_ONCE = 4096
_WITHOUT_LABELS = {"map": "no row has a label", "f1_macro": "no row has a label, and none is predicted"}
_NEITHER = "labels that occur in neither the rows nor the predictions are left out"

MULTI_LABEL_PROTOCOLS: dict[str, str] = {
    "loss": "The loss as the model was trained with it, averaged over batches.",
    "map": "Mean average precision: unweighted mean, over the labels that some row has, of average precision.",
    "f1_micro": "F1 of all decisions, of each label about each row, counted together.",
    "f1_macro": f"Unweighted mean over labels of F1; {_NEITHER}.",
    "f1_samples": "Mean over rows of F1 between the labels predicted and those of the row; 1 where there are none of "
    "either.",
    "precision_micro": "Share of the labels predicted that are right.",
    "recall_micro": "Share of the rows' labels that are predicted.",
    "subset_accuracy": "Share of rows of which all labels are predicted, and no other.",
    "hamming_loss": "Share of all decisions that are wrong.",
    "roc_auc": "Unweighted mean of the area under each label's ROC curve, over the labels that some rows have and "
    "some have not.",
    "ece": f"Mean over labels of the expected calibration error: mean over {NUM_BINS} equal bins of probability of "
    "|share of rows that have the label - mean probability|, weighted by rows.",
    "brier": "Mean over labels of the mean squared distance between its probability and whether the row has it.",
    "nll": "Mean negative log of the probability of what is true, over all decisions, in nats, without weights.",
}
"""How each number of `evaluate_multi_label` is defined (and `loss`, which Trainer computes)."""


@dataclass(frozen=True, kw_only=True)
class MultiLabelEvaluation(SplitEvaluation):
    """All that one split\'s predictions say, as plain numbers; `MULTI_LABEL_PROTOCOLS` defines its metrics.

    Attributes:
        per_class (`list[dict[str, Any]]`): One row a label: label, support, predicted, precision, recall, f1,
            average_precision, roc_auc, ece, brier, threshold.
        together (`NDArray[np.int64]` of shape `(C, C)`): Rows that have both labels; on the diagonal, that have it.
        bins (`NDArray` of shape `(3, C, B)`): By label and bin of its probability: rows, those that have the label,
            and the sum of the probabilities.
        temperature (`float`): What the logits had been divided by.
    """

    per_class: list[dict[str, Any]]
    together: NDArray[np.int64]
    bins: NDArray[np.float64]
    temperature: float


def evaluate_multi_label(
    logits: ArrayLike,
    labels: ArrayLike,
    label_names: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    temperature: float = 1.0,
    loss: float | None = None,
) -> MultiLabelEvaluation:
    """Compute every number of one split at once.

    Rows are read in parts and labels one by one, so that little is held beside the arguments.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Unnormalised scores.
        labels (`ArrayLike` of shape `(N, C)`): 0 and 1; rows with an entry below 0 are left out.
        label_names (`Sequence[str]`): Names of the C labels.
        thresholds (`Sequence[float]`, *optional*): The probability from which on each label is given; absent: 0.5.
        temperature (`float`, defaults to 1.0): What the logits have been divided by.
        loss (`float`, *optional*): Trainer's loss, to stand beside the metrics.

    Raises:
        InputError: A logit is NaN or infinite: the training has diverged.
        ValueError: The shapes disagree.
    """
    scores, targets = np.asarray(logits), np.asarray(labels)
    count = len(label_names)
    if scores.ndim != 2 or scores.shape[1] != count or targets.shape != scores.shape:
        raise ValueError(f"expected logits and labels (N, {count}), got {scores.shape} and {targets.shape}")
    limits = np.full(count, 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    tally = _Tally.of(scores, targets, limits)
    ranks = [_rank(*column) for column in _columns(scores, targets)] if tally.num_rows else []
    errors = calibration_errors(tally.bins)
    per_class = [
        _table_row(name, tally, at, ranks=ranks[at], threshold=limits[at], error=errors[at])
        for at, name in enumerate(label_names)
        if ranks
    ]
    metrics, undefined = sort_out(
        _overall(tally, per_class, ranks) if tally.num_rows else {},
        MULTI_LABEL_PROTOCOLS,
        why="each label is that of all rows or of none" if tally.num_rows else "no row has labels",
        reasons=_WITHOUT_LABELS if tally.num_rows else {},
        loss=loss,
    )
    return MultiLabelEvaluation(
        label_names=tuple(label_names),
        metrics=metrics,
        undefined=undefined,
        per_class=per_class,
        together=tally.together,
        bins=tally.bins,
        temperature=temperature,
        num_rows=tally.num_rows,
        num_ignored=len(scores) - tally.num_rows,
    )


def multi_label_metrics(logits: ArrayLike, labels: ArrayLike, label_names: Sequence[str]) -> dict[str, float]:
    """The overall numbers alone, with thresholds of 0.5, for Trainer's `compute_metrics`."""
    return evaluate_multi_label(logits, labels, label_names).metrics


def constant_answers(evaluation: MultiLabelEvaluation) -> dict[str, dict[str, float]]:
    """What costs nothing, by name: a random order, and the labels that are best given to every row."""
    supports = np.sort([row["support"] for row in evaluation.per_class])[::-1]
    if not supports.any():
        return {}
    rows, given = evaluation.num_rows, np.arange(1, len(supports) + 1)
    # A random order finds each label at its own share.
    chance = float(supports[supports > 0].mean() / rows)
    same = float((2 * np.cumsum(supports) / (supports.sum() + given * rows)).max())
    return {"chance": {"map": chance}, "the same labels for each row": {"f1_micro": same}}


class Part(NamedTuple):
    """Some rows of a split that have labels: their places, whether they have each label (M, C), and its logits."""

    rows: NDArray[np.int64]
    present: NDArray[np.bool_]
    scores: NDArray[np.float64]


def parts_of(logits: NDArray[Any], labels: NDArray[Any]) -> Iterator[Part]:
    """The rows of a split, a few thousand at once, so that no copy of all is made.

    Raises:
        InputError: At the end, if a logit is NaN or infinite.
    """
    broken = 0
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        given = labels[start : start + _ROWS_AT_ONCE]
        rows = np.flatnonzero((given >= 0).all(axis=1))
        scores = logits[start + rows].astype(np.float64)
        broken += int((~np.isfinite(scores)).any(axis=1).sum())
        if not broken:
            yield Part(start + rows, given[rows] > 0.5, scores)
    if broken:
        raise InputError(
            f"the logits of {broken} of {len(logits)} rows are NaN or infinite: the training has diverged; "
            "lower training.learning_rate, set training.max_grad_norm, or train in full precision"
        )


@dataclass
class _Tally:
    """Sums over rows."""

    num_rows: int
    support: NDArray[np.int64]
    predicted: NDArray[np.int64]
    right: NDArray[np.int64]
    f1_samples: float
    whole_rows: int
    squares: NDArray[np.float64]
    log_losses: float
    bins: NDArray[np.float64]
    together: NDArray[np.int64]

    @classmethod
    def of(cls, logits: NDArray[Any], labels: NDArray[Any], limits: NDArray[np.float64]) -> _Tally:
        count = logits.shape[1]
        tally = cls(
            num_rows=0,
            support=np.zeros(count, dtype=np.int64),
            predicted=np.zeros(count, dtype=np.int64),
            right=np.zeros(count, dtype=np.int64),
            f1_samples=0.0,
            whole_rows=0,
            squares=np.zeros(count),
            log_losses=0.0,
            bins=np.zeros((3, count, NUM_BINS)),
            together=np.zeros((count, count), dtype=np.int64),
        )
        for _, given, scores in parts_of(logits, labels):
            probabilities = expit(scores)
            chosen = probabilities >= limits
            both = given & chosen
            tally.num_rows += len(given)
            tally.support += given.sum(axis=0)
            tally.predicted += chosen.sum(axis=0)
            tally.right += both.sum(axis=0)
            sizes = given.sum(axis=1) + chosen.sum(axis=1)
            tally.f1_samples += float(np.where(sizes > 0, 2 * both.sum(axis=1) / np.maximum(sizes, 1), 1.0).sum())
            tally.whole_rows += int((given == chosen).all(axis=1).sum())
            tally.squares += np.square(probabilities - given).sum(axis=0)
            tally.log_losses += float(np.logaddexp(0, np.where(given, -scores, scores)).sum())
            add_to_bins(tally.bins, given, probabilities)
            exact = given.astype(np.float32)
            tally.together += np.rint(exact.T @ exact).astype(np.int64)
        return tally


def add_to_bins(bins: NDArray[np.float64], present: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> None:
    """Add rows (M, C) to the bins of probability (3, C, B) of each label: rows, those that have it, and the sum of
    their probabilities."""
    count, size = probabilities.shape[1], bins[0].size
    numbers = np.clip(np.ceil(probabilities * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    numbers += np.arange(count) * NUM_BINS
    for place, weights in enumerate((None, present, probabilities)):
        flat = None if weights is None else weights.ravel()
        bins[place] += np.bincount(numbers.ravel(), flat, minlength=size).reshape(count, NUM_BINS)


def calibration_errors(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,): each label's expected calibration error, of bins that rows were added to."""
    rows, present, said = bins
    errors: NDArray[np.float64] = np.abs(present - said).sum(axis=1) / np.maximum(rows.sum(axis=1), 1)
    return errors


def _columns(logits: NDArray[Any], labels: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The scores of each label and whether rows have it, for the rows that count."""
    counted = np.ones(len(labels), dtype=bool)
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        counted[start : start + _ROWS_AT_ONCE] = (labels[start : start + _ROWS_AT_ONCE] >= 0).all(axis=1)
    whole = bool(counted.all())
    for label in range(logits.shape[1]):
        scores, present = logits[:, label], labels[:, label] > 0.5
        yield (scores, present) if whole else (scores[counted], present[counted])


class _Curve(NamedTuple):
    """Rows with a label, and rows in all, among those whose score is at least each distinct one, falling."""

    scores: NDArray[np.float64]
    right: NDArray[np.int64]
    chosen: NDArray[np.int64]


def _curve(scores: NDArray[Any], present: NDArray[np.bool_]) -> _Curve:
    order = np.argsort(-scores)  # of rows with one score, the order does not matter
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return _Curve(falling[last].astype(np.float64), np.cumsum(present[order], dtype=np.int64)[last], last + 1)


class _Ranks(NamedTuple):
    average_precision: float | None
    roc_auc: float | None


def _rank(scores: NDArray[Any], present: NDArray[np.bool_]) -> _Ranks:
    """How well a label's scores put the rows that have it first, as scikit-learn defines it."""
    support = int(present.sum())
    if not support:
        return _Ranks(None, None)
    curve = _curve(scores, present)
    steps = np.diff(curve.right, prepend=0)
    precision = float((steps * (curve.right / curve.chosen)).sum() / support)
    absent = len(present) - support
    if not absent:
        return _Ranks(precision, None)
    wrong = curve.chosen - curve.right
    # By trapezoids: of two rows with one score, each is ahead half the time.
    area = (np.diff(wrong, prepend=0) * (curve.right - steps / 2)).sum() / (support * absent)
    return _Ranks(precision, float(area))


def _table_row(name: str, tally: _Tally, at: int, *, ranks: _Ranks, threshold: float, error: float) -> dict[str, Any]:
    support, predicted, right = (int(each[at]) for each in (tally.support, tally.predicted, tally.right))
    return {
        "label": name,
        "support": support,
        "predicted": predicted,
        **label_scores(right, predicted, support),
        "average_precision": ranks.average_precision,
        "roc_auc": ranks.roc_auc,
        "ece": float(error),
        "brier": float(tally.squares[at] / tally.num_rows),
        "threshold": float(threshold),
    }


def _overall(tally: _Tally, per_class: Sequence[dict[str, Any]], ranks: Sequence[_Ranks]) -> dict[str, float | None]:
    decisions = tally.num_rows * len(per_class)
    support, predicted, right = (int(each.sum()) for each in (tally.support, tally.predicted, tally.right))
    micro = label_scores(right, predicted, support)
    seen = [row["f1"] for row in per_class if row["support"] + row["predicted"]]
    return {
        "map": _mean([each.average_precision for each in ranks]),
        "f1_micro": micro["f1"],
        "f1_macro": _mean(seen),
        "f1_samples": tally.f1_samples / tally.num_rows,
        "precision_micro": micro["precision"],
        "recall_micro": micro["recall"],
        "subset_accuracy": tally.whole_rows / tally.num_rows,
        "hamming_loss": (support + predicted - 2 * right) / decisions,
        "roc_auc": _mean([each.roc_auc for each in ranks]),
        "ece": _mean([row["ece"] for row in per_class]),
        "brier": _mean([row["brier"] for row in per_class]),
        "nll": tally.log_losses / decisions,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def fit_thresholds(logits: ArrayLike, labels: ArrayLike) -> list[float]:
    """The probability of each label from which on its F1 is highest, half-way to the next lower one.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Of rows that the model was not trained on.
        labels (`ArrayLike` of shape `(N, C)`): 0 and 1; rows with an entry below 0 are left out.

    Returns:
        `list[float]`: 0.5 for a label that none of the rows has.
    """
    found = []
    for own, present in _columns(np.asarray(logits), np.asarray(labels)):
        support = int(present.sum())
        if not support:
            found.append(0.5)
            continue
        curve = _curve(own, present)
        best = int(np.argmax(2 * curve.right / (support + curve.chosen)))
        probabilities = expit(curve.scores)
        below = probabilities[best + 1] if best + 1 < len(probabilities) else 0.0
        found.append(float((probabilities[best] + below) / 2))
    return found


@dataclass(frozen=True)
class WrongDecision:
    """A decision that is wrong: row in the split (from 0), label id, whether the row has it, and its probability."""

    index: int
    label: int
    has_it: bool
    probability: float


def surest_mistakes(logits: ArrayLike, labels: ArrayLike, *, count: int = 24) -> list[WrongDecision]:
    """For each row its surest wrong decision; the surest of these first.

    Args:
        logits, labels (`ArrayLike` of shape `(N, C)`): As `evaluate_multi_label` takes them.
        count (`int`, defaults to 24): How many to return at most.
    """
    best: list[tuple[float, WrongDecision]] = []
    for part in parts_of(np.asarray(logits), np.asarray(labels)):
        wrongness = np.where(part.present, -part.scores, part.scores)
        worst = wrongness.argmax(axis=1)
        sizes = wrongness[np.arange(len(worst)), worst]
        for at in np.argsort(-sizes, kind="stable")[:count].tolist():
            if sizes[at] > 0:
                label = int(worst[at])
                has_it, chance = bool(part.present[at, label]), float(expit(part.scores[at, label]))
                best.append((float(sizes[at]), WrongDecision(int(part.rows[at]), label, has_it, chance)))
        best = sorted(best, key=lambda each: -each[0])[:count]
    return [decision for _, decision in best]


def given_labels(logits: NDArray[np.floating], thresholds: Sequence[float] | None = None) -> NDArray[np.bool_]:
    """(N, C): the labels whose probability reaches their threshold, or 0.5."""
    limits = 0.5 if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    given: NDArray[np.bool_] = expit(logits.astype(np.float64)) >= limits
    return given


def decisions_by_row(
    logits: ArrayLike, labels: ArrayLike, thresholds: Sequence[float] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How the labels of each row were found; the arguments are those of `evaluate_multi_label`.

    Returns:
        `tuple` of `(M,)`: the rows that have labels; how many of its labels each was rightly given; and how many it
        has and was given, together.
    """
    found: list[tuple[NDArray[np.int64], ...]] = [(np.zeros(0, np.int64),) * 3]
    for rows, present, scores in parts_of(np.asarray(logits), np.asarray(labels)):
        chosen = given_labels(scores, thresholds)
        found.append((rows, (present & chosen).sum(axis=1), present.sum(axis=1) + chosen.sum(axis=1)))
    rows, right, sizes = (np.concatenate(column) for column in zip(*found, strict=True))
    return rows, right, sizes
