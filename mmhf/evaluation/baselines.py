"""What frozen features give without training a network: the numbers that a recipe must beat.

Settings are chosen on the validation split, or, where there is none, on a fifth of the training rows that is then
learnt from, too. The split that is reported is never looked at for them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import log_softmax

from mmhf.evaluation.classification import classification_metrics
from mmhf.evaluation.regression import regression_metrics

Floats = NDArray[np.float64]
ClassWeights = Mapping[int, float] | Literal["balanced"] | None
ProbeT = TypeVar("ProbeT")

CPU_SECONDS = "cpu_seconds"
"""Beside a baseline's metrics: the time of all cores together that it took."""
STRENGTHS = (1e-3, 1e-2, 1e-1)
"""scikit-learn's `C` of the regressions that are tried on standardised features, until one is worse than the last."""
RIDGE_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Ridges that are tried for numbers, in units of the rows, on standardised features."""
MAX_WORK = 2e8
"""Rows × features × classes that one regression learns from at most; see `learnt_rows`."""
PAIR_WIDTH = 64
"""Principal components of image and text whose products tell how the two go together, as many of each at most."""
_UNEVEN = 1.5
MAX_ITERATIONS = 500
"""Of the solver of a logistic regression."""


class Rows(NamedTuple):
    """Features (N, D) of labelled rows, and the labels: (N,) class ids, or (N, T) numbers."""

    features: NDArray[np.floating]
    labels: NDArray[Any]


class LinearProbe:
    """Logistic regression on standardised features.

    Args:
        rows ([`Rows`]): What it learns from.
        strength (`float`): scikit-learn's `C`; larger is less regularised.
        weights (`Mapping[int, float]` or `"balanced"`, *optional*): What a row of each class counts for; `balanced`:
            as much in sum for rare classes as for frequent ones; absent: all the same.
        start ([`LinearProbe`], *optional*): Begin where this one ended, which saves time.
    """

    def __init__(
        self, rows: Rows, *, strength: float, weights: ClassWeights = None, start: LinearProbe | None = None
    ) -> None:
        # Here, because scikit-learn takes a second to load, which nobody waits for who only plans.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self.strength, self.weights = strength, weights
        self._mean, self._scale = mean_and_scale(rows.features)
        if isinstance(weights, Mapping):
            weights = {label: weights[label] for label in np.unique(rows.labels).tolist()}
        self._regression = LogisticRegression(
            C=strength, class_weight=weights, max_iter=MAX_ITERATIONS, warm_start=True
        )
        if start is not None and np.array_equal(start._regression.classes_, np.unique(rows.labels)):
            for name in ("coef_", "intercept_", "classes_"):
                setattr(self._regression, name, getattr(start._regression, name).copy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._regression.fit(self._standardised(rows.features), rows.labels)

    def logits(self, features: NDArray[np.floating], num_classes: int) -> Floats:
        """(N, C) logarithms of probabilities; classes that it never saw have almost none."""
        found = np.full((len(features), num_classes), -1e3)
        # In fp64, whatever it was fitted in: probabilities that fp32 rounds to 0 have no logarithm.
        weight, bias = (
            np.asarray(each, dtype=np.float64) for each in (self._regression.coef_, self._regression.intercept_)
        )
        scores = self._standardised(features).astype(np.float64) @ weight.T + bias
        if len(weight) == 1:  # two classes: the score is that of the second
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        found[:, self._regression.classes_] = log_softmax(scores, axis=1)
        return found

    def linear(self, num_classes: int, *, below: float) -> tuple[Floats, Floats]:
        """Weight (C, D) and bias (C,) that give the same probabilities on features as they are.

        Classes that it never saw have weight 0, and a bias that lies `below` the smallest.
        """
        fitted = self._regression
        own, offsets = (np.asarray(each, dtype=np.float64) for each in (fitted.coef_, fitted.intercept_))
        if len(own) == 1:  # two classes: the one row tells the second from the first
            own, offsets = np.concatenate([-own, own]) / 2, np.concatenate([-offsets, offsets]) / 2
        own = own / self._scale
        offsets = offsets - own @ self._mean
        weight, bias = np.zeros((num_classes, own.shape[1])), np.full(num_classes, offsets.min() - below)
        weight[self._regression.classes_], bias[self._regression.classes_] = own, offsets
        return weight, bias

    def _standardised(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        standardised: NDArray[np.floating] = (features - self._mean) / self._scale
        return standardised


def mean_and_scale(features: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and standard deviation of each feature, which is 1 where there is none.

    In the precision of the features, fp32 at least, in which a regression is then fitted: fp32 takes 0.4 of the time.
    """
    precision = np.result_type(features, np.float32)
    means, scales = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scales[scales < 1e-8] = 1.0
    return means.astype(precision), scales.astype(precision)


