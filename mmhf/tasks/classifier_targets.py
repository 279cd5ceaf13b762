"""What a classifier learns: a class, or any number of labels. Loss, metrics, thresholds and report are asked here."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.evaluation.calibration import abstention_threshold, evaluate_calibration, fit_temperature
from mmhf.evaluation.classification import (
    PROTOCOLS,
    classification_metrics,
    evaluate_classification,
    most_confident_mistakes,
)
from mmhf.evaluation.modalities import ModalityEvaluation
from mmhf.evaluation.multi_label import (
    MULTI_LABEL_PROTOCOLS,
    evaluate_multi_label,
    fit_shared_temperature,
    fit_thresholds,
    multi_label_metrics,
    surest_mistakes,
)
from mmhf.evaluation.report.classification import (
    MeasuredClassification,
    mistake_examples,
    write_classification_report,
)
from mmhf.evaluation.report.multi_label import MeasuredMultiLabel, WrongRow, write_multi_label_report, wrong_rows
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.subgroups import evaluate_subgroups
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import MULTI_LABEL, SINGLE_LABEL, Target
from mmhf.recipe.classification import ClassificationRecipe, LossSection

logger = logging.getLogger(__name__)


class Predicted(NamedTuple):
    """What a model says of a split: logits (N, C), labels (N,) or (N, C), loss, and its other outputs if asked for."""

    logits: NDArray[np.floating]
    labels: NDArray[Any]
    loss: float
    others: tuple[Any, ...] = ()


class ClassifierTarget(ABC):
    """What a classifier learns.

    Args:
        recipe ([`ClassificationRecipe`]): Its sections `loss` and `evaluation` are followed.
    """

    target: Target
    """What its outputs stand for."""
    protocols: Mapping[str, str]
    """Each metric's definition."""

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self.loss = recipe.loss
        self.evaluation = recipe.evaluation

    @abstractmethod
    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        """The loss that the recipe describes, for the classes of its data.

        Args:
            data (`LoadedData`, *optional*): Absent when only shapes are wanted: what depends on the classes is left
                out.

        Raises:
            InputError: There are not as many weights as classes, or counts are needed of a stream or of a class that
                has no training row.
        """

    @abstractmethod
    def example_labels(self, batch_size: int, device: str) -> torch.Tensor:
        """Labels of a batch, to plan memory with."""

    @abstractmethod
    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        """The numbers of an evaluation while training, for Trainer's `compute_metrics`."""

    def fits_on_validation(self) -> list[str]:
        """Keys of the recipe's `evaluation` that ask for something that is fitted on the validation split."""
        return ["calibrate"] if self.evaluation.calibrate else []

    def finish(self, predicted: Predicted, config: Any) -> None:
        """Fit what is fitted on the validation split, and keep it in the model's config."""
        logits = predicted.logits * config.calibration_temperature
        if self.evaluation.calibrate:
            config.calibration_temperature = self._fit_temperature(logits, predicted.labels)
            logger.info("Temperature %.4g, fitted on the validation split", config.calibration_temperature)
        self._fit_decisions(logits / config.calibration_temperature, predicted.labels, config)

    @abstractmethod
    def _fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[Any]) -> float:
        """The temperature at which probabilities fit the labels best."""

    @abstractmethod
    def _fit_decisions(self, logits: NDArray[np.floating], labels: NDArray[Any], config: Any) -> None:
        """Fit where probabilities become decisions; the logits are divided by the temperature."""

    @abstractmethod
    def measure(
        self, predicted: Predicted, config: Any, *, data: LoadedData, split: str, modalities: ModalityEvaluation | None
    ) -> Any:
        """All that a report says of a split."""

    @abstractmethod
    def write_report(self, run: RunFacts, measured: Mapping[str, Any]) -> None:
        """Write report, plots and numbers of what `measure` gave of each split."""


class SingleLabelTarget(ClassifierTarget):
    """One class a row."""

    target = SINGLE_LABEL
    protocols = PROTOCOLS

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        if data is None:
            return LossSettings(self.loss.label_smoothing, focal_gamma=self.loss.focal_gamma)
        adjustment = None
        if self.loss.logit_adjustment:
            counts = _class_counts(data, "loss.logit_adjustment", "")
            adjustment = [float(value) for value in self.loss.logit_adjustment * np.log(counts / counts.sum())]
        weights = _given_weights(self.loss, data)
        if self.loss.class_weights == "balanced":  # N / (C × count), as in scikit-learn
            counts = _class_counts(data, "loss.class_weights: balanced", ", give a list")
            weights = [float(weight) for weight in counts.sum() / (len(counts) * counts)]
        return LossSettings(
            label_smoothing=self.loss.label_smoothing,
            class_weights=weights,
            focal_gamma=self.loss.focal_gamma,
            logit_adjustment=adjustment,
        )

    def example_labels(self, batch_size: int, device: str) -> torch.Tensor:
        return torch.zeros(batch_size, dtype=torch.long, device=device)

    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        return classification_metrics(_logits(prediction), prediction.label_ids, label_names)

    def fits_on_validation(self) -> list[str]:
        own = [] if self.evaluation.target_accuracy is None else ["target_accuracy"]
        return super().fits_on_validation() + own

    def _fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[Any]) -> float:
        return fit_temperature(logits, labels)

    def _fit_decisions(self, logits: NDArray[np.floating], labels: NDArray[Any], config: Any) -> None:
        target_accuracy = self.evaluation.target_accuracy
        if target_accuracy is not None:
            config.abstain_below = abstention_threshold(logits, labels, target_accuracy)
            if config.abstain_below is None:
                reached = "not even the surest validation rows are predicted as well, the model never abstains"
                logger.warning("evaluation.target_accuracy %s: %s", target_accuracy, reached)

    def measure(
        self, predicted: Predicted, config: Any, *, data: LoadedData, split: str, modalities: ModalityEvaluation | None
    ) -> MeasuredClassification:
        logits, labels, names = predicted.logits, predicted.labels, data.label_names
        measured = MeasuredClassification(
            evaluate_classification(logits, labels, names, loss=predicted.loss),
            calibration=evaluate_calibration(
                logits,
                labels,
                len(names),
                temperature=config.calibration_temperature,
                abstain_below=config.abstain_below,
            ),
            modalities=modalities,
            majority=_majority(data),
        )
        rows = data.splits[split]
        if not isinstance(rows, datasets.Dataset):  # a stream cannot be asked for single rows
            return measured
        mistakes = most_confident_mistakes(logits, labels, len(names))
        wrong = rows.select([mistake.index for mistake in mistakes])
        columns = {name: rows[extra_column(name)][:] for name in self.evaluation.subgroups}
        min_rows = self.evaluation.subgroup_min_rows
        subgroups = evaluate_subgroups(logits, labels, columns, len(names), min_rows=min_rows)
        return replace(measured, mistakes=mistake_examples(mistakes, wrong, names), subgroups=subgroups)

    def write_report(self, run: RunFacts, measured: Mapping[str, Any]) -> None:
        min_rows = self.evaluation.subgroup_min_rows
        write_classification_report(run, measured, protocols=self.protocols, min_rows=min_rows)


