"""What the tasks that train a classifier have in common: labels, class weights, metrics and the report."""

from __future__ import annotations

import contextlib
import functools
import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import BaseImageProcessor, PreTrainedModel, Trainer

from mmhf.conventions import Processor
from mmhf.data.collators import RandomChanges
from mmhf.data.datasets import RowDataset, RowStream
from mmhf.data.loading import LoadedData, load_data
from mmhf.data.mixing import build_mixer
from mmhf.data.pixel_statistics import PixelSums, sum_pixels
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.evaluation.baselines import Rows
from mmhf.evaluation.modalities import ModalityEvaluation
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.report.target_report import MeasuredViews
from mmhf.inference.label_predictors import LabelPredictor
from mmhf.models.classification_loss import LossSettings, class_names
from mmhf.models.targets import ORDINAL, SINGLE_LABEL
from mmhf.models.views import ImageViews
from mmhf.parallel import gather, rank, world_size
from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.classification import ClassificationRecipe, SamplingSection
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.target_sections import MultiLabelSection, OrdinalSection, RegressionSection
from mmhf.tasks.base import Baselines, Task
from mmhf.tasks.frozen_features import FrozenFeatures, SplitFeatures, by_split
from mmhf.tasks.joined_data import weights_by_dataset
from mmhf.tasks.targets import Predicted, classifier_target
from mmhf.training.distillation import CLASS_TEMPERATURE, Teaching

ClassificationRecipeT = TypeVar("ClassificationRecipeT", bound=ClassificationRecipe)

logger = logging.getLogger(__name__)

_NAMES_WITHOUT_DATA = ("label_0", "label_1")


