"""What the encoders gave before training: the features that baselines are made of."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.caption_datasets import CaptionDataset
from mmhf.data.collators import RandomChanges
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData
from mmhf.features.choice import CONTENT, PartChoice, PartMeasure, part_seconds, stage_epochs, stored_dtype
from mmhf.features.column import FeatureColumn
from mmhf.features.parts import VISION, FeaturePart, HasFeatureParts
from mmhf.features.stage import Measure
from mmhf.parallel import rank, world_size
from mmhf.recipe.training_sections import CacheSection, cache_section
from mmhf.tasks.feature_caching import cache_setting, stage_features
from mmhf.training.boundary import random_state_kept
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import is_sharded

if TYPE_CHECKING:
    from mmhf.tasks.base import Task

logger = logging.getLogger(__name__)

MOST_ROWS = 50_000
"""Training rows whose features baselines learn from; of more, evenly spaced ones are taken."""
_SHARE = 0.03
_CHEAP_SECONDS = 10.0
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a split.

    Attributes:
        rows (`NDArray`): (N,) rows of the split's table; those whose image is broken are not among them.
        images (`NDArray`): (N, D); patches are averaged.
        texts (`NDArray`, *optional*): (T, E), of each row's text, or of all captions of the table in its order.
        caption_owners (`NDArray`, *optional*): (T,) position in `rows` of each caption's image; -1: it is broken.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.float32]
    texts: NDArray[np.float32] | None = None
    caption_owners: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FrozenFeatures:
    """What the encoders gave before training.

    Attributes:
        splits (`Mapping[str, SplitFeatures]`): By split; empty where there are none.
        why_not (`str`): Why there are none.
        seconds (`float`): CPU time that they took, with those that training stores and reads.
    """

    splits: Mapping[str, SplitFeatures] = field(default_factory=dict)
    why_not: str = ""
    seconds: float = 0.0


def by_split(named: Mapping[str, Mapping[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """From name → split → metrics to split → name → metrics."""
    splits = dict.fromkeys(split for each in named.values() for split in each)
    return {split: {name: each[split] for name, each in named.items() if split in each} for split in splits}


def frozen_features(task: Task[Any, Any], trainer: MMTrainer, data: LoadedData) -> FrozenFeatures:
    """The features of the training rows and of all that will be evaluated; asked before training, by all processes.

    They are taken from where training stores them. Where it does not, they are computed if that is cheap: some
    seconds, or a small share of what the run itself will compute.

    Args:
        task (`Task`): The task.
        trainer (`MMTrainer`): With the model as it is before its first step.
        data (`LoadedData`): Its data.
    """
    recipe, model = task.recipe, trainer.plan.model
    section = recipe.evaluation
    if section.baselines == "off":
        return FrozenFeatures(why_not="off")
    if not isinstance(model, HasFeatureParts) or is_sharded():
        return FrozenFeatures(why_not="the model's parts cannot be run by themselves")
    parts, encoders = model.feature_parts(), recipe.model.encoders()
    if VISION not in parts:
        return FrozenFeatures(why_not="the model reads no images")
    read = [encoders.get(CONTENT[part.name]) for part in parts]
    if recipe.init_from is None and not all(encoder is not None and encoder.pretrained for encoder in read):
        return FrozenFeatures(why_not="the encoders are not pretrained")
    wanted = {split for split in section.splits if split in data.splits and split != "train"}
    tables: dict[str, Any] = {
        split: rows for split, rows in data.splits.items() if split in {"train", "validation", *wanted}
    }
    if not wanted or not all(isinstance(rows, datasets.Dataset) for rows in tables.values()):
        return FrozenFeatures(why_not="a split is streamed" if wanted else "")
    if world_size() > 1 and cache_section(recipe.cache).mode == "off":
        return FrozenFeatures(why_not="with cache: off, several processes have no store to share")
    with ExitStack() as stack, random_state_kept():
        return _Collector(task, trainer, data, stack).collect(tables)


class _Collector:
    """Opens stores and reads them."""

    def __init__(self, task: Task[Any, Any], trainer: MMTrainer, data: LoadedData, stack: ExitStack) -> None:
        self.task, self.trainer, self.data = task, trainer, data
        self.args, self.plan = trainer.args, trainer.plan
        setting = cache_setting(task, data, self.args)
        self._measured: dict[str, PartMeasure] = {}
        choices = [] if trainer.features is None else trainer.features.choices[0]
        whole = {
            choice.part.name for choice in choices if choice.is_used and choice.for_training and _is_whole(choice)
        }
        assert isinstance(trainer.plan.model, HasFeatureParts)
        self.model: HasFeatureParts = trainer.plan.model
        self.parts = self.model.feature_parts()
        self.is_stored = {part.name: part.name in whole for part in self.parts}
        section: CacheSection = cache_section(task.recipe.cache)
        if section.mode == "off":  # nothing of this run is to stay on the disk
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmhf-features-"))
            section = section.model_copy(update={"folder": folder, "mode": "auto"})
        else:
            section = section.model_copy(update={"mode": "auto"})
        setting = replace(setting, section=section)
        if not self.is_stored.get("vision", False):  # images as they are
            nothing = RandomChanges()
            setting = replace(setting, changes_in=lambda stage: nothing)
        self.setting = setting
        processor: Any = trainer.processing_class
        found = stage_features(
            task, data, plan=self.plan, args=self.args, processor=processor, setting=setting, choose=self._choose
        )
        assert found is not None
        self.features = found
        self.features.use(
            trainer.accelerator, num_workers=self.args.dataloader_num_workers, with_bar=not self.args.disable_tqdm
        )

    def collect(self, tables: Mapping[str, Any]) -> FrozenFeatures:
        begun = time.process_time()
        rows: dict[str, NDArray[np.int64]] = {}
        sets: dict[str, RowDataset] = {}
        processor: Any = self.trainer.processing_class
        for split, table in tables.items():
            is_training = split == "train"
            most = MOST_ROWS if is_training else len(table)
            rows[split] = np.arange(len(table)) if len(table) <= most else _spread(len(table), most)
            chosen = table if len(rows[split]) == len(table) else table.select(rows[split])
            sets[split] = RowDataset(chosen) if self.task.recipe.reads_labels else CaptionDataset(chosen, "all")
            collator = self.task.collator(
                processor, split=split, seed=self.args.seed, training_data=self.data if is_training else None
            )
            self.features.attach(sets[split], collator, is_training=is_training)
        if (why_not := self._too_dear(list(sets))) is not None:
            return FrozenFeatures(why_not=why_not)
        self.features.enter(0)
        if any(part.feature not in dataset.columns for dataset in sets.values() for part in self.parts):
            return FrozenFeatures(why_not="they could not be stored")
        found = {split: self._read(rows[split], dataset) for split, dataset in sets.items()} if rank() == 0 else {}
        for dataset in sets.values():
            dataset.columns = {}
        return FrozenFeatures(found, seconds=time.process_time() - begun)

    def _too_dear(self, splits: Sequence[str]) -> str | None:
        """Why the features are not worth their time; None where they are."""
        seconds, number = 0.0, 0
        for split, lacking in zip(splits, self.features.count_lacking(0), strict=True):
            for part in self.parts:
                if self.is_stored[part.name] and split == "train":
                    continue
                number += lacking.get(part.name, 0)
                seconds += lacking.get(part.name, 0) * self._seconds(part)
        if seconds <= max(_CHEAP_SECONDS, _SHARE * self._planned_seconds()):
            return None
        return (
            f"the features of {number:,} images and texts would take about {seconds:.0f} s, more than {_SHARE:.0%} of "
            "the run; a first stage that trains the head alone, or cache: on, stores them"
        )

    def _planned_seconds(self) -> float:
        """About how long the encoders compute in the stages of the plan."""
        seconds = 0.0
        samples = self.setting.samples_per_epoch or 0
        for index, stage in enumerate(self.plan.stages):
            choices = [] if self.trainer.features is None else self.trainer.features.choices[index]
            stored = {choice.part.name for choice in choices if choice.for_training and _is_whole(choice)}
            for part in self.parts:
                passes = stage_epochs(self.plan, index) * samples
                if part.name in stored:
                    passes = min(passes, self.setting.places.get(CONTENT[part.name], 0)) if index == 0 else 0
                trains = any(group in stage.curves for group in self.model.part_groups(part))
                seconds += passes * self._seconds(part) * (3 if trains else 1)
        return seconds

    def _seconds(self, part: FeaturePart) -> float:
        return part_seconds(self._measured[part.name], CONTENT[part.name], self.args.device.type)

    def _choose(self, measure: Measure) -> list[list[PartChoice]]:
        chosen = []
        for part in self.parts:
            if (found := measure(part)) is not None:
                self._measured[part.name] = found
                dtype = stored_dtype(self.setting.section, found)
                chosen.append(PartChoice(part, True, True, "", found.shape, dtype, 0, 0.0, 1.0))
        return [chosen]

    def _read(self, rows: NDArray[np.int64], dataset: RowDataset) -> SplitFeatures:
        columns: Mapping[str, Any] = dataset.columns
        images: FeatureColumn = columns["image_features"]
        sound = np.array([place not in images.faults for place in range(len(rows))], dtype=bool)
        texts = columns.get("text_features")
        found = SplitFeatures(rows[sound], _read_column(images)[sound])
        if texts is None:
            return found
        values = _read_column(texts)
        if not isinstance(dataset, CaptionDataset):
            return replace(found, texts=values[sound])
        keys = np.zeros((len(dataset), 3), dtype=np.int64)
        keys[:, 0] = np.arange(len(dataset))
        owners = dataset.places("image", keys)
        position = np.where(sound, np.cumsum(sound) - 1, -1)
        return replace(found, texts=values, caption_owners=position[owners])


def _read_column(column: FeatureColumn) -> NDArray[np.float32]:
    """(N, D) features of every image, or text, as the first of its views shows it; patches are averaged."""
    places = column.positions[:, 0]
    found = []
    for start in range(0, len(places), _ROWS_AT_ONCE):
        values = column.store.read(places[start : start + _ROWS_AT_ONCE]).float()
        found.append((values.flatten(1, -2).mean(dim=1) if values.dim() > 2 else values).numpy())
    return np.concatenate(found)


def _is_whole(choice: PartChoice) -> bool:
    return choice.is_used and choice.part.boundary is None


def _spread(length: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, length - 1, count).astype(np.int64)
