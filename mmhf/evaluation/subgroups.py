"""Metrics of the rows that share a value of some column, with intervals, and how far the groups are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.conventions import IGNORED_LABEL
from mmhf.evaluation.classification import select_labelled
from mmhf.evaluation.curves import METRIC_TITLES
from mmhf.evaluation.intervals import RESAMPLES, Interval, Resampled, resample_confusions, resample_sums
from mmhf.evaluation.multi_label import decisions_by_row
from mmhf.evaluation.regression import RegressionEvaluation
from mmhf.recipe.training_sections import greater_is_better

MISSING = "(missing)"
"""What rows without a value of the column are called; they are neither the best nor the worst group."""
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
        """`COLUMN_METRIC_gap` and `COLUMN_METRIC_worst`, for `metrics.json`; `protocols` defines them."""
        return {
            f"{self.column}_{metric}_{name}": value
            for metric, gap in self.gaps.items()
            for name, value in (("gap", gap.difference.value), ("worst", gap.worst_value))
        }

    @property
    def protocols(self) -> dict[str, str]:
        """How each number of `flat` is defined."""
        defined = {}
        for metric in self.gaps:
            title, which = METRIC_TITLES[metric], f"of the values of {self.column} that have {self.min_rows} rows"
            defined[f"{self.column}_{metric}_gap"] = f"{title}: difference between the best and the worst, {which}."
            defined[f"{self.column}_{metric}_worst"] = f"{title} of the worst, {which}."
        return defined


@dataclass(frozen=True)
class Outcomes:
    """How rows were answered, as metrics of any of them need it.

    Attributes:
        rows (`NDArray` of shape `(M,)`): The rows of the split that have a label.
        resample (`Callable`): From positions among these rows, and what draws, to each metric's resamples.
    """

    rows: NDArray[np.int64]
    resample: Callable[[NDArray[np.int64], np.random.Generator], dict[str, Resampled]]


def class_outcomes(logits: ArrayLike, labels: ArrayLike, num_labels: int) -> Outcomes:
    """Accuracy and macro-F1 of the most probable classes.

    Args:
        logits (`ArrayLike` of shape `(N, C)`): Unnormalised scores.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are left out.
        num_labels (`int`): Number of classes C.
    """
    scores, targets = select_labelled(logits, labels, num_labels)
    return pair_outcomes(np.flatnonzero(np.asarray(labels) != IGNORED_LABEL), targets, scores.argmax(axis=1))


def pair_outcomes(
    rows: NDArray[np.int64], labels: NDArray[np.int64], answers: NDArray[np.int64], *, ordered: bool = False
) -> Outcomes:
    """Accuracy and macro-F1 of answers (M,) to labels (M,), and where classes are `ordered`, `mae` of their ranks."""
    count = int(max(labels.max(initial=0), answers.max(initial=0))) + 1

    def resample(chosen: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Resampled]:
        pairs, counts = np.unique(labels[chosen] * count + answers[chosen], return_counts=True)
        return resample_confusions(*np.divmod(pairs, count), counts, rng, ordered=ordered)

    return Outcomes(rows, resample)


def label_outcomes(logits: ArrayLike, labels: ArrayLike, thresholds: Sequence[float] | None) -> Outcomes:
    """Micro-F1 and samples-F1 of any number of labels a row; the arguments are those of `evaluate_multi_label`."""
    rows, right, sizes = decisions_by_row(logits, labels, thresholds)

    def resample(chosen: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Resampled]:
        pairs, counts = np.unique(np.stack([right[chosen], sizes[chosen]]), axis=1, return_counts=True)
        f1 = np.where(pairs[1] > 0, 2 * pairs[0] / np.maximum(pairs[1], 1), 1.0)
        sums = resample_sums(np.stack([2.0 * pairs[0], pairs[1], f1], axis=1), counts, rng)
        micro = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)
        samples = sums[:, 2] / len(chosen)
        return {"f1_micro": (micro[0], micro[1:]), "f1_samples": (samples[0], samples[1:])}

    return Outcomes(rows, resample)


def number_outcomes(evaluation: RegressionEvaluation) -> Outcomes:
    """Mean absolute error and root mean squared error of numbers, the means over several of them."""
    errors = evaluation.answers - evaluation.labels
    count = errors.shape[1]

    def resample(chosen: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Resampled]:
        own = errors[chosen]
        sums = resample_sums(np.concatenate([np.abs(own), own**2], axis=1), np.ones(len(own), np.int64), rng)
        mae, rmse = (sums[:, :count] / len(own)).mean(axis=1), np.sqrt(sums[:, count:] / len(own)).mean(axis=1)
        return {"mae": (mae[0], mae[1:]), "rmse": (rmse[0], rmse[1:])}

    return Outcomes(evaluation.rows, resample)


def evaluate_subgroups(
    outcomes: Outcomes, columns: Mapping[str, Sequence[str | None]], *, min_rows: int = 10, seed: int = 0
) -> list[ColumnSubgroups]:
    """Measure the subgroups of a split.

    Args:
        outcomes ([`Outcomes`]): How its rows were answered.
        columns (`Mapping[str, Sequence[str | None]]`): Column → its value in each row of the split.
        min_rows (`int`): Groups with fewer rows are neither best nor worst.
        seed (`int`): Seed of the resamples.
    """
    evaluated = []
    for column, given in columns.items():
        values = np.array([MISSING if value is None else value for value in given], dtype=object)[outcomes.rows]
        rng = np.random.default_rng(seed)
        members = {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
        samples = {value: outcomes.resample(chosen, rng) for value, chosen in members.items()}
        groups = [
            Subgroup(value, len(members[value]), {name: Interval.of(*drawn) for name, drawn in samples[value].items()})
            for value in sorted(samples, key=lambda value: (-len(members[value]), value))
        ]
        compared = [value for value in samples if len(members[value]) >= min_rows and value != MISSING]
        metrics = samples[compared[0]] if len(compared) > 1 else {}
        gaps = {metric: _gap(metric, compared, samples) for metric in metrics}
        evaluated.append(ColumnSubgroups(column, groups, gaps, min_rows))
    return evaluated


def _gap(metric: str, compared: Sequence[str], samples: Mapping[str, Mapping[str, Resampled]]) -> Gap:
    sign = 1 if greater_is_better(metric) else -1
    best = max(compared, key=lambda value: sign * samples[value][metric][0])
    worst = min(compared, key=lambda value: sign * samples[value][metric][0])
    (high, high_drawn), (low, low_drawn) = samples[best][metric], samples[worst][metric]
    return Gap(best, worst, float(low), Interval.of(sign * (high - low), sign * (high_drawn - low_drawn)))