class ClassificationTask(Task[ClassificationRecipeT, Any]):
    """A family of classifiers: `target` says what they learn."""

    def __init__(self, recipe: ClassificationRecipeT) -> None:
        self.target = classifier_target(recipe)
        self.protocols = self.target.report.protocols
        super().__init__(recipe)
        self._measured: dict[str, Predicted] = {}
        """What models said of the splits that were measured."""

    @abstractmethod
    def _fresh_model(self, **options: Any) -> PreTrainedModel:
        """A model with the backbones' weights and a fresh head."""

    @abstractmethod
    def _released_model(self, parent: Path, **options: Any) -> PreTrainedModel:
        """A model with the weights of a release."""

    def build_model(
        self,
        data: LoadedData | None,
        *,
        processor: Processor | None = None,
        parent: Path | None = None,
        device: str | None = None,
    ) -> PreTrainedModel:
        options: dict[str, Any] = {
            "label_names": _names_without_data(self.recipe.data) if data is None else data.label_names,
            "loss": self.loss_settings(data),
            "device": device,
            **self.model_options(data),
        }
        if parent is None:
            return self._fresh_model(image_size=self.recipe.data.image_size, **options)
        return self._released_model(parent, **options)

    def model_options(self, data: LoadedData | None) -> dict[str, Any]:
        """What a model of this task is built of beside labels and loss; without data, what stands for it."""
        return {}

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
            extra_columns=self.extra_columns(),
        )

    def extra_columns(self) -> list[str]:
        """Columns of the data that evaluation and sampling read beside what the model does."""
        sampling = self.recipe.sampling
        by = [] if sampling is None or sampling.by == "label" else [sampling.by]
        return list(dict.fromkeys([*super().extra_columns(), *by]))

    def normalised_by_data(self, image_processor: BaseImageProcessor, data: LoadedData) -> BaseImageProcessor:
        """An image processor with the training images' own mean and deviation, where the recipe asks for them."""
        if self.recipe.data.mean_std == "computed":
            rows = data.splits["train"]
            assert isinstance(rows, datasets.Dataset | datasets.IterableDataset)
            own = sum_pixels(rows, image_processor, shard=rank(), num_shards=world_size())
            total = sum(gather(own), PixelSums())
            settings: Any = image_processor  # its class declares none of them
            settings.image_mean, settings.image_std = total.mean_std()
            shown = [[round(value, 4) for value in each] for each in total.mean_std()]
            logger.info("Of %d training images: mean %s, standard deviation %s", total.num_images, *shown)
        return image_processor

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        """The recipe's loss, for the classes of its training split."""
        return self.target.loss_settings(data)

    def torch_dataset(self, data: LoadedData, split: str) -> RowDataset | RowStream:
        rows = data.splits[split]
        if split == "train" and self.recipe.sampling is not None and not isinstance(rows, datasets.Dataset):
            raise InputError("sampling: needs all labels at once; a stream has none, remove `sampling`")
        return super().torch_dataset(data, split)

    def row_weights(self, rows: datasets.Dataset) -> NDArray[np.float64] | None:
        sampling = self.recipe.sampling
        return weights_by_dataset(self.recipe.data, rows, None if sampling is None else class_weights(sampling, rows))

    def random_changes(self, section: AugmentSection | None, data: LoadedData, seed: int) -> RandomChanges:
        changes = super().random_changes(section, data, seed)
        return changes._replace(mixer=build_mixer(section, len(data.label_names), seed=seed))

    def teaching(self, data: LoadedData) -> Teaching | None:
        teaching = super().teaching(data)
        if teaching is None or self.teacher is None:
            return None
        target, temperature = self.target.target, self.teacher.section.temperature
        if temperature is None and target in (SINGLE_LABEL, ORDINAL):
            teaching = replace(teaching, temperature=CLASS_TEMPERATURE)
        return replace(teaching, order=self.teacher.order_of(data.label_names, target))

    def trainer_options(self, data: LoadedData, processor: Processor) -> dict[str, Any]:
        if "validation" not in data.splits:  # which would otherwise be found when training is over
            for key in self.target.fits_on_validation():
                raise InputError(f"evaluation.{key}: is fitted on a validation split, which the data lacks")
        return {"compute_metrics": functools.partial(self.target.training_metrics, label_names=data.label_names)}

    def finish(self, trainer: Trainer, data: LoadedData) -> None:
        """Keep the recipe's views in the model's config, and temperature and thresholds as the validation split has
        them."""
        views = self.recipe.evaluation.views
        _model_of(trainer).config.views = None if views is None else views.model_dump()
        by_itself = self.target.fits_by_itself() and "validation" in data.splits
        if by_itself or self.target.fits_on_validation():
            self.target.finish(self._predict(trainer, data, "validation"), _model_of(trainer).config)

    def measure(self, trainer: Trainer, data: LoadedData, split: str) -> Any:
        predicted, model = self._predict(trainer, data, split), _model_of(trainer)
        self._measured[split] = predicted
        modalities = self.measure_modalities(model, predicted, data.label_names)
        measured = self.target.measure(predicted, model.config, data=data, split=split, modalities=modalities)
        views = None if model.config.views is None else self._beside_views(trainer, data, split)
        return replace(measured, views=views)

    def _beside_views(self, trainer: Trainer, data: LoadedData, split: str) -> MeasuredViews:
        """What the model says of each image as it is."""
        config = _model_of(trainer).config
        views, config.views = config.views, None
        try:
            alone = self.target.evaluate(self._predict(trainer, data, split), config, data.label_names)
        finally:
            config.views = views
        return MeasuredViews(ImageViews.of_config(views).describe(), alone.metrics)

    def predictions(self, trainer: Trainer, data: LoadedData, split: str) -> pa.Table | None:
        """The columns `id`, `row`, what is true, and what `mmhf predict` makes, with the label as `prediction`.

        Rows that nothing is known of, such as those with a broken image, are left out.
        """
        rows, said = data.splits[split], self._measured.get(split)
        if said is None or not isinstance(rows, datasets.Dataset):
            return None
        known = np.flatnonzero(self.target.is_known(said.labels))
        processor: Any = trainer.processing_class
        predictor = LabelPredictor.of(_model_of(trainer), processor)
        answers = predictor.answer(torch.from_numpy(said.logits[known]))
        given = rows.select_columns(["id", "row", self.target.column]).with_format("arrow")[known.tolist()]
        made = {
            "prediction" if name in ("label", "labels") else name: answers.column(name) for name in predictor.columns
        }
        told = {name: given.column(name) for name in ("id", "row")}
        return pa.table({**told, **self.target.given_columns(given, data.label_names), **made})

    def baselines(self, frozen: FrozenFeatures, data: LoadedData) -> Baselines:
        splits, target = frozen.splits, self.target
        if "train" not in splits:
            return {}
        labels = {
            split: np.asarray(_table(data, split)[target.column][:])[each.rows] for split, each in splits.items()
        }
        found = {}
        for kind, make in self._kinds_of_features(splits["train"]).items():
            rows = {split: Rows(make(each), labels[split]) for split, each in splits.items()}
            found[f"{target.baseline}{kind}"] = self._measure_baseline(rows, data)
        return by_split(found)

    def _measure_baseline(self, rows: Mapping[str, Rows], data: LoadedData) -> dict[str, dict[str, float]]:
        """What a baseline gives on the splits that the recipe evaluates."""
        known: dict[str, Rows] = {}
        for split, (features, labels) in rows.items():
            chosen = self.target.is_known(labels)
            # Of other splits, those that have rows to measure.
            if split == "train" or chosen.any():
                known[split] = Rows(features[chosen], labels[chosen])
        measured = self.target.measure_baseline(known, data.label_names)
        return {split: each for split, each in measured.items() if split in self.recipe.evaluation.splits}

    def _kinds_of_features(self, train: SplitFeatures) -> dict[str, Callable[[SplitFeatures], NDArray[np.floating]]]:
        """What a baseline's name adds for features of a kind → what makes these."""
        return {"": lambda split: split.images}

    def measure_modalities(
        self, model: PreTrainedModel, predicted: Predicted, label_names: list[str]
    ) -> ModalityEvaluation | None:
        """Evaluate with each modality alone; None for tasks that have but one, or where it is not asked for."""
        return None

    def _predict(self, trainer: Trainer, data: LoadedData, split: str, **options: Any) -> Predicted:
        with _images_alone(trainer) if _model_of(trainer).config.views else contextlib.nullcontext():
            output = trainer.predict(self.torch_dataset(data, split), metric_key_prefix=split, **options)
        given: Any = output.predictions
        logits, *others = given if isinstance(given, tuple) else (given,)
        assert output.metrics is not None
        return Predicted(
            np.asarray(logits), np.asarray(output.label_ids), output.metrics[f"{split}_loss"], tuple(others)
        )

    def write_report(self, run: RunFacts, measured: Mapping[str, Any]) -> None:
        self.target.report.write(run, measured)

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        labels = self.target.example_labels(batch_size, device)
        return {**super().example_inputs(batch_size, device), "labels": labels}


