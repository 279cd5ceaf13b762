"""What a model of labels or numbers learns: loss, metrics, thresholds, baselines and report are asked here."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction

from mmhf.data.loading import LoadedData
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.evaluation.baselines import Rows
from mmhf.evaluation.calibration import CalibrationEvaluation, fit_temperature
from mmhf.evaluation.modalities import Comparison, ModalityEvaluation
from mmhf.evaluation.report.page import Card
from mmhf.evaluation.report.target_report import Measured, TargetReport
from mmhf.evaluation.split_evaluation import SplitEvaluation
from mmhf.evaluation.subgroups import ColumnSubgroups, Outcomes, evaluate_subgroups
from mmhf.models.classification_loss import LossSettings
from mmhf.models.targets import Target
from mmhf.recipe.classification import ClassificationRecipe, LossSection
from mmhf.tasks.subgroup_tables import subgroup_columns

logger = logging.getLogger(__name__)

EvaluationT = TypeVar("EvaluationT", bound=SplitEvaluation)
MakeCards = Callable[[Iterable[Mapping[str, Any]]], list[Card]]
"""From rows of the data set to what a gallery shows."""


class Predicted(NamedTuple):
    """What a model says of a split: logits (N, C), labels (N,) or (N, C), loss, and its other outputs if asked for."""

    logits: NDArray[np.floating]
    labels: NDArray[Any]
    loss: float
    others: tuple[Any, ...] = ()


class ClassifierTarget(ABC, Generic[EvaluationT]):
    """What a classifier learns.

    Args:
        recipe ([`ClassificationRecipe`]): Its sections `loss` and `evaluation` are followed.
    """

    target: Target
    """What its outputs stand for."""
    column: str
    """Of the data's rows: what is learnt."""
    baseline: str
    """What the baseline on frozen features is called."""
    report: ClassVar[TargetReport[Any]]

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self.loss = recipe.loss
        self.evaluation = recipe.evaluation
        self.subgroups = subgroup_columns(recipe)
        self.best_metric = str(recipe.training.get("metric_for_best_model", "")).removeprefix("eval_")

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

    @abstractmethod
    def measure_baseline(self, rows: Mapping[str, Rows], names: Sequence[str]) -> dict[str, dict[str, float]]:
        """What frozen features give without training a network.

        Args:
            rows (`Mapping[str, Rows]`): `train`, and the splits that are known, to choose settings on and to measure.
            names (`Sequence[str]`): Of the labels.

        Returns:
            `dict[str, dict[str, float]]`: Split → metrics and `cpu_seconds`.
        """

    def is_known(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """(N,): which of a split's rows have something to learn."""
        known: NDArray[np.bool_] = labels >= 0
        return known

    def given_columns(self, rows: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
        """What is true of rows with the data's column `column`, as a table of predictions names it."""
        return {self.column: pa.array(names, pa.string()).take(rows.column(self.column).combine_chunks())}

    def fits_by_itself(self) -> bool:
        """Whether something is fitted on the validation split although the recipe does not ask for it."""
        return False

    def fits_on_validation(self) -> list[str]:
        """Keys of the recipe's `evaluation` that ask for something that is fitted on the validation split."""
        return ["calibrate"] if self.evaluation.calibrate else []

    def finish(self, predicted: Predicted, config: Any) -> None:  # nothing is fitted for most
        """Fit what is fitted on the validation split, and keep it in the model's config."""

    @abstractmethod
    def evaluate(self, predicted: Predicted, config: Any, names: Sequence[str]) -> EvaluationT:
        """All numbers of a split at once."""

    @abstractmethod
    def furthest_off(self, predicted: Predicted, evaluation: EvaluationT) -> tuple[Sequence[int], MakeCards]:
        """The rows of a split on which the model is furthest off, and what shows these to a person."""

    @abstractmethod
    def constants(self, evaluation: EvaluationT, data: LoadedData) -> Mapping[str, Mapping[str, float]]:
        """Name → what the same answer for each row scores; the evaluation has rows."""

    @abstractmethod
    def outcomes(self, predicted: Predicted, evaluation: EvaluationT, config: Any) -> Outcomes:
        """How rows were answered, to measure the groups of some columns."""

    @abstractmethod
    def comparison(self, config: Any) -> Comparison:
        """How answers by each modality alone are compared."""

    def measure_calibration(
        self, predicted: Predicted, evaluation: EvaluationT, config: Any
    ) -> CalibrationEvaluation | None:
        """How far probabilities can be trusted; None where there are none."""
        return None

    def measure(
        self, predicted: Predicted, config: Any, *, data: LoadedData, split: str, modalities: ModalityEvaluation | None
    ) -> Measured[EvaluationT]:
        """All that a report says of a split."""
        evaluation = self.evaluate(predicted, config, data.label_names)
        measured = Measured(
            evaluation,
            constants=self.constants(evaluation, data) if evaluation.num_rows else {},
            calibration=self.measure_calibration(predicted, evaluation, config),
            modalities=modalities,
        )
        rows = data.splits[split]
        if not isinstance(rows, datasets.Dataset):  # a stream cannot be asked for single rows
            return measured
        places, cards = self.furthest_off(predicted, evaluation)
        columns = {name: rows[extra_column(name)][:] for name in self.subgroups}
        subgroups: Sequence[ColumnSubgroups] = ()
        if columns:
            outcomes = self.outcomes(predicted, evaluation, config)
            subgroups = evaluate_subgroups(outcomes, columns, min_rows=self.evaluation.subgroup_min_rows)
        return replace(measured, gallery=cards(rows.select(places)), subgroups=subgroups)


class ProbabilityTarget(ClassifierTarget[EvaluationT]):
    """A target whose probabilities, and the decisions made by them, are fitted on the validation split."""

    def finish(self, predicted: Predicted, config: Any) -> None:
        """Fit what is fitted on the validation split, and keep it in the model's config."""
        logits = predicted.logits
        if config.calibration_temperature != 1:
            logits = logits * config.calibration_temperature
        if self.evaluation.calibrate:
            config.calibration_temperature = self._fit_temperature(logits, predicted.labels)
            logger.info("Temperature %.4g, fitted on the validation split", config.calibration_temperature)
        if config.calibration_temperature != 1:
            logits = logits / config.calibration_temperature
        self._fit_decisions(logits, predicted.labels, config)

    def _fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[Any]) -> float:
        """The temperature at which probabilities fit the labels best."""
        return fit_temperature(logits, labels)

    def _fit_decisions(self, logits: NDArray[np.floating], labels: NDArray[Any], config: Any) -> None:
        """Fit where probabilities become decisions, if anything; the logits are divided by the temperature."""


def logits_of(prediction: EvalPrediction) -> NDArray[Any]:
    """What a model answered in an evaluation."""
    given = prediction.predictions
    return np.asarray(given[0] if isinstance(given, tuple) else given)


def given_weights(section: LossSection, data: LoadedData) -> list[float] | None:
    """Weights of the classes that a recipe lists.

    Raises:
        InputError: There are not as many as labels.
    """
    weights = section.class_weights
    if weights is None or isinstance(weights, str):
        return None
    if len(weights) != len(data.label_names):
        raise InputError(
            f"loss.class_weights: {len(weights)} weights for the {len(data.label_names)} labels {data.label_names}"
        )
    return list(weights)


def majority_class(data: LoadedData) -> str | None:
    """The largest class of the training split; None where it is not loaded, or is a stream."""
    rows = data.splits.get("train")
    if not isinstance(rows, datasets.Dataset):
        return None
    labels = np.asarray(rows["label"][:])
    counts = np.bincount(labels[labels >= 0], minlength=len(data.label_names))
    return data.label_names[int(counts.argmax())]


def balanced_weights(section: LossSection, data: LoadedData) -> list[float] | None:
    """Weights of classes as the recipe asks for them: those that it lists, N / (C × count), or none.

    Raises:
        InputError: There are not as many as labels, or counts are needed of a stream or of a class without rows.
    """
    if section.class_weights != "balanced":
        return given_weights(section, data)
    counts = class_counts(data, "loss.class_weights: balanced", ", give a list")  # as in scikit-learn
    return [float(weight) for weight in counts.sum() / (len(counts) * counts)]


def class_counts(data: LoadedData, setting: str, way_out: str) -> NDArray[np.int64]:
    """(C,): training rows of each class.

    Raises:
        InputError: The rows are a stream, or a class has none.
    """
    rows = data.splits["train"]
    if not isinstance(rows, datasets.Dataset):
        raise InputError(f"{setting} needs all labels at once; a stream has none{way_out}")
    return none_absent(np.bincount(np.asarray(rows["label"]), minlength=len(data.label_names)), data, setting)


def none_absent(counts: NDArray[np.int64], data: LoadedData, setting: str) -> NDArray[np.int64]:
    """The counts (C,) of the labels, none of which is 0.

    Raises:
        InputError: One is.
    """
    if not counts.all():
        absent = data.label_names[int(np.argmin(counts))]
        raise InputError(f"{setting}, but no training row has the label {absent!r}")
    return counts
