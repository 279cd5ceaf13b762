"""From a task's recipe and data to what the feature cache must know of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import datasets
from transformers import PreTrainedModel, TrainingArguments

from mmhf.conventions import ImageSize, Modality, Processor
from mmhf.data.collators import RandomChanges
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData
from mmhf.features.choice import CacheSetting, PartChoice, choose_parts, stored_dtype
from mmhf.features.parts import HasFeatureParts
from mmhf.features.stage import Measure, StageFeatures
from mmhf.recipe.augment_sections import AugmentSection
from mmhf.recipe.training_sections import cache_section
from mmhf.training.stages import StagePlan

if TYPE_CHECKING:
    from mmhf.tasks.base import Task

_CONTENTS: tuple[Modality, ...] = ("image", "text")


_MOST_LACKING = 0.5
"""An evaluation reads stored features where at least half are there: storing what is read once gains nothing."""


def cache_setting(task: Task[Any, Any], data: LoadedData, args: TrainingArguments) -> CacheSetting:
    """What decides which frozen parts of a task's model are stored.

    Args:
        task (`Task`): The task.
        data (`LoadedData`): What it trains on.
        args (`TrainingArguments`): Seed and device.
    """
    rows = {split: _table_of(task, data, split) for split in ("train", "validation")}
    train, validation = rows["train"], rows["validation"]

    def changes_in(stage: int) -> RandomChanges:
        return task.random_changes(augment_of(task, stage), data, args.seed)

    return CacheSetting(
        section=cache_section(task.recipe.cache),
        changes_in=changes_in,
        dropped=task.dropped_parts(),
        samples_per_epoch=None if train is None else len(train),
        places={} if train is None else {content: train.num_places(content) for content in _CONTENTS},
        evaluated={} if validation is None else {content: validation.num_places(content) for content in _CONTENTS},
        image_size=_size_of_all(task),
        device_type=args.device.type,
        least_side=task.least_side(),
        needed=task.stored_parts(),
    )


def augment_of(task: Task[Any, Any], stage: int) -> AugmentSection | None:
    """The random changes of a stage of a task's recipe."""
    stages = task.recipe.stages or []
    own: AugmentSection | None = stages[stage].augment if stage < len(stages) else None
    everywhere: AugmentSection | None = task.recipe.data.augment
    return everywhere if own is None else own


def stage_features(
    task: Task[Any, Any],
    data: LoadedData,
    *,
    plan: StagePlan,
    args: TrainingArguments,
    processor: Processor,
    setting: CacheSetting | None = None,
    choose: Callable[[Measure], list[list[PartChoice]]] | None = None,
) -> StageFeatures | None:
    """The stored features of a run; None where the recipe turns them off.

    Args:
        task (`Task`): The task.
        data (`LoadedData`): What it trains on.
        plan (`StagePlan`): The stages.
        args (`TrainingArguments`): Seed and device.
        processor (`Processor`): What makes the model's inputs.
        setting ([`CacheSetting`], *optional*): What the choice goes by; absent: the run's own.
        choose (`Callable`, *optional*): Given what measures a part, chooses what is stored; absent: `choose_parts`.
    """
    setting = setting or cache_setting(task, data, args)
    if setting.section.mode == "off":
        return None
    sections = [augment_of(task, index) for index in range(len(plan.stages))]
    size = task.recipe.data.image_size
    return StageFeatures(
        plan.model,
        choose or functools.partial(choose_parts, plan, setting),
        setting,
        processor=processor,
        example_inputs=task.example_inputs(1, "cpu"),
        seed=args.seed,
        augmentations=[f"{size} {section.model_dump_json()}" if section is not None else "" for section in sections],
    )


def evaluation_features(
    task: Task[Any, Any], model: PreTrainedModel, *, args: TrainingArguments, processor: Processor
) -> StageFeatures | None:
    """What training stored of a trained model's encoders; None where the recipe turns it off."""
    section = cache_section(task.recipe.cache)
    if section.mode == "off":
        return None

    def choose(measure: Measure) -> list[list[PartChoice]]:
        parts = model.feature_parts() if isinstance(model, HasFeatureParts) else ()
        measured = {part: found for part in parts if (found := measure(part)) is not None}
        return [
            [
                PartChoice(part, True, False, "", found.shape, stored_dtype(section, found), 0, 0.0, 1.0)
                for part, found in measured.items()
            ]
        ]

    size, nothing = _size_of_all(task), RandomChanges()
    setting = CacheSetting(section, lambda stage: nothing, (), None, {}, {}, size, args.device.type, task.least_side())
    example = task.example_inputs(1, "cpu")
    return StageFeatures(
        model, choose, setting, processor=processor, example_inputs=example, most_lacking=_MOST_LACKING
    )


def _size_of_all(task: Task[Any, Any]) -> ImageSize | None:
    """The size of all images; None where each keeps its shape."""
    section = task.recipe.data
    return None if section.resize == "naflex" else section.image_size


def _table_of(task: Task[Any, Any], data: LoadedData, split: str) -> RowDataset | None:
    if not isinstance(data.splits.get(split), datasets.Dataset):
        return None
    found = task.torch_dataset(data, split)
    return found if isinstance(found, RowDataset) else None
