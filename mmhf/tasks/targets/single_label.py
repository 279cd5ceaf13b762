"""One class a row."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.evaluation.baselines import Rows, learnt_rows, logistic_regression
from mmhf.evaluation.calibration import (
    CalibrationEvaluation,
    abstention_threshold,
    evaluate_calibration,
)
from mmhf.evaluation.classification import (
    ClassificationEvaluation,
    classification_metrics,
    constant_answer,
    evaluate_classification,
    most_confident_mistakes,
)
from mmhf.evaluation.modalities import CLASS_COMPARISON, Comparison
from mmhf.evaluation.report.classification import ClassificationReport, mistake_cards
from mmhf.evaluation.subgroups import Outcomes, class_outcomes
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import SINGLE_LABEL
from mmhf.tasks.targets.base import (
    MakeCards,
    Predicted,
    ProbabilityTarget,
    balanced_weights,
    class_counts,
    logits_of,
    majority_class,
)

logger = logging.getLogger(__name__)


class SingleLabelTarget(ProbabilityTarget[ClassificationEvaluation]):
    """One class a row."""

    target = SINGLE_LABEL
    report = ClassificationReport()
    column = "label"
    baseline = "logistic regression"

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        if data is None:
            return LossSettings(self.loss.label_smoothing, focal_gamma=self.loss.focal_gamma)
        adjustment = None
        if self.loss.logit_adjustment:
            counts = class_counts(data, "loss.logit_adjustment", "")
            adjustment = [float(value) for value in self.loss.logit_adjustment * np.log(counts / counts.sum())]
        return LossSettings(
            label_smoothing=self.loss.label_smoothing,
            class_weights=balanced_weights(self.loss, data),
            focal_gamma=self.loss.focal_gamma,
            logit_adjustment=adjustment,
        )

    def example_labels(self, batch_size: int, device: str) -> torch.Tensor:
        return torch.zeros(batch_size, dtype=torch.long, device=device)

    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        return classification_metrics(logits_of(prediction), prediction.label_ids, label_names)

    def measure_baseline(self, rows: Mapping[str, Rows], names: Sequence[str]) -> dict[str, dict[str, float]]:
        return best_logistic_regression(rows, names, self.best_metric)

    def fits_on_validation(self) -> list[str]:
        own = [] if self.evaluation.target_accuracy is None else ["target_accuracy"]
        return super().fits_on_validation() + own

    def _fit_decisions(self, logits: NDArray[np.floating], labels: NDArray[Any], config: Any) -> None:
        target_accuracy = self.evaluation.target_accuracy
        if target_accuracy is not None:
            config.abstain_below = abstention_threshold(logits, labels, target_accuracy)
            if config.abstain_below is None:
                reached = "not even the surest validation rows are predicted as well, the model never abstains"
                logger.warning("evaluation.target_accuracy %s: %s", target_accuracy, reached)

    def evaluate(self, predicted: Predicted, config: Any, names: Sequence[str]) -> ClassificationEvaluation:
        return evaluate_classification(predicted.logits, predicted.labels, names, loss=predicted.loss)

    def furthest_off(
        self, predicted: Predicted, evaluation: ClassificationEvaluation
    ) -> tuple[Sequence[int], MakeCards]:
        names = evaluation.label_names
        mistakes = most_confident_mistakes(predicted.logits, predicted.labels, len(names))
        cards = functools.partial(mistake_cards, mistakes, label_names=names)
        return [mistake.index for mistake in mistakes], cards

    def constants(self, evaluation: ClassificationEvaluation, data: LoadedData) -> Mapping[str, Mapping[str, float]]:
        return constant_answer(evaluation, majority_class(data))

    def measure_calibration(
        self, predicted: Predicted, evaluation: ClassificationEvaluation, config: Any
    ) -> CalibrationEvaluation:
        return evaluate_calibration(
            predicted.logits,
            predicted.labels,
            len(evaluation.label_names),
            temperature=config.calibration_temperature,
            abstain_below=config.abstain_below,
        )

    def outcomes(self, predicted: Predicted, evaluation: ClassificationEvaluation, config: Any) -> Outcomes:
        return class_outcomes(predicted.logits, predicted.labels, len(evaluation.label_names))

    def comparison(self, config: Any) -> Comparison:
        return CLASS_COMPARISON


def best_logistic_regression(
    rows: Mapping[str, Rows],
    names: Sequence[str],
    best_metric: str,
    measure: Callable[..., dict[str, float]] = classification_metrics,
) -> dict[str, dict[str, float]]:
    """What the best of a few logistic regressions scores; see `logistic_regression`.

    Args:
        rows (`Mapping[str, Rows]`): `train`, perhaps `validation`, and others to measure.
        names (`Sequence[str]`): The classes.
        best_metric (`str`): What checkpoints are chosen by; the regression is by macro-F1, or else by accuracy.
        measure (`Callable`): From logits, labels and names to metrics.
    """
    train = rows["train"]
    learnt = learnt_rows(len(train.labels), train.features.shape[1], len(names))
    return logistic_regression(
        Rows(train.features[learnt], train.labels[learnt]),
        rows.get("validation"),
        {split: each for split, each in rows.items() if split != "train"},
        names,
        metric=best_metric if best_metric == "f1_macro" else "accuracy",
        measure=measure,
    )
