"""One class a row, of classes that have an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.evaluation.baselines import Rows
from mmhf.evaluation.modalities import ModalityEvaluation
from mmhf.evaluation.ordinal import ORDINAL_PROTOCOLS, constant_metrics, evaluate_ordinal, ordinal_metrics
from mmhf.evaluation.report.ordinal import MeasuredOrdinal, furthest_off, missed_rows, write_ordinal_report
from mmhf.evaluation.report.sections import RunFacts
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import ORDINAL
from mmhf.tasks.targets.base import (
    ClassifierTarget,
    Predicted,
    balanced_weights,
    chosen_rows,
    logits_of,
    majority_class,
)
from mmhf.tasks.targets.single_label import best_logistic_regression


class OrdinalTarget(ClassifierTarget):
    """One of several classes that have an order."""

    target = ORDINAL
    protocols = ORDINAL_PROTOCOLS
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

    def measure(
        self, predicted: Predicted, config: Any, *, data: LoadedData, split: str, modalities: ModalityEvaluation | None
    ) -> MeasuredOrdinal:
        logits, labels, names = predicted.logits, predicted.labels, data.label_names
        evaluation = evaluate_ordinal(logits, labels, names, loss=predicted.loss)
        places = furthest_off(evaluation, labels)
        rows = chosen_rows(data, split, evaluation.rows[places].tolist())
        missed = None if rows is None else missed_rows(evaluation, places.tolist(), rows)
        majority, constants = majority_class(data), {}
        if majority is not None and evaluation.num_rows:
            constants = {f"always “{majority}”": constant_metrics(names.index(majority), evaluation)}
        return MeasuredOrdinal(evaluation, missed, constants)

    def write_report(self, run: RunFacts, measured: Mapping[str, Any]) -> None:
        write_ordinal_report(run, measured)
