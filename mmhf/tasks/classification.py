"""What the tasks that train a classifier have in common: data, class weights, metrics and the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import datasets
import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, Trainer

from mmhf.data.augmentation import build_augmentation
from mmhf.data.bad_examples import BadExample, BadExampleLog
from mmhf.data.collators import ImageCollator, RandomChanges
from mmhf.data.datasets import RowDataset, RowStream
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.mixing import build_mixer
from mmhf.errors import InputError, UnreachableError
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
from mmhf.models.backbones import Modality, is_on_hub, load_encoder_config
from mmhf.recipe import ResolvedRecipe
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.schema import AugmentSection, RecipeBase, TextEncoderSection, VisionEncoderSection

RecipeT = TypeVar("RecipeT", bound=RecipeBase)


@dataclass(frozen=True)
class MeasuredSplit:
    """What evaluating one split gave: its numbers, and the rows on which the model is sure and wrong."""

    evaluation: ClassificationEvaluation
    mistakes: list[MistakeExample]


class ClassificationTask(ABC, Generic[RecipeT]):
    """Everything about a family of classifiers that the verbs of the command line need.

    Args:
        recipe (`RecipeBase`): The validated recipe.
    """

    collator_class: ClassVar[type[ImageCollator]]

    def __init__(self, recipe: RecipeT) -> None:
        self.recipe = recipe
        self._check_metric_names()

    @abstractmethod
    def build_processor(self, parent: Path | None) -> Any:
        """The processor of the release that training starts from, or one made for the recipe's backbones."""

    @abstractmethod
    def encoder_sections(self) -> Mapping[Modality, VisionEncoderSection | TextEncoderSection]:
        """The recipe's encoders."""

    @abstractmethod
    def _fresh_model(self, **options: Any) -> PreTrainedModel:
        """A model with the backbones' weights and a fresh head."""

    @abstractmethod
    def _released_model(self, parent: Path, **options: Any) -> PreTrainedModel:
        """A model with the weights of a release."""

    def load_trained(self, path: Path) -> tuple[PreTrainedModel, Any]:
        """Model and processor of a run folder or release.

        Raises:
            InputError: Its files are damaged or incomplete.
        """
        return load_classifier(path)

    def build_model(
        self,
        label_names: Sequence[str],
        *,
        parent: Path | None = None,
        class_weights: Sequence[float] | None = None,
        device: str | None = None,
    ) -> PreTrainedModel:
        """A model with the backbones' weights, or with those of the release that training starts from.

        Args:
            label_names (`Sequence[str]`): Names of the classes, in the order of their ids.
            parent (`Path`, *optional*): Folder of that release.
            class_weights (`Sequence[float]`, *optional*): See `class_weights`.
            device (`str`, *optional*): `meta` builds shapes alone and fetches no weights.

        Raises:
            InputError: The release has other labels or another architecture than the recipe asks for.
        """
        options: dict[str, Any] = {
            "label_names": label_names,
            "label_smoothing": self.recipe.loss.label_smoothing,
            "class_weights": class_weights,
            "device": device,
        }
        if parent is None:
            return self._fresh_model(image_size=self.recipe.data.image_size, **options)
        return self._released_model(parent, **options)

    def _check_metric_names(self) -> None:
        """A name that is wrong would otherwise be found at the first evaluation, perhaps hours from now."""
        recipe = self.recipe
        named: dict[str, str | None] = {"training.metric_for_best_model": recipe.training.get("metric_for_best_model")}
        plateaus = {"early_stopping": recipe.early_stopping, "unfreeze_on_plateau": recipe.unfreeze_on_plateau}
        for index, stage in enumerate(recipe.stages or []):
            plateaus[f"stages.{index}.unfreeze_on_plateau"] = stage.unfreeze_on_plateau
            named[f"stages.{index}.carry_best"] = stage.carry_best
        named.update({f"{key}.metric": plateau.metric for key, plateau in plateaus.items() if plateau is not None})
        for key, metric in named.items():
            if metric is not None and metric.removeprefix("eval_") not in PROTOCOLS:
                nearest = did_you_mean(nearest_names(metric.removeprefix("eval_"), PROTOCOLS))
                raise InputError(f"{key}: {metric!r} is not measured{nearest} (measured: {', '.join(PROTOCOLS)})")

    def load_data(
        self,
        *,
        splits: Collection[str] | None = None,
        label_names: Sequence[str] | None = None,
        check_images: bool = True,
    ) -> LoadedData:
        """Read the recipe's data; `label_names`, those of a model, decide the class ids."""
        return load_data(
            self.recipe.data,
            task=self.recipe.task,
            label_names=label_names,
            splits=splits,
            check_images=check_images,
        )

    def torch_dataset(self, data: LoadedData, split: str) -> RowDataset | RowStream:
        """Rows of a split as Trainer's data loader takes them."""
        rows = data.splits[split]
        return RowDataset(rows) if isinstance(rows, datasets.Dataset) else RowStream(rows)

    def uses_hub(self, *, weights: bool) -> bool:
        """Whether data, parent, backbones' configuration files or, if asked for, their weights come from the Hub."""
        encoders = self.encoder_sections().values()
        parent = self.recipe.init_from
        is_parent_remote = (
            parent is not None and not Path(parent).exists() and not Path(parent.partition("@")[0]).exists()
        )
        return (
            is_parent_remote
            or self.recipe.data.source == "hub"
            or any(is_on_hub(encoder.backbone, weights=weights and encoder.pretrained) for encoder in encoders)
        )

    def unreachable_backbones(self) -> list[str]:
        """What keeps the backbones' configuration files from being read; empty when all are at hand."""
        problems = []
        for modality, encoder in self.encoder_sections().items():
            try:
                load_encoder_config(encoder.backbone, pretrained=encoder.pretrained, modality=modality)
            except UnreachableError as error:
                problems.append(str(error))
        return problems

    def class_weights(self, data: LoadedData) -> list[float] | None:
        """The recipe's class weights; `balanced` ones are N / (C × count), as in scikit-learn."""
        weights = self.recipe.loss.class_weights
        if weights is None:
            return None
        if weights == "balanced":
            rows = data.splits["train"]
            if not isinstance(rows, datasets.Dataset):
                raise InputError(
                    "loss.class_weights: balanced needs all labels at once; a stream has none, give a list"
                )
            labels = np.asarray(rows["label"])
            counts = np.bincount(labels, minlength=len(data.label_names))
            if not counts.all():
                absent = data.label_names[int(np.argmin(counts))]
                raise InputError(f"loss.class_weights: balanced, but no training row has the label {absent!r}")
            return [float(weight) for weight in len(labels) / (len(counts) * counts)]
        if len(weights) != len(data.label_names):
            raise InputError(
                f"loss.class_weights: {len(weights)} weights for the {len(data.label_names)} labels {data.label_names}"
            )
        return list(weights)

    def collator(
        self,
        processor: Any,
        *,
        split: str,
        seed: int,
        bad_examples: BadExampleLog | None = None,
        augment: bool = False,
        num_labels: int | None = None,
    ) -> ImageCollator:
        """Makes batches of one split; `augment` changes its images at random as the recipe says.

        Mixup and CutMix need `num_labels`, the number of classes.
        """
        changes = self._random_changes(self.recipe.data.augment if augment else None, num_labels, seed)
        stages = enumerate(self.recipe.stages or []) if augment else ()
        return self.collator_class(
            processor,
            augmentation=changes.augmentation,
            mixer=changes.mixer,
            stage_changes={
                index: self._random_changes(stage.augment, num_labels, seed)
                for index, stage in stages
                if stage.augment is not None
            },
            seed=seed,
            on_bad_image=self.recipe.data.on_bad_image,
            bad_examples=bad_examples,
            split=split,
        )

    def _random_changes(self, section: AugmentSection | None, num_labels: int | None, seed: int) -> RandomChanges:
        return RandomChanges(
            build_augmentation(section, self.recipe.data.image_size), build_mixer(section, num_labels, seed=seed)
        )

    def training_metrics(self, prediction: EvalPrediction, label_names: Sequence[str]) -> dict[str, float]:
        """Metrics for Trainer, while it trains."""
        return classification_metrics(prediction.predictions, prediction.label_ids, label_names)

    def measure(self, trainer: Trainer, data: LoadedData, split: str) -> MeasuredSplit:
        """Predict a split and compute all that the report and `metrics.json` say of it."""
        output = trainer.predict(self.torch_dataset(data, split), metric_key_prefix=split)
        logits, labels = np.asarray(output.predictions), np.asarray(output.label_ids)
        assert output.metrics is not None
        evaluation = evaluate_classification(logits, labels, data.label_names, loss=output.metrics[f"{split}_loss"])
        rows = data.splits[split]
        if not isinstance(rows, datasets.Dataset):  # a stream cannot be asked for single rows
            return MeasuredSplit(evaluation, [])
        mistakes = most_confident_mistakes(logits, labels, len(data.label_names))
        wrong = rows.select([mistake.index for mistake in mistakes])
        return MeasuredSplit(evaluation, mistake_examples(mistakes, wrong, data.label_names))

    def write_report(
        self,
        run_dir: Path,
        resolved: ResolvedRecipe,
        measured: Mapping[str, MeasuredSplit],
        *,
        facts: Mapping[str, object],
        stages: Sequence[Mapping[str, object]] = (),
        log_history: Sequence[Mapping[str, Any]] = (),
        bad_examples: Sequence[BadExample] = (),
    ) -> None:
        """Write `plots/*.png`, `report.html` and, last, `metrics.json`, which marks a finished run.

        Args:
            run_dir (`Path`): The folder.
            resolved (`ResolvedRecipe`): What was asked for.
            measured (`Mapping[str, MeasuredSplit]`): By split.
            facts, stages (`Mapping`, `Sequence[Mapping]`): What was trained, and a row for each stage.
            log_history (`Sequence[Mapping]`): Trainer's, for the curves.
            bad_examples (`Sequence[BadExample]`): Rows that were skipped or blanked.
        """
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
        """A batch of the largest shape that training can meet, to plan memory with."""
        side = self.recipe.data.image_size
        return {
            "pixel_values": torch.zeros(batch_size, 3, side, side, device=device),
            "labels": torch.zeros(batch_size, dtype=torch.long, device=device),
        }