class MultiLabelTarget(ClassifierTarget):
    """Any number of labels a row."""

    target = MULTI_LABEL
    protocols = MULTI_LABEL_PROTOCOLS

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        weights = None if data is None else _given_weights(self.loss, data)
        if data is not None and self.loss.class_weights == "balanced":  # negatives / positives, as torch has it
            rows = data.splits["train"]
            assert isinstance(rows, datasets.Dataset)
            counts = np.asarray(rows["labels"][:]).sum(axis=0)
            positives = _none_absent(counts, data, "loss.class_weights: balanced")
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
        return multi_label_metrics(_logits(prediction), np.asarray(prediction.label_ids), label_names)

    def fits_on_validation(self) -> list[str]:
        return super().fits_on_validation() + (["fit_thresholds"] if self.evaluation.fit_thresholds else [])

    def _fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[Any]) -> float:
        return fit_shared_temperature(logits, labels)

    def _fit_decisions(self, logits: NDArray[np.floating], labels: NDArray[Any], config: Any) -> None:
        if self.evaluation.fit_thresholds is not False:
            config.thresholds = fit_thresholds(logits, labels)
            low, high = min(config.thresholds), max(config.thresholds)
            logger.info("Thresholds from %.3f to %.3f, fitted on the validation split", low, high)

    def measure(
        self, predicted: Predicted, config: Any, *, data: LoadedData, split: str, modalities: ModalityEvaluation | None
    ) -> MeasuredMultiLabel:
        logits, labels, names = predicted.logits, predicted.labels, data.label_names
        evaluation = evaluate_multi_label(logits, labels, names, thresholds=config.thresholds, loss=predicted.loss)
        mistakes: list[WrongRow] | None = None
        rows = data.splits[split]
        if isinstance(rows, datasets.Dataset):
            found = surest_mistakes(logits, labels)
            mistakes = wrong_rows(found, rows.select([each.index for each in found]), names)
        return MeasuredMultiLabel(evaluation, mistakes, config.calibration_temperature)

    def write_report(self, run: RunFacts, measured: Mapping[str, Any]) -> None:
        write_multi_label_report(run, measured)


def classifier_target(recipe: ClassificationRecipe) -> ClassifierTarget:
    """What a classifier of this recipe learns."""
    return SingleLabelTarget(recipe) if recipe.data.label_sets is None else MultiLabelTarget(recipe)


def _logits(prediction: EvalPrediction) -> NDArray[Any]:
    given = prediction.predictions
    return np.asarray(given[0] if isinstance(given, tuple) else given)


def _given_weights(section: LossSection, data: LoadedData) -> list[float] | None:
    weights = section.class_weights
    if weights is None or isinstance(weights, str):
        return None
    if len(weights) != len(data.label_names):
        raise InputError(
            f"loss.class_weights: {len(weights)} weights for the {len(data.label_names)} labels {data.label_names}"
        )
    return list(weights)


def _majority(data: LoadedData) -> str | None:
    """The largest class of the training split; None where it is not loaded, or is a stream."""
    rows = data.splits.get("train")
    if not isinstance(rows, datasets.Dataset):
        return None
    labels = np.asarray(rows["label"][:])
    counts = np.bincount(labels[labels >= 0], minlength=len(data.label_names))
    return data.label_names[int(counts.argmax())]


def _class_counts(data: LoadedData, setting: str, way_out: str) -> NDArray[np.int64]:
    rows = data.splits["train"]
    if not isinstance(rows, datasets.Dataset):
        raise InputError(f"{setting} needs all labels at once; a stream has none{way_out}")
    return _none_absent(np.bincount(np.asarray(rows["label"]), minlength=len(data.label_names)), data, setting)


def _none_absent(counts: NDArray[np.int64], data: LoadedData, setting: str) -> NDArray[np.int64]:
    if not counts.all():
        absent = data.label_names[int(np.argmin(counts))]
        raise InputError(f"{setting}, but no training row has the label {absent!r}")
    return counts
