"""Confidence intervals by drawing the evaluated samples again and again (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
CONFIDENCE = 0.95
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
_MAX_COUNTS = 4_000_000
"""Drawn samples held at once."""

Resampled = tuple[float, NDArray[np.float64]]
"""A metric of the data, and of each resample."""


@dataclass(frozen=True)
class Interval:
    """A number and the range that holds 95 % of its bootstrap resamples."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[np.float64]) -> Interval:
        """The percentile interval of resamples `(R,)`."""
        low, high = np.quantile(resampled, _TAILS)
        return cls(float(value), float(low), float(high))


def bootstrap_interval(
    statistics: NDArray[np.float64],
    value_of: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The percentile interval of a number that is a function of sums over samples.

    Efron, 1979, https://doi.org/10.1214/aos/1176344552: N samples are drawn from the N with replacement.

    Args:
        statistics (`NDArray[np.float64]` of shape `(N, S)`): what each sample adds to the sums; N > 0.
        value_of (`Callable`): makes `(R, M)` numbers from `(R, S)` sums over samples.
        resamples (`int`, *optional*, defaults to 1000): How often the samples are drawn.
        seed (`int`, *optional*, defaults to 0): Of the drawing; equal N and seed draw the same samples.

    Returns:
        `NDArray[np.float64]` of shape `(2, M)`: the 2.5 % and the 97.5 % quantile.
    """
    sums = [counts @ statistics for counts in _draw(len(statistics), resamples, seed)]
    return np.quantile(value_of(np.concatenate(sums)), _TAILS, axis=0)


def mean_interval(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of N values, N > 0, and its interval."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    low, high = bootstrap_interval(column, lambda sums: sums / len(column), resamples=resamples, seed=seed)
    return Interval(float(column.mean()), float(low[0]), float(high[0]))


def resample_confusions(
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    counts: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    ordered: bool = False,
) -> dict[str, Resampled]:
    """Accuracy and macro-F1 of resampled rows.

    Both follow from how often each pair of label and prediction occurs, so these counts are drawn and not rows.

    Args:
        labels, predictions, counts (`NDArray[np.int64]` of shape `(P,)`): The pairs that occur, and their rows.
        rng (`np.random.Generator`): Draws.
        ordered (`bool`): Whether the classes have an order, so that answers can be far off.

    Returns:
        `dict[str, Resampled]`: `accuracy` and `f1_macro`, and before them `mae` of ordered classes.
    """
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    every = np.concatenate([counts[None], drawn]).astype(np.float64)
    is_right = labels == predictions
    accuracy = every[:, is_right].sum(axis=1) / counts.sum()
    present, labels_at = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    of_label, of_prediction = np.eye(len(present))[labels_at].reshape(2, len(labels), len(present))
    both = every @ of_label + every @ of_prediction
    right = every @ (of_label * is_right[:, None])
    # Classes in neither labels nor predictions are left out of the mean, in each resample as in the data.
    f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
    f1_macro = f1.sum(axis=1) / (both > 0).sum(axis=1)
    found = {"accuracy": (accuracy[0], accuracy[1:]), "f1_macro": (f1_macro[0], f1_macro[1:])}
    if not ordered:
        return found
    mae = every @ np.abs(labels - predictions) / counts.sum()
    return {"mae": (mae[0], mae[1:]), **found}


def resample_sums(
    statistics: NDArray[np.float64], counts: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Sums over resampled rows.

    Args:
        statistics (`NDArray` of shape `(P, S)`): What a row adds to the sums, for each kind of row.
        counts (`NDArray[np.int64]` of shape `(P,)`): How many rows there are of each.
        rng (`np.random.Generator`): Draws.

    Returns:
        `NDArray` of shape `(1 + R, S)`: of the data, and of each resample.
    """
    sums, at_once = [counts[None] @ statistics], max(1, _MAX_COUNTS // len(counts))
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        sums.append(rng.multinomial(counts.sum(), counts / counts.sum(), size=size) @ statistics)
    return np.concatenate(sums)


def confusion_intervals(confusion: ArrayLike, *, seed: int = 0) -> dict[str, Interval]:
    """`accuracy` and `f1_macro` with their intervals, from a confusion matrix; empty when no row was counted.

    Args:
        confusion (`ArrayLike` of shape `(C, C)`): Rows are labels, columns are predictions.
        seed (`int`): Seed of the resamples.
    """
    matrix = np.asarray(confusion, dtype=np.int64)
    labels, predictions = np.nonzero(matrix)
    if not len(labels):
        return {}
    samples = resample_confusions(labels, predictions, matrix[labels, predictions], np.random.default_rng(seed))
    return {name: Interval.of(value, resampled) for name, (value, resampled) in samples.items()}


def _draw(num_rows: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    evenly = np.full(num_rows, 1 / num_rows)
    at_once = max(1, _MAX_COUNTS // num_rows)
    for start in range(0, resamples, at_once):
        yield generator.multinomial(num_rows, evenly, size=min(at_once, resamples - start))
