"""What a stage's linear layers begin as: the best fit to the stored features that the stage trains on."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import nn

from mmhf.data.caption_datasets import CaptionDataset
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.evaluation.baselines import Rows, best_probe, learnt_rows
from mmhf.evaluation.linear_maps import LinearMapsSearch, Pairs
from mmhf.features.choice import PartChoice
from mmhf.features.column import FeatureColumn
from mmhf.features.parts import HasFeatureParts
from mmhf.parallel import rank, world_size
from mmhf.recipe.classification import ClassificationRecipe
from mmhf.tasks.frozen_features import MOST_ROWS, read_features, read_split
from mmhf.training.boundary import beside_training
from mmhf.training.planned_stage import PlannedStage
from mmhf.training.stages import StagePlan, StagePosition
from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)

Fitted = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight (C, D) and bias (C,)."""

_UNSEEN = 10.0
"""How far the logit of a class without a training row begins below that of the rarest."""


def refuse_probes_without_features(plan: StagePlan, choices: Sequence[Sequence[PartChoice]]) -> None:
    """Check that stages which start from a linear probe train on stored features.

    Args:
        plan ([`StagePlan`]): The stages.
        choices (`Sequence`): For each of them its frozen parts, and whether their features are stored.

    Raises:
        InputError: One does not, and why.
    """
    for stage, of_stage in zip(plan.stages, choices, strict=True):
        if stage.section.start is None:
            continue
        whole = [choice for choice in of_stage if choice.part.boundary is None]
        stored = {choice.part.name for choice in whole if choice.is_used and choice.for_training}
        assert isinstance(plan.model, HasFeatureParts)
        if any(part.name not in stored for part in plan.model.feature_parts()):
            raise _refusal(stage, next((choice.why for choice in whole if choice.why), "cache: off"))


class ProbeStart(ABC):
    """Fits what a stage that asks for it begins with, in closed form or to convergence, on stored features.

    The first process fits and tells the others. A run that is resumed within the stage has its weights already; one
    that is resumed at its beginning fits the same again.

    Args:
        trainer ([`MMTrainer`]): Of the model.
        data ([`LoadedData`]): What it trains on.

    Raises:
        InputError: A stage that asks for it would not train on stored features.
    """

    def __init__(self, trainer: MMTrainer, data: LoadedData) -> None:
        self.trainer, self.data = trainer, data
        with beside_training():
            nothing: list[list[PartChoice]] = [[] for _ in trainer.plan.stages]
            refuse_probes_without_features(
                trainer.plan, nothing if trainer.features is None else trainer.features.choices
            )

    def begin_stage(self, position: StagePosition) -> None:
        """Give linear layers their weights, unless the stage does not ask for it or is under way."""
        if position.stage.section.start is None or not position.is_start:
            return
        found: list[Any] = [None]
        if rank() == 0:
            found = [self._fit(position.stage)]
        if world_size() > 1:
            broadcast_object_list(found)
        if isinstance(found[0], InputError):
            raise found[0]
        with torch.no_grad():
            for layer, (weight, bias) in zip(self._layers(), found[0], strict=True):
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))

    @abstractmethod
    def _layers(self) -> list[nn.Linear]:
        """Those that get weights."""

    @abstractmethod
    def _fit(self, stage: PlannedStage) -> list[Fitted] | InputError:
        """Weight and bias of each of them, or why there are none."""


