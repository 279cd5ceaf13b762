"""Metrics of the rows that share a value of some column, with intervals, and how far the groups are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mmhf.conventions import IGNORED_LABEL
from mmhf.evaluation.classification import select_labelled
from mmhf.evaluation.intervals import RESAMPLES, Interval, Resampled, resample_confusions

MISSING = "(missing)"
"""What rows without a value of the column are called; they are neither the best nor the worst group."""
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
    """All subgroups of a column, the largest first, and metric → gap where two of them have `min_rows`."""

    column: str
    groups: list[Subgroup]
    gaps: dict[str, Gap]
    min_rows: int

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
        samples = {}
        for value in sorted(set(values.tolist())):
            pairs, counts = np.unique((targets * num_labels + predictions)[values == value], return_counts=True)
            samples[value] = resample_confusions(*np.divmod(pairs, num_labels), counts, rng)
        sizes = {value: int((values == value).sum()) for value in samples}
        groups = [
            Subgroup(value, sizes[value], {metric: Interval.of(*samples[value][metric]) for metric in METRICS})
            for value in sorted(samples, key=lambda value: (-sizes[value], value))
        ]
        compared = [value for value in samples if sizes[value] >= min_rows and value != MISSING]
        gaps = {metric: _gap(metric, compared, samples) for metric in METRICS} if len(compared) > 1 else {}
        evaluated.append(ColumnSubgroups(column, groups, gaps, min_rows))
    return evaluated


def _gap(metric: str, compared: Sequence[str], samples: Mapping[str, Mapping[str, Resampled]]) -> Gap:
    best = max(compared, key=lambda value: samples[value][metric][0])
    worst = min(compared, key=lambda value: samples[value][metric][0])
    (high, high_drawn), (low, low_drawn) = samples[best][metric], samples[worst][metric]
    return Gap(best, worst, float(low), Interval.of(high - low, high_drawn - low_drawn))
