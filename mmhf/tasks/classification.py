"""What the tasks that train a classifier have in common: labels, class weights, metrics and the report."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, Trainer

from mmhf.data.bad_examples import BadExample
from mmhf.data.collators import RandomChanges
from mmhf.data.datasets import RowDataset, RowStream
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.mixing import build_mixer
from mmhf.evaluation.classification import (
    PROTOCOLS,
    ClassificationEvaluation,
    classification_metrics,
    evaluate_classification,
)
from mmhf.evaluation.metrics_file import write_metrics
from mmhf.evaluation.mistakes import MistakeExample, mistake_examples, most_confident_mistakes
from mmhf.evaluation.plots import save_classification_plots
from mmhf.evaluation.report import classification_report_sections, write_report
from mmhf.inference.loading import load_classifier
from mmhf.inference.probabilities import class_names
from mmhf.models.classification_loss import LossSettings
from mmhf.recipe import ResolvedRecipe
from mmhf.recipe.schema import AugmentSection, ClassificationRecipe
from mmhf.tasks.base import Task
from mmhf.tasks.class_balance import loss_settings, row_weights

ClassificationRecipeT = TypeVar("ClassificationRecipeT", bound=ClassificationRecipe)

_NAMES_WITHOUT_DATA = ("label_0", "label_1")


@dataclass(frozen=True)
class MeasuredClassification:
    """What evaluating one split gave: its numbers, and the rows on which the model is sure and wrong."""

    evaluation: ClassificationEvaluation
    mistakes: list[MistakeExample]

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's flat numbers."""
        return self.evaluation.metrics

    @property
    def num_rows(self) -> int:
        """Rows that were evaluated."""
        return self.evaluation.num_rows


class ClassificationTask(Task[ClassificationRecipeT, MeasuredClassification]):
    """A family of classifiers."""

    protocols = PROTOCOLS

    @abstractmethod
    def _fresh_model(self, **options: Any) -> PreTrainedModel:
        """A model with the backbones' weights and a fresh head."""

    @abstractmethod
    def _released_model(self, parent: Path, **options: Any) -> PreTrainedModel:
        """A model with the weights of a release."""

    def load_trained(self, path: Path) -> tuple[PreTrainedModel, Any]:
        return load_classifier(path)

    def build_model(
        self, data: LoadedData | None, *, processor: Any = None, parent: Path | None = None, device: str | None = None
    ) -> PreTrainedModel:
        options: dict[str, Any] = {
            "label_names": _NAMES_WITHOUT_DATA if data is None else data.label_names,
            "loss": self.loss_settings(data),
            "device": device,
        }
        if parent is None:
            return self._fresh_model(image_size=self.recipe.data.image_size, **options)
        return self._released_model(parent, **options)

    def load_data(
        self,
        *,
        splits: Collection[str] | None = None,
        model: PreTrainedModel | None = None,
        check_images: bool = True,
    ) -> LoadedData:
        return load_data(
            self.recipe.data,
            task=self.recipe.task,
            label_names=None if model is None else class_names(model),
            splits=splits,
            check_images=check_images,
        )

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        """The recipe's loss, for the classes of its training split."""
        return loss_settings(self.recipe.loss, data)

    def torch_dataset(self, data: LoadedData, split: str) -> RowDataset | RowStream:
        if split != "train" or self.recipe.sampling is None:
            return super().torch_dataset(data, split)
        rows = data.splits[split]
        weights = row_weights(self.recipe.sampling, rows)
        assert isinstance(rows, datasets.Dataset)
        return RowDataset(rows, weights=weights)

    def random_changes(self, section: AugmentSection | None, data: LoadedData, seed: int) -> RandomChanges:
        changes = super().random_changes(section, data, seed)
        return changes._replace(mixer=build_mixer(section, len(data.label_names), seed=seed))

    def trainer_options(self, data: LoadedData, processor: Any) -> dict[str, Any]:
        return {"compute_metrics": functools.partial(_training_metrics, label_names=data.label_names)}

    def measure(self, trainer: Trainer, data: LoadedData, split: str) -> MeasuredClassification:
        output = trainer.predict(self.torch_dataset(data, split), metric_key_prefix=split)
        logits, labels = np.asarray(output.predictions), np.asarray(output.label_ids)
        assert output.metrics is not None
        evaluation = evaluate_classification(logits, labels, data.label_names, loss=output.metrics[f"{split}_loss"])
        rows = data.splits[split]
        if not isinstance(rows, datasets.Dataset):  # a stream cannot be asked for single rows
            return MeasuredClassification(evaluation, [])
        mistakes = most_confident_mistakes(logits, labels, len(data.label_names))
        wrong = rows.select([mistake.index for mistake in mistakes])
        return MeasuredClassification(evaluation, mistake_examples(mistakes, wrong, data.label_names))

    def write_report(
        self,
        run_dir: Path,
        resolved: ResolvedRecipe,
        measured: Mapping[str, MeasuredClassification],
        *,
        facts: Mapping[str, object],
        stages: Sequence[Mapping[str, object]] = (),
        log_history: Sequence[Mapping[str, Any]] = (),
        bad_examples: Sequence[BadExample] = (),
    ) -> None:
        evaluations = {split: each.evaluation for split, each in measured.items()}
        sections = classification_report_sections(
            evaluations,
            recipe_yaml=resolved.to_yaml(),
            facts=facts,
            stages=stages,
            plots=save_classification_plots(run_dir / "plots", evaluations, log_history=log_history),
            mistakes={split: each.mistakes for split, each in measured.items()},
            bad_examples=bad_examples,
        )
        write_report(run_dir / "report.html", sections, resolved.name, f"{resolved.recipe.task} · {run_dir}")
        write_metrics(run_dir / "metrics.json", {split: each.metrics for split, each in evaluations.items()})

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        return {**super().example_inputs(batch_size, device), "labels": labels}


def _training_metrics(prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
    return classification_metrics(prediction.predictions, prediction.label_ids, label_names)
