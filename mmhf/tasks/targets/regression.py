"""Numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.evaluation.baselines import Rows, ridge_regression
from mmhf.evaluation.modalities import Comparison
from mmhf.evaluation.regression import (
    RegressionEvaluation,
    constant_metrics,
    evaluate_regression,
    regression_metrics,
)
from mmhf.evaluation.report.regression import RegressionReport, missed_rows
from mmhf.evaluation.subgroups import Outcomes, number_outcomes
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import REGRESSION
from mmhf.tasks.targets.base import ClassifierTarget, MakeCards, Predicted, logits_of


class RegressionTarget(ClassifierTarget[RegressionEvaluation]):
    """Numbers, one a row or several."""

    target = REGRESSION
    report = RegressionReport()
    column = "numbers"
    baseline = "ridge regression"

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        mean = deviation = None
        if data is not None:
            numbers = _training_numbers(data)
            assert numbers is not None
            mean, deviation = numbers.mean(axis=0), numbers.std(axis=0)
            # A mean of equal numbers is rounded, so that their deviation is not quite 0.
            same = np.ptp(numbers, axis=0) == 0
            if same.any():
                place = int(np.argmax(same))
                raise InputError(
                    f"data.regression: {data.label_names[place]} is {numbers[0, place]:g} in each training row; there "
                    "is nothing to learn"
                )
        return LossSettings(
            huber_delta=self.loss.huber_delta,
            target_mean=None if mean is None else mean.tolist(),
            target_std=None if deviation is None else deviation.tolist(),
            problem_type=self.target.problem_type,
        )

    def example_labels(self, batch_size: int, device: str) -> torch.Tensor:
        return torch.zeros(batch_size, 1, device=device)

    def is_known(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = np.isfinite(labels).all(axis=1)
        return known

    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        return regression_metrics(logits_of(prediction), np.asarray(prediction.label_ids), label_names)

    def given_columns(self, rows: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
        numbers = np.asarray(rows.column(self.column).to_pylist(), dtype=np.float64).reshape(len(rows), len(names))
        return {f"true_{name}": pa.array(numbers[:, place]) for place, name in enumerate(names)}

    def measure_baseline(self, rows: Mapping[str, Rows], names: Sequence[str]) -> dict[str, dict[str, float]]:
        tested = {split: each for split, each in rows.items() if split != "train"}
        return ridge_regression(rows["train"], rows.get("validation"), tested, names)

    def evaluate(self, predicted: Predicted, config: Any, names: Sequence[str]) -> RegressionEvaluation:
        return evaluate_regression(predicted.logits, predicted.labels, names, loss=predicted.loss)

    def furthest_off(self, predicted: Predicted, evaluation: RegressionEvaluation) -> tuple[Sequence[int], MakeCards]:
        places = evaluation.furthest_off()
        return evaluation.rows[places].tolist(), functools.partial(missed_rows, evaluation, places.tolist())

    def constants(self, evaluation: RegressionEvaluation, data: LoadedData) -> Mapping[str, Mapping[str, float]]:
        numbers = _training_numbers(data)
        if numbers is None:
            return {}
        same = {"the training mean": numbers.mean(axis=0), "the training median": np.median(numbers, axis=0)}
        return {name: constant_metrics(value, evaluation) for name, value in same.items()}

    def outcomes(self, predicted: Predicted, evaluation: RegressionEvaluation, config: Any) -> Outcomes:
        return number_outcomes(evaluation)

    def comparison(self, config: Any) -> Comparison:
        return Comparison(
            metrics=("mae", "r2", "spearman"),
            measure=regression_metrics,
            apart=lambda one, other: np.abs(one.astype(np.float64) - other),
            changes="moves the answers by {:.4g} on average",
            changed="By how much answers move, on average, when another row's text is put beside the image.",
        )


def _training_numbers(data: LoadedData) -> NDArray[np.float64] | None:
    """(N, T) of the training split; None where it is not loaded."""
    rows = data.splits.get("train")
    return np.asarray(rows["numbers"][:], dtype=np.float64) if isinstance(rows, datasets.Dataset) else None