class LinearProbeStart(ProbeStart):
    """The head of an image classifier begins as a logistic regression.

    It is chosen on the validation split as that of the baselines is, with the class weights of the recipe's loss; the
    head makes up for a loss that adjusts logits.

    Args:
        recipe ([`ClassificationRecipe`]): Names the metric.
        trainer, data: As of [`ProbeStart`].
    """

    def __init__(self, recipe: ClassificationRecipe, trainer: MMTrainer, data: LoadedData) -> None:
        best = str(recipe.training.get("metric_for_best_model", "accuracy")).removeprefix("eval_")
        self.metric = best if best == "f1_macro" else "accuracy"
        super().__init__(trainer, data)

    def _layers(self) -> list[nn.Linear]:
        model: Any = self.trainer.plan.model
        return [model.head[-1]]

    def _fit(self, stage: PlannedStage) -> list[Fitted] | InputError:
        model: Any = self.trainer.plan.model
        names, loss = self.data.label_names, model.loss
        train = self._rows(self.trainer.train_dataset, "train", num_classes=len(names))
        if train is None:
            return _refusal(stage, "they could not be stored")
        validation = self._rows(self.trainer.eval_dataset, "validation")
        weights = None if loss.weight is None else dict(enumerate(loss.weight.tolist()))
        probe = best_probe(train, validation, names, metric=self.metric, weightings=(weights,))
        if probe is None:
            return InputError(f"stage {stage.name!r}: start: linear_probe needs training rows of two classes")
        weight, bias = probe.linear(len(names), below=_UNSEEN)
        if loss.adjustment is not None:
            bias = bias - loss.adjustment.double().cpu().numpy()
        logger.info(
            "Stage %s starts from a linear probe, C %g on %d features", stage.name, probe.strength, len(train.labels)
        )
        return [(weight.astype(np.float32), bias.astype(np.float32))]

    def _rows(self, dataset: Any, split: str, num_classes: int | None = None) -> Rows | None:
        """Stored features and labels of a data set, each stored view of an image a row; None where it has none.

        With the number of classes, only as many rows as a regression to them learns from.
        """
        table = self.data.splits.get(split)
        if not isinstance(dataset, RowDataset) or not isinstance(table, datasets.Dataset):
            return None
        column = dataset.columns.get("image_features")
        if not isinstance(column, FeatureColumn):
            return None
        labels = np.asarray(table["label"][:])
        sound = labels >= 0
        sound[list(column.faults)] = False
        views, places = np.indices((column.positions.shape[1], int(sound.sum()))).reshape(2, -1)
        places = np.flatnonzero(sound)[places]
        if num_classes is not None:
            learnt = learnt_rows(len(places), column.store.layout.shape[-1], num_classes)
            views, places = views[learnt], places[learnt]
        return Rows(read_features(column, places, views), labels[places])


class LinearMapsStart(ProbeStart):
    """The projections of a dual encoder begin as the best linear maps of the features of images and captions.

    They are chosen on the validation split as those of the baselines are, and as large as fresh ones, which changes no
    similarity but lets a learning rate mean the same.

    Args:
        trainer, data: As of [`ProbeStart`].
        search (`Callable`): From the pairs of training and validation to their maps.
    """

    def __init__(
        self,
        trainer: MMTrainer,
        data: LoadedData,
        search: Callable[[Pairs, Pairs | None], LinearMapsSearch],
    ) -> None:
        self.search = search
        super().__init__(trainer, data)

    def _layers(self) -> list[nn.Linear]:
        model: Any = self.trainer.plan.model
        return [model.vision_projection, model.text_projection]

    def _fit(self, stage: PlannedStage) -> list[Fitted] | InputError:
        train, validation = self._pairs(self.trainer.train_dataset, MOST_ROWS), self._pairs(self.trainer.eval_dataset)
        if train is None:
            return _refusal(stage, "they could not be stored")
        layers = self._layers()
        if any(layer.bias is None for layer in layers):
            return InputError(
                f"stage {stage.name!r}: start: linear_probe needs projections that add a vector, and those of the "
                "release that training starts from do not; remove start"
            )
        maps = self.search(train, validation).best(layers[0].out_features)
        logger.info("Stage %s starts from linear maps to %d directions", stage.name, maps.images.shape[1])
        both = ((maps.images, maps.image_mean), (maps.texts, maps.text_mean))
        return [_as_large_as_fresh(axes, mean, layer) for (axes, mean), layer in zip(both, layers, strict=True)]

    def _pairs(self, dataset: Any, most: int | None = None) -> Pairs | None:
        """Stored features of images, or of `most` of them, and their captions; None where a data set has none."""
        if not isinstance(dataset, CaptionDataset) or not {"image_features", "text_features"} <= set(dataset.columns):
            return None
        return read_split(np.arange(len(dataset.table)), dataset, most).pairs()


def _as_large_as_fresh(axes: NDArray[np.floating], mean: NDArray[np.floating], layer: nn.Linear) -> Fitted:
    """Weight and bias of a layer that takes the mean off and maps to the axes, (D, K); its other outputs are 0."""
    weight = np.zeros((layer.out_features, layer.in_features))
    weight[: axes.shape[1]] = axes.T
    weight *= layer.in_features**-0.5 / np.sqrt((axes**2).mean())
    return weight.astype(np.float32), (-weight @ mean).astype(np.float32)


def _refusal(stage: PlannedStage, why: str) -> InputError:
    return InputError(
        f"stage {stage.name!r}: start: linear_probe needs stored features to train on, and these are not ({why}); "
        "set cache: on, or remove start"
    )
