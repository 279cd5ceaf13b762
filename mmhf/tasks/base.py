"""What every task answers to: the questions that the verbs of the command line ask."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mmhf.conventions import Content, Processor, height_and_width
from mmhf.data.augment import build_augmentation
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.clip_benchmark import ClipBenchmarkData
from mmhf.data.collators import ImageCollator, RandomChanges
from mmhf.data.datasets import RowDataset, RowStream
from mmhf.data.loading import LoadedData, load_data
from mmhf.errors import InputError, UnreachableError
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.retrieval.clip_benchmark import MeasuredBenchmark
from mmhf.features.choice import PartChoice
from mmhf.features.parts import FeaturePart
from mmhf.hub.releases import is_hub_reference
from mmhf.inference.loading import load_model
from mmhf.models.backbones import is_on_hub, load_encoder_config
from mmhf.recipe import ResolvedRecipe
from mmhf.recipe.augment_sections import AugmentSection, needed_side
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.training_sections import teacher_section
from mmhf.tasks.distillation import Teacher, find_teacher, learn_from
from mmhf.tasks.feature_caching import stage_features
from mmhf.tasks.frozen_features import FrozenFeatures
from mmhf.tasks.joined_data import weights_by_dataset
from mmhf.tasks.subgroup_tables import subgroup_columns
from mmhf.training.distillation import Teaching
from mmhf.training.evaluator import Evaluator, ReadsFeatures
from mmhf.training.stages import StagePlan
from mmhf.training.trainer import MMTrainer

RecipeT = TypeVar("RecipeT", bound=RecipeBase)

Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]
Collator = Callable[[list[Any]], dict[str, Any]]


class Measured(Protocol):
    """What evaluating one split gave; each task's own class says more."""

    @property
    def metrics(self) -> dict[str, float]:
        """Flat numbers, by names that the task's `protocols` defines."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows that were evaluated."""
        ...

    @property
    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Name of what needs no training → its metrics, and `cpu_seconds`."""
        ...


MeasuredT = TypeVar("MeasuredT", bound=Measured)


class Task(ABC, Generic[RecipeT, MeasuredT]):
    """Everything about a family that the verbs of the command line need.

    Args:
        recipe (`RecipeBase`): The validated recipe.

    Raises:
        InputError: The recipe names a metric that the task does not measure.
    """

    protocols: Mapping[str, str]
    """Each metric's definition."""
    collator_class: ClassVar[type[ImageCollator]]
    trainer_class: ClassVar[type[MMTrainer]] = MMTrainer
    asked_of_teacher: ClassVar[Mapping[Content, FeaturePart]] = {}
    """What a teacher is shown → what it makes of it."""
    refers_to_frozen: ClassVar[bool] = False
    """Whether a saved model leaves out every encoder that no stage trains, and not only those of few bits."""

    def __init__(self, recipe: RecipeT) -> None:
        self.recipe = recipe
        self._check_metric_names()

    @abstractmethod
    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> Processor:
        """The processor of the release that training starts from, or one made for the recipe's backbones.

        Args:
            data (`LoadedData`): What a tokenizer of the recipe's own is trained on.
            parent (`Path`, *optional*): Folder of that release.
        """

    @abstractmethod
    def build_model(
        self,
        data: LoadedData | None,
        *,
        processor: Processor | None = None,
        parent: Path | None = None,
        device: str | None = None,
    ) -> PreTrainedModel:
        """A model with the backbones' weights, or with those of the release that training starts from.

        Args:
            data (`LoadedData`, *optional*): What it will be trained on; absent when only shapes are wanted.
            processor (`Processor`, *optional*): What makes its inputs; absent when only shapes are wanted.
            parent (`Path`, *optional*): Folder of that release.
            device (`str`, *optional*): `meta` builds shapes alone and fetches no weights.

        Raises:
            InputError: The release has another architecture than the recipe asks for.
        """

    def load_trained(self, path: Path) -> tuple[PreTrainedModel, Processor]:
        """Model and processor of a run folder or release.

        Raises:
            InputError: It holds a model of another task, or its files are damaged or incomplete.
        """
        return load_model(path, task=self.recipe.task)

    @abstractmethod
    def measure(self, trainer: Trainer, data: LoadedData, split: str) -> MeasuredT:
        """Evaluate a split: all that the report and `metrics.json` say of it."""

    def predictions(self, trainer: Trainer, data: LoadedData, split: str) -> pa.Table | None:
        """What the model said of each row of a split when it was measured, beside what is true; None where a task does
        not keep that."""
        return None

    def baselines(self, frozen: FrozenFeatures, data: LoadedData) -> Baselines:
        """What can be had without training, to stand beside the model's numbers.

        Args:
            frozen ([`FrozenFeatures`]): What the encoders gave before training.
            data (`LoadedData`): The data.

        Returns:
            `Mapping`: Split → name → metrics and `cpu_seconds`.
        """
        return {}

    def measure_clip_benchmark(
        self, trainer: Trainer, data: ClipBenchmarkData, processor: Processor
    ) -> MeasuredBenchmark:
        """Measure a data set in CLIP_benchmark's layout, with what `make_evaluator` made.

        Raises:
            InputError: The task has no model of images and texts that CLIP_benchmark measures.
        """
        raise InputError(f"--clip-benchmark: a model of {self.recipe.task} is given; dual encoders are measured so")

    @abstractmethod
    def write_report(self, run: RunFacts, measured: Mapping[str, MeasuredT]) -> None:
        """Write `plots/*.png`, `report.html` and, last, `metrics.json`, which marks a finished run.

        Args:
            run (`RunFacts`): The run's folder, recipe, stages, curves and data.
            measured (`Mapping[str, Measured]`): By split.
        """

    def run_facts(self, folder: Path, resolved: ResolvedRecipe, **facts: Any) -> RunFacts:
        """What a report says of a run or an evaluation of a recipe; `facts` are further fields of `RunFacts`."""
        best = resolved.recipe.training.get("metric_for_best_model")
        return RunFacts(
            folder=folder,
            title=str(resolved.name),
            subtitle=f"{resolved.recipe.task} · run {folder.name}",
            recipe_yaml=resolved.to_yaml(),
            best_metric=None if best is None else str(best).removeprefix("eval_"),
            **facts,
        )

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """The release whose answers are learnt, known by its config alone; None where the recipe names none.

        Raises:
            InputError: There is no such release, or it is a model of another task.
        """
        section = teacher_section(self.recipe.teacher)
        return None if section is None else find_teacher(section, self.recipe.task)

    def teaching(self, data: LoadedData) -> Teaching | None:
        """What the teacher's answers count in the loss; None where there is no teacher.

        Raises:
            InputError: Its classes, or what its rows had, are not those of the data.
        """
        if self.teacher is None:
            return None
        section = self.teacher.section
        return Teaching(section.weight, section.temperature or 1.0)

    def teacher_collator(self, processor: Processor, config: Any) -> ImageCollator:
        """Makes batches of training rows for a teacher with this config and processor; images are as they are."""
        return self.collator_class(processor, on_bad_image=self.recipe.data.on_bad_image)

    def plan_facts(self, num_rows: int | None) -> dict[str, str]:
        """What a plan says of a run of this task alone; without data, the number of its samples is not known."""
        return {}

    def check_features(self, plan: StagePlan, choices: Sequence[Sequence[PartChoice]]) -> None:
        """Refuse stages that need stored features which there will not be; `choices` has each stage's frozen parts."""

    def finish(self, trainer: Trainer, data: LoadedData) -> None:
        """What a trained model still learns from the validation split before it is measured and saved."""

    def load_data(
        self,
        *,
        splits: Collection[str] | None = None,
        model: PreTrainedModel | None = None,
        check_images: bool = True,
    ) -> LoadedData:
        """Read the recipe's data.

        Args:
            splits (`Collection[str]`, *optional*): Those to read; absent: all that there are.
            model (`PreTrainedModel`, *optional*): A trained model whose classes the data must keep to.
            check_images (`bool`, defaults to `True`): Look into local images to find broken ones.
        """
        return load_data(
            self.recipe.data,
            task=self.recipe.task,
            splits=splits,
            check_images=check_images,
            extra_columns=self.extra_columns(),
            required_columns=self.required_columns(),
        )

    def extra_columns(self) -> list[str]:
        """Columns of the data that this task reads beside those of a sample."""
        return subgroup_columns(self.recipe)

    def required_columns(self) -> list[str]:
        """Those of them that a row cannot be used without."""
        return []

    def num_train_rows(self, data: LoadedData) -> int | None:
        """Samples of an epoch; None when the training split is a stream of unknown length."""
        return data.num_rows("train")

    def torch_dataset(self, data: LoadedData, split: str) -> RowDataset | RowStream:
        """Rows of a split as Trainer's data loader takes them."""
        rows = data.splits[split]
        if not isinstance(rows, datasets.Dataset):
            return RowStream(rows)
        return RowDataset(rows, weights=self.row_weights(rows) if split == "train" else None)

    def row_weights(self, rows: datasets.Dataset) -> NDArray[np.float64] | None:
        """(N,): how often each training row is drawn in comparison; None: each once an epoch."""
        return weights_by_dataset(self.recipe.data, rows)

    def collator(
        self,
        processor: Processor,
        *,
        split: str,
        seed: int,
        bad_examples: BadExampleLog | None = None,
        training_data: LoadedData | None = None,
    ) -> ImageCollator:
        """Makes batches of one split; given `training_data`, images change at random as the recipe says."""
        changes, stage_changes = RandomChanges(), {}
        if training_data is not None:
            changes = self.random_changes(self.recipe.data.augment, training_data, seed)
            stage_changes = {
                index: self.random_changes(stage.augment, training_data, seed)
                for index, stage in enumerate(self.recipe.stages or [])
                if stage.augment is not None
            }
        collator = self.collator_class(
            processor,
            augmentation=changes.augmentation,
            mixer=changes.mixer,
            stage_changes=stage_changes,
            seed=seed,
            on_bad_image=self.recipe.data.on_bad_image,
            bad_examples=bad_examples,
            split=split,
            **self.collator_options(is_training=training_data is not None),
        )
        collator.least_side = self.least_side()
        return collator

    def least_side(self) -> int | None:
        """How long the shorter side of a decoded image must be; None: images are decoded whole."""
        section, stages = self.recipe.data, self.recipe.stages or []
        if section.exact:
            return None
        return needed_side(section.image_size, [section.augment, *(stage.augment for stage in stages)])

    def collator_options(self, *, is_training: bool) -> dict[str, Any]:
        """What this task's collator takes beside what every collator does."""
        return {}

    def random_changes(self, section: AugmentSection | None, data: LoadedData, seed: int) -> RandomChanges:
        """What a section `augment` means in this task."""
        return RandomChanges(build_augmentation(section, self.recipe.data.image_size))

    def trainer_options(self, data: LoadedData, processor: Processor) -> dict[str, Any]:
        """What this task's trainer takes beside what every trainer does, such as `compute_metrics`."""
        return {}

    def make_trainer(
        self,
        data: LoadedData,
        *,
        plan: StagePlan,
        args: TrainingArguments,
        processor: Processor,
        bad_examples: BadExampleLog | None = None,
    ) -> MMTrainer:
        """The trainer of a run, before its first step; what a teacher answers is at hand."""
        trainer = self.trainer_class(
            model=plan.model,
            args=args,
            plan=plan,
            recipe=self.recipe,
            train_dataset=self.torch_dataset(data, "train"),
            eval_dataset=self.torch_dataset(data, "validation") if "validation" in data.splits else None,
            data_collator=self.collator(
                processor, split="train", seed=args.seed, bad_examples=bad_examples, training_data=data
            ),
            eval_collator=self.collator(processor, split="validation", seed=args.seed, bad_examples=bad_examples),
            processing_class=processor,
            features=stage_features(self, data, plan=plan, args=args, processor=processor),
            teaching=self.teaching(data),
            **self.trainer_options(data, processor),
        )
        if self.teacher is not None:
            learn_from(self.teacher, self, trainer)
        return trainer

    def dropped_parts(self) -> set[str]:
        """Parts of the model whose input training takes away at random: `vision`, `text`."""
        return set()

    def stored_parts(self) -> set[str]:
        """Encoders whose features have to be stored, whether or not that saves time."""
        return set()

    def make_evaluator(self, model: PreTrainedModel, args: TrainingArguments, collator: Collator) -> ReadsFeatures:
        """A trainer that only evaluates, for `measure`."""
        return Evaluator(model=model, args=args, data_collator=collator)

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        """A batch of the largest shape that training can meet, to plan memory with."""
        height, width = height_and_width(self.recipe.data.image_size)
        return {"pixel_values": torch.zeros(batch_size, 3, height, width, device=device)}

    def uses_hub(self, *, weights: bool) -> bool:
        """Whether data, parent, teacher, backbones' configuration files or, if asked for, weights are on the Hub."""
        encoders, teacher = self.recipe.model.encoders().values(), teacher_section(self.recipe.teacher)
        named = [self.recipe.init_from, None if teacher is None else teacher.model]
        return (
            any(name is not None and is_hub_reference(name) for name in named)
            or self.recipe.data.is_on_hub()
            or any(is_on_hub(encoder.backbone, weights=weights and encoder.pretrained) for encoder in encoders)
        )

    def unreachable_backbones(self) -> list[str]:
        """What keeps the backbones' configuration files from being read; empty when all are at hand."""
        problems = []
        for modality, encoder in self.recipe.model.encoders().items():
            try:
                load_encoder_config(encoder.backbone, pretrained=encoder.pretrained, modality=modality)
            except UnreachableError as error:
                problems.append(str(error))
        return problems

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
            if metric is not None and metric.removeprefix("eval_") not in self.protocols:
                nearest = did_you_mean(nearest_names(metric.removeprefix("eval_"), self.protocols))
                raise InputError(f"{key}: {metric!r} is not measured{nearest} (measured: {', '.join(self.protocols)})")
