"""Any number of labels a row."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.evaluation.baselines import Rows
from mmhf.evaluation.calibration import CalibrationEvaluation
from mmhf.evaluation.label_calibration import fit_shared_temperature, label_calibration
from mmhf.evaluation.modalities import Comparison
from mmhf.evaluation.multi_label import (
    MultiLabelEvaluation,
    constant_answers,
    evaluate_multi_label,
    fit_thresholds,
    given_labels,
    multi_label_metrics,
    surest_mistakes,
)
from mmhf.evaluation.one_vs_rest import one_vs_rest
from mmhf.evaluation.report.multi_label import MultiLabelReport, wrong_rows
from mmhf.evaluation.subgroups import Outcomes, label_outcomes
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import MULTI_LABEL
from mmhf.tasks.targets.base import MakeCards, Predicted, ProbabilityTarget, given_weights, logits_of, none_absent

logger = logging.getLogger(__name__)


class MultiLabelTarget(ProbabilityTarget[MultiLabelEvaluation]):
    """Any number of labels a row."""

    target = MULTI_LABEL
    report = MultiLabelReport()
    column = "labels"
    baseline = "logistic regression"

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        weights = None if data is None else given_weights(self.loss, data)
        if data is not None and self.loss.class_weights == "balanced":  # negatives / positives, as torch has it
            rows = data.splits["train"]
            assert isinstance(rows, datasets.Dataset)
            counts = np.asarray(rows["labels"][:]).sum(axis=0)
            positives = none_absent(counts, data, "loss.class_weights: balanced")
            weights = [float(weight) for weight in (data.num_rows("train") or 0) / positives - 1]
        return LossSettings(
            label_smoothing=self.loss.label_smoothing,
            class_weights=weights,
            focal_gamma=self.loss.focal_gamma,
            asymmetric=None if self.loss.asymmetric is None else self.loss.asymmetric.model_dump(),
            problem_type=self.target.problem_type,
        )

    def example_labels(self, batch_size: int, device: str) -> torch.Tensor:
        return torch.zeros(batch_size, 1, device=device)  # one column stands for all labels

    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        # Thresholds are 0.5, since none is fitted yet.
        return multi_label_metrics(logits_of(prediction), np.asarray(prediction.label_ids), label_names)

    def is_known(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = np.all(labels >= 0, axis=1)
        return known

    def given_columns(self, rows: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
        given = rows.column(self.column).to_pylist()
        listed = [[name for name, has in zip(names, row, strict=True) if has] for row in given]
        return {self.column: pa.array(listed, pa.list_(pa.string()))}

    def measure_baseline(self, rows: Mapping[str, Rows], names: Sequence[str]) -> dict[str, dict[str, float]]:
        tested = {split: each for split, each in rows.items() if split != "train"}
        with_thresholds = self.evaluation.fit_thresholds is not False
        return one_vs_rest(rows["train"], rows.get("validation"), tested, names, with_thresholds=with_thresholds)

    def fits_by_itself(self) -> bool:
        return self.evaluation.fit_thresholds is None

    def fits_on_validation(self) -> list[str]:
        return super().fits_on_validation() + (["fit_thresholds"] if self.evaluation.fit_thresholds else [])

    def _fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[Any]) -> float:
        return fit_shared_temperature(logits, labels)

    def _fit_decisions(self, logits: NDArray[np.floating], labels: NDArray[Any], config: Any) -> None:
        if self.evaluation.fit_thresholds is not False:
            config.thresholds = fit_thresholds(logits, labels)
            low, high = min(config.thresholds), max(config.thresholds)
            logger.info("Thresholds from %.3f to %.3f, fitted on the validation split", low, high)

    def evaluate(self, predicted: Predicted, config: Any, names: Sequence[str]) -> MultiLabelEvaluation:
        return evaluate_multi_label(
            predicted.logits,
            predicted.labels,
            names,
            thresholds=config.thresholds,
            temperature=config.calibration_temperature,
            loss=predicted.loss,
        )

    def furthest_off(self, predicted: Predicted, evaluation: MultiLabelEvaluation) -> tuple[Sequence[int], MakeCards]:
        found = surest_mistakes(predicted.logits, predicted.labels)
        cards = functools.partial(wrong_rows, found, label_names=evaluation.label_names)
        return [each.index for each in found], cards

    def constants(self, evaluation: MultiLabelEvaluation, data: LoadedData) -> Mapping[str, Mapping[str, float]]:
        return constant_answers(evaluation)

    def measure_calibration(
        self, predicted: Predicted, evaluation: MultiLabelEvaluation, config: Any
    ) -> CalibrationEvaluation:
        return label_calibration(evaluation, predicted.logits, predicted.labels)

    def outcomes(self, predicted: Predicted, evaluation: MultiLabelEvaluation, config: Any) -> Outcomes:
        return label_outcomes(predicted.logits, predicted.labels, config.thresholds)

    def comparison(self, config: Any) -> Comparison:
        limits = config.thresholds

        def measure(logits: NDArray[Any], labels: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
            return evaluate_multi_label(logits, labels, names, thresholds=limits).metrics

        return Comparison(
            metrics=("map", "f1_micro", "f1_macro"),
            measure=measure,
            apart=lambda one, other: given_labels(one, limits) != given_labels(other, limits),
            changes="changes {:.1%} of the decisions about labels",
            changed="Share of all decisions about labels that change when another row's text is put beside an image.",
        )