@contextlib.contextmanager
def _images_alone(trainer: Any) -> Iterator[None]:
    """Keep stored features out of an evaluation: they are of one view of each image."""
    features, trainer.features = trainer.features, None
    try:
        yield
    finally:
        trainer.features = features


def _table(data: LoadedData, split: str) -> datasets.Dataset:
    rows = data.splits[split]
    assert isinstance(rows, datasets.Dataset)
    return rows


def _names_without_data(section: DataSectionBase) -> Sequence[str]:
    """What the labels are called where only shapes are wanted."""
    target = section.target
    if isinstance(target, MultiLabelSection):
        return target.names or target.columns or _NAMES_WITHOUT_DATA
    if isinstance(target, RegressionSection):
        return target.columns or [section.label_column]
    return target.order if isinstance(target, OrdinalSection) else _NAMES_WITHOUT_DATA


def _model_of(trainer: Trainer) -> PreTrainedModel:
    assert isinstance(trainer.model, PreTrainedModel)
    return trainer.model


def class_weights(section: SamplingSection, rows: datasets.Dataset) -> NDArray[np.float64]:
    """(N,): how often each training row is drawn in comparison, (rows of its class)^-power."""
    name = "label" if section.by == "label" else extra_column(section.by)
    values = rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    # A missing value is a class of its own.
    classes = values.dictionary_encode(null_encoding="encode").indices.to_numpy()
    weights: NDArray[np.float64] = (np.bincount(classes).astype(np.float64) ** -section.power)[classes]
    return weights
