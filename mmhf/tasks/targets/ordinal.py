"""One class a row, of classes that have an order."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.evaluation.baselines import Rows
from mmhf.evaluation.calibration import CalibrationEvaluation, evaluate_calibration
from mmhf.evaluation.modalities import Comparison
from mmhf.evaluation.ordinal import (
    OrdinalEvaluation,
    constant_metrics,
    evaluate_ordinal,
    median_answers,
    ordinal_metrics,
)
from mmhf.evaluation.report.ordinal import OrdinalReport, missed_rows
from mmhf.evaluation.subgroups import Outcomes, pair_outcomes
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import ORDINAL
from mmhf.tasks.targets.base import (
    MakeCards,
    Predicted,
    ProbabilityTarget,
    balanced_weights,
    logits_of,
    majority_class,
)
from mmhf.tasks.targets.single_label import best_logistic_regression


class OrdinalTarget(ProbabilityTarget[OrdinalEvaluation]):
    """One of several classes that have an order."""

    target = ORDINAL
    report = OrdinalReport()
    column = "label"
    baseline = "logistic regression"

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        weights = None if data is None else balanced_weights(self.loss, data)
        return LossSettings(class_weights=weights, problem_type=self.target.problem_type, ordinal=True)

    def example_labels(self, batch_size: int, device: str) -> torch.Tensor:
        return torch.zeros(batch_size, dtype=torch.long, device=device)

    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        return ordinal_metrics(logits_of(prediction), np.asarray(prediction.label_ids), label_names)

    def measure_baseline(self, rows: Mapping[str, Rows], names: Sequence[str]) -> dict[str, dict[str, float]]:
        return best_logistic_regression(rows, names, self.best_metric, ordinal_metrics)

    def evaluate(self, predicted: Predicted, config: Any, names: Sequence[str]) -> OrdinalEvaluation:
        return evaluate_ordinal(predicted.logits, predicted.labels, names, loss=predicted.loss)

    def furthest_off(self, predicted: Predicted, evaluation: OrdinalEvaluation) -> tuple[Sequence[int], MakeCards]:
        places = evaluation.furthest_off()
        return evaluation.rows[places].tolist(), functools.partial(missed_rows, evaluation, places.tolist())

    def constants(self, evaluation: OrdinalEvaluation, data: LoadedData) -> Mapping[str, Mapping[str, float]]:
        majority = majority_class(data)
        if majority is None:
            return {}
        return {f"always “{majority}”": constant_metrics(data.label_names.index(majority), evaluation)}

    def measure_calibration(
        self, predicted: Predicted, evaluation: OrdinalEvaluation, config: Any
    ) -> CalibrationEvaluation:
        return evaluate_calibration(
            predicted.logits,
            predicted.labels,
            len(evaluation.label_names),
            temperature=config.calibration_temperature,
            answer=median_answers,
        )

    def outcomes(self, predicted: Predicted, evaluation: OrdinalEvaluation, config: Any) -> Outcomes:
        return pair_outcomes(evaluation.rows, evaluation.labels, evaluation.answers, ordered=True)

    def comparison(self, config: Any) -> Comparison:
        return Comparison(
            metrics=("mae", "accuracy", "kappa_quadratic"),
            measure=ordinal_metrics,
            apart=_ranks_apart,
            changes="moves the answers by {:.2f} ranks on average",
            changed="By how many ranks answers move, on average, when another row's text is put beside the image.",
        )


def _ranks_apart(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    first, second = (median_answers(softmax(logits.astype(np.float64), axis=1)) for logits in (one, other))
    distances: NDArray[np.int64] = np.abs(first - second)
    return distances
