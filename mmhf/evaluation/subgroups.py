"""Metrics of the rows that share a value of some column, with intervals, and how far the groups are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.conventions import IGNORED_LABEL
from mmhf.evaluation.classification import select_labelled

MISSING = "(missing)"
"""What rows without a value of the column are called; they are neither the best nor the worst group."""
RESAMPLES = 1000
METRICS = ("accuracy", "f1_macro")
SUBGROUP_PROTOCOLS: dict[str, str] = {
    "gap": "Difference between the best and the worst group's value, of the groups that have enough rows.",
    "worst": "Value of the worst of these groups.",
}
INTERVAL = (
    f"Intervals hold 95 % of {RESAMPLES:,} bootstrap resamples of the group's rows (percentiles); that of a gap is of "
    "the difference between the two groups that are best and worst in the data."
)


@dataclass(frozen=True)
class Interval:
    """A number and the range that holds 95 % of its bootstrap resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Subgroup:
    """The rows with one value of a column: their number, and metric → interval."""

    value: str
    num_rows: int
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Gap:
    """How far the best and the worst subgroup are apart in a metric."""

    best: str
    worst: str
    worst_value: float
    difference: Interval


@dataclass(frozen=True)
class ColumnSubgroups:
    """All subgroups of a column, the largest first, and metric → gap where two of them have enough rows."""

    column: str
    groups: list[Subgroup]
    gaps: dict[str, Gap]

    def flat(self) -> dict[str, float]:
        """`COLUMN_METRIC_gap` and `COLUMN_METRIC_worst`, for `metrics.json`."""
        return {
            f"{self.column}_{metric}_{name}": value
            for metric, gap in self.gaps.items()
            for name, value in (("gap", gap.difference.value), ("worst", gap.worst_value))
        }


def evaluate_subgroups(
    logits: ArrayLike,
    labels: ArrayLike,
    columns: Mapping[str, Sequence[str | None]],
    num_labels: int,
    *,
    min_rows: int = 10,
    seed: int = 0,
) -> list[ColumnSubgroups]:
    """Measure the subgroups of a split.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Unnormalised scores.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are excluded.
        columns (`Mapping[str, Sequence[str | None]]`): Column → its value in each of the N rows.
        num_labels (`int`): Number of classes C.
        min_rows (`int`): Groups with fewer rows are neither best nor worst.
        seed (`int`): Seed of the resamples.
    """
    scores, targets = select_labelled(logits, labels, num_labels)
    predictions = scores.argmax(axis=1)
    labelled = np.asarray(labels) != IGNORED_LABEL
    evaluated = []
    for column, given in columns.items():
        values = np.array([MISSING if value is None else value for value in given], dtype=object)[labelled]
        rng = np.random.default_rng(seed)
        samples = {
            value: _resample(targets[values == value], predictions[values == value], num_labels, rng)
            for value in sorted(set(values.tolist()))
        }
        sizes = {value: int((values == value).sum()) for value in samples}
        groups = [
            Subgroup(value, sizes[value], {metric: _interval(*samples[value][metric]) for metric in METRICS})
            for value in sorted(samples, key=lambda value: (-sizes[value], value))
        ]
        compared = [value for value in samples if sizes[value] >= min_rows and value != MISSING]
        gaps = {metric: _gap(metric, compared, samples) for metric in METRICS} if len(compared) > 1 else {}
        evaluated.append(ColumnSubgroups(column, groups, gaps))
    return evaluated


_Sample = tuple[float, NDArray[np.float64]]
"""A metric of the data, and of each resample."""


def _resample(
    targets: NDArray[np.int64], predictions: NDArray[np.int64], num_labels: int, rng: np.random.Generator
) -> dict[str, _Sample]:
    """Draw rows with replacement; both metrics follow from counts of (label, prediction), so these are drawn."""
    pairs, counts = np.unique(targets * num_labels + predictions, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    every = np.concatenate([counts[None], drawn]).astype(np.float64)
    label_of, prediction_of = np.divmod(pairs, num_labels)
    is_right = label_of == prediction_of
    accuracy = every[:, is_right].sum(axis=1) / counts.sum()
    present, labels_at = np.unique(np.concatenate([label_of, prediction_of]), return_inverse=True)
    of_label, of_prediction = np.eye(len(present))[labels_at].reshape(2, len(pairs), len(present))
    both = every @ of_label + every @ of_prediction
    right = every @ (of_label * is_right[:, None])
    # Classes in neither labels nor predictions are left out of the mean, in each resample as in the data.
    f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
    f1_macro = f1.sum(axis=1) / (both > 0).sum(axis=1)
    return {"accuracy": (accuracy[0], accuracy[1:]), "f1_macro": (f1_macro[0], f1_macro[1:])}


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _gap(metric: str, compared: Sequence[str], samples: Mapping[str, Mapping[str, _Sample]]) -> Gap:
    best = max(compared, key=lambda value: samples[value][metric][0])
    worst = min(compared, key=lambda value: samples[value][metric][0])
    (high, high_drawn), (low, low_drawn) = samples[best][metric], samples[worst][metric]
    return Gap(best, worst, float(low), _interval(high - low, high_drawn - low_drawn))
