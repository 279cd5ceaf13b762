"""A stage's linear head begins as the best logistic regression on the stored features that the stage trains on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import nn

from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError
from mmhf.evaluation.baselines import Rows, best_probe, learnt_rows
from mmhf.features.choice import PartChoice
from mmhf.features.column import FeatureColumn
from mmhf.parallel import rank, world_size
from mmhf.recipe.classification import ClassificationRecipe
from mmhf.tasks.frozen_features import read_features
from mmhf.training.boundary import beside_training
from mmhf.training.planned_stage import PlannedStage
from mmhf.training.stages import StagePlan, StagePosition
from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)

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
        if not any(choice.is_used and choice.for_training for choice in whole):
            raise _refusal(stage, next((choice.why for choice in whole if choice.why), "cache: off"))


class LinearProbeStart:
    """Fits the head of a stage that asks for it when the stage begins.

    The regression is chosen on the validation split as that of the baselines is, with the class weights of the
    recipe's loss; where the loss adjusts logits, the head makes up for it. The first process fits and tells the
    others. A run that is resumed within the stage has its weights already; one that is resumed at its beginning fits
    the same again.

    Args:
        recipe ([`ClassificationRecipe`]): Names the metric.
        trainer ([`MMTrainer`]): Of an image classifier.
        data ([`LoadedData`]): What it trains on.

    Raises:
        InputError: A stage that asks for it would not train on stored features.
    """

    def __init__(self, recipe: ClassificationRecipe, trainer: MMTrainer, data: LoadedData) -> None:
        best = str(recipe.training.get("metric_for_best_model", "accuracy")).removeprefix("eval_")
        self.metric = best if best == "f1_macro" else "accuracy"
        self.trainer, self.data = trainer, data
        with beside_training():
            nothing: list[list[PartChoice]] = [[] for _ in trainer.plan.stages]
            refuse_probes_without_features(
                trainer.plan, nothing if trainer.features is None else trainer.features.choices
            )

    def begin_stage(self, position: StagePosition) -> None:
        """Give the head its weights, unless the stage does not ask for it or is under way."""
        if position.stage.section.start is None or not position.is_start:
            return
        found: list[Any] = [None]
        if rank() == 0:
            found = [self._fit(position.stage)]
        if world_size() > 1:
            broadcast_object_list(found)
        if isinstance(found[0], InputError):
            raise found[0]
        model: Any = self.trainer.plan.model
        head: nn.Linear = model.head[-1]
        with torch.no_grad():
            for own, value in zip((head.weight, head.bias), found[0], strict=True):
                own.copy_(torch.from_numpy(value))

    def _fit(self, stage: PlannedStage) -> tuple[NDArray[np.float32], NDArray[np.float32]] | InputError:
        """Weight (C, D) and bias (C,) of the head."""
        rows = {
            split: self._rows(dataset, split)
            for split, dataset in (("train", self.trainer.train_dataset), ("validation", self.trainer.eval_dataset))
        }
        train, validation = rows["train"], rows["validation"]
        if train is None:
            return _refusal(stage, "they could not be stored")
        model: Any = self.trainer.plan.model
        names, loss = self.data.label_names, model.loss
        learnt = learnt_rows(len(train.labels), train.features.shape[1], len(names))
        weights = None if loss.weight is None else dict(enumerate(loss.weight.tolist()))
        probe = best_probe(
            Rows(train.features[learnt], train.labels[learnt]),
            validation,
            names,
            metric=self.metric,
            weightings=(weights,),
        )
        if probe is None:
            return InputError(f"stage {stage.name!r}: start: linear_probe needs training rows of two classes")
        weight, bias = probe.linear(len(names), below=_UNSEEN)
        if loss.adjustment is not None:
            bias = bias - loss.adjustment.double().cpu().numpy()
        logger.info(
            "Stage %s starts from a linear probe, C %g on %d features", stage.name, probe.strength, len(learnt)
        )
        return weight.astype(np.float32), bias.astype(np.float32)

    def _rows(self, dataset: Any, split: str) -> Rows | None:
        """Stored features and labels of a data set, each stored view of an image a row; None where it has none."""
        table = self.data.splits.get(split)
        if not isinstance(dataset, RowDataset) or not isinstance(table, datasets.Dataset):
            return None
        column = dataset.columns.get("image_features")
        if not isinstance(column, FeatureColumn):
            return None
        labels = np.asarray(table["label"][:])
        sound = labels >= 0
        sound[list(column.faults)] = False
        views = [read_features(column, view)[sound] for view in range(column.positions.shape[1])]
        return Rows(np.concatenate(views), np.tile(labels[sound], len(views)))


def _refusal(stage: PlannedStage, why: str) -> InputError:
    return InputError(
        f"stage {stage.name!r}: start: linear_probe needs stored features to train on, and these are not ({why}); "
        "set cache: on, or remove start"
    )