def learnt_rows(num_rows: int, width: int, num_classes: int) -> NDArray[np.int64]:
    """The training rows that a regression learns from: all, or evenly spaced ones where it would take too long."""
    return even_rows(num_rows, max(int(MAX_WORK / (width * num_classes)), num_classes))


def even_rows(length: int, most: int) -> NDArray[np.int64]:
    """All of `length` rows, or `most` of them, evenly spaced."""
    return np.arange(length) if length <= most else np.linspace(0, length - 1, most).astype(np.int64)


def logistic_regression(
    train: Rows,
    validation: Rows | None,
    tested: Mapping[str, Rows],
    label_names: Sequence[str],
    *,
    metric: str = "accuracy",
    measure: Callable[..., dict[str, float]] = classification_metrics,
) -> dict[str, dict[str, float]]:
    """What the best of a few logistic regressions scores.

    Args:
        train, validation ([`Rows`]): What they learn from, and what the best is chosen on.
        tested (`Mapping[str, Rows]`): What it is measured on, by split.
        label_names (`Sequence[str]`): The classes.
        metric (`str`, defaults to `"accuracy"`): What it is chosen by: `accuracy` or `f1_macro`.
        measure (`Callable`, *optional*): From logits, labels and names to the metrics that it is given.

    Returns:
        `dict[str, dict[str, float]]`: Split → metrics and `cpu_seconds`; of one class a row `accuracy` and `f1_macro`.
        Empty where the training rows have one class only.
    """
    begun = time.process_time()
    counts = np.unique(train.labels, return_counts=True)[1]
    is_uneven = counts.max(initial=0) > _UNEVEN * counts.min(initial=1)
    best = best_probe(
        train, validation, label_names, metric=metric, weightings=(None, "balanced") if is_uneven else (None,)
    )
    if best is None:
        return {}
    found = {split: _score(best, rows, label_names, measure) for split, rows in tested.items()}
    seconds = time.process_time() - begun
    return {split: {**scores, CPU_SECONDS: seconds} for split, scores in found.items()}


def ridge_regression(
    train: Rows, validation: Rows | None, tested: Mapping[str, Rows], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What the best of a few ridge regressions on standardised features scores, in closed form.

    Args:
        train, validation ([`Rows`]): What they learn from, and what the best is chosen on, by R²; labels are (N, T).
        tested (`Mapping[str, Rows]`): What it is measured on, by split.
        names (`Sequence[str]`): Of the T numbers.

    Returns:
        `dict[str, dict[str, float]]`: Split → the numbers of `regression_metrics`, and `cpu_seconds`.
    """
    begun = time.process_time()
    learnt, judge = train, validation
    if judge is None or not len(judge.labels):
        held = np.arange(len(train.labels)) % 5 == 1
        learnt, judge = (Rows(train.features[chosen], train.labels[chosen]) for chosen in (~held, held))
    tried = _Ridges(learnt)
    best = max(RIDGE_STRENGTHS, key=lambda strength: _r2(tried.answer(judge.features, strength), judge.labels))
    ridges = tried if learnt is train else _Ridges(train)
    found = {
        split: regression_metrics(ridges.answer(rows.features, best), rows.labels, names)
        for split, rows in tested.items()
    }
    seconds = time.process_time() - begun
    return {split: {**scores, CPU_SECONDS: seconds} for split, scores in found.items()}


class _Ridges:
    """scikit-learn's `Ridge(alpha=strength * rows)` on standardised features, of any strength."""

    def __init__(self, rows: Rows) -> None:
        learnt = learnt_rows(len(rows.labels), rows.features.shape[1], rows.labels.shape[1])
        features, labels = (np.asarray(each, dtype=np.float64)[learnt] for each in rows)
        self._mean, self._scale, self._offset = features.mean(axis=0), features.std(axis=0), labels.mean(axis=0)
        self._scale[self._scale < 1e-8] = 1.0
        features = (features - self._mean) / self._scale
        self._moments = features.T @ features / len(features)
        self._shared = features.T @ (labels - self._offset) / len(features)

    def answer(self, features: NDArray[np.floating], strength: float) -> Floats:
        """(N, T) numbers of (N, D) features."""
        weights = np.linalg.solve(self._moments + strength * np.eye(len(self._moments)), self._shared)
        answers: Floats = (features - self._mean) / self._scale @ weights + self._offset
        return answers


def _r2(answers: Floats, labels: NDArray[Any]) -> float:
    """Mean over numbers of the share of the labels' variance that answers explain."""
    spread = ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
    return float((1 - ((answers - labels) ** 2).sum(axis=0) / np.where(spread > 0, spread, 1.0)).mean())


def along_strengths(
    fit: Callable[[float, ProbeT | None], ProbeT], score: Callable[[ProbeT], float]
) -> list[tuple[float, ProbeT]]:
    """Regressions with their scores, from the most regularised on, each from where the last one ended, until one is
    worse than that."""
    found: list[tuple[float, ProbeT]] = []
    for strength in STRENGTHS:
        probe = fit(strength, found[-1][1] if found else None)
        found.append((score(probe), probe))
        if len(found) > 1 and found[-1][0] < found[-2][0]:
            break
    return found


def best_probe(
    train: Rows,
    validation: Rows | None,
    label_names: Sequence[str],
    *,
    metric: str = "accuracy",
    weightings: Sequence[ClassWeights] = (None,),
) -> LinearProbe | None:
    """The best of a few logistic regressions.

    Args:
        train, validation ([`Rows`]): What they learn from, and what the best is chosen on; without the second, a fifth
            of the first, all of which the best one then learns from.
        label_names (`Sequence[str]`): The classes.
        metric (`str`, defaults to `"accuracy"`): What it is chosen by: `accuracy` or `f1_macro`.
        weightings (`Sequence`): Weights of the classes that are tried; all but the first with the strength that is
            best with the first.

    Returns:
        [`LinearProbe`], or None where the training rows have fewer than two classes.
    """
    if len(np.unique(train.labels)) < 2:
        return None
    learnt, judge = (train, validation) if validation is not None and len(validation.labels) else _held_out(train)
    first, *others = weightings

    def score(probe: LinearProbe) -> float:
        return _score(probe, judge, label_names)[metric]

    tried = along_strengths(
        lambda strength, start: LinearProbe(learnt, strength=strength, weights=first, start=start), score
    )
    best = max(tried, key=itemgetter(0))[1]
    for weights in others:
        probe = LinearProbe(learnt, strength=best.strength, weights=weights, start=best)
        tried.append((score(probe), probe))
    best = max(tried, key=itemgetter(0))[1]
    if learnt is not train:
        best = LinearProbe(train, strength=best.strength, weights=best.weights, start=best)
    return best


class PairFeatures:
    """Features of pairs: the first principal components of the image's and of the text's, and all their products.

    Args:
        images, texts (`NDArray`): (N, D) and (N, E), of the training rows.
    """

    def __init__(self, images: NDArray[np.floating], texts: NDArray[np.floating]) -> None:
        self._components = [_whitened_components(features) for features in (images, texts)]

    def __call__(self, images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float32]:
        """(N, K + L + K L), of K components of images and L of texts."""
        first, second = (
            np.pad(((features - mean) @ axes).astype(np.float32), ((0, 0), (1, 0)), constant_values=1.0)
            for features, (mean, axes) in zip((images, texts), self._components, strict=True)
        )
        products: NDArray[np.float32] = first[:, :, None] * second[:, None, :]
        return products.reshape(len(first), -1)[:, 1:]


def _score(
    probe: LinearProbe,
    rows: Rows,
    label_names: Sequence[str],
    measure: Callable[..., dict[str, float]] = classification_metrics,
) -> dict[str, float]:
    found = measure(probe.logits(rows.features, len(label_names)), rows.labels, label_names)
    if measure is not classification_metrics:
        return found
    return {name: found.get(name, 0.0) for name in ("accuracy", "f1_macro")}


def _whitened_components(features: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The mean (D,) of features and their first principal axes (D, K), scaled to unit variance."""
    mean = features.mean(axis=0, dtype=np.float64)
    centred = (features - mean).astype(np.result_type(features, np.float32))
    last = centred.shape[1] - 1
    first = max(last + 1 - PAIR_WIDTH, 0)
    variances, axes = eigh(centred.T @ centred / len(centred), subset_by_index=(first, last))
    return mean, axes / np.sqrt(np.maximum(variances, 1e-6 * variances[-1]))


def _held_out(rows: Rows) -> tuple[Rows, Rows]:
    """Four fifths of each class, and the rest; a class of one row is learnt from."""
    order = np.argsort(rows.labels, kind="stable")
    firsts = np.searchsorted(rows.labels[order], rows.labels[order])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - firsts
    held = place % 5 == 1
    return Rows(rows.features[~held], rows.labels[~held]), Rows(rows.features[held], rows.labels[held])
