"""What the encoders gave before training: the features that baselines are made of."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
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
from mmhf.evaluation.baselines import even_rows
from mmhf.evaluation.linear_maps import Pairs
from mmhf.features.choice import CONTENT, PartChoice, PartMeasure, part_seconds, stage_epochs, stored_dtype
from mmhf.features.column import FeatureColumn
from mmhf.features.parts import VISION, FeaturePart, HasFeatureParts
from mmhf.features.stage import Measure
from mmhf.parallel import rank, world_size
from mmhf.recipe.training_sections import CacheSection, cache_section
from mmhf.tasks.feature_caching import cache_setting, stage_features
from mmhf.training.boundary import beside_training
from mmhf.training.devices import normalise_on_device
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import is_sharded

if TYPE_CHECKING:
    from mmhf.tasks.base import Task

logger = logging.getLogger(__name__)

MOST_ROWS = 50_000
"""Training rows whose features baselines learn from, or neighbours are; of more, evenly spaced ones are taken."""
_SHARE = 0.03
_CHEAP_SECONDS = 10.0
_TEXTS_LOOKED_AT = 256
_CHARACTERS_A_TOKEN = 4
_SPECIAL_TOKENS = 2
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a split.

    Attributes:
        rows (`NDArray`): (N,) rows of the split's table; those whose image is broken are not among them.
        images (`NDArray`): (N, D); patches are averaged.
        texts (`NDArray`, *optional*): (T, E), of each row's text, or of all captions of the rows in their order.
        caption_owners (`NDArray`, *optional*): (T,) position in `rows` of each caption's image.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.float32]
    texts: NDArray[np.float32] | None = None
    caption_owners: NDArray[np.int64] | None = None

    def pairs(self) -> Pairs | None:
        """Images and captions; None where there are no captions."""
        if self.texts is None or self.caption_owners is None:
            return None
        return Pairs(self.images, self.texts, self.caption_owners)


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

    They are taken from where training stores them. What it does not store is computed if that is cheap: some seconds,
    or a small share of what the run itself will compute; or if the recipe asks for it.

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
    with ExitStack() as stack, beside_training():
        return _Collector(task, trainer, data, stack).collect(tables)


class _Collector:
    """Opens stores and reads them."""

    def __init__(self, task: Task[Any, Any], trainer: MMTrainer, data: LoadedData, stack: ExitStack) -> None:
        self.task, self.trainer, self.data = task, trainer, data
        self.args, self.plan = trainer.args, trainer.plan
        setting = cache_setting(task, data, self.args)
        self._measured: dict[str, PartMeasure] = {}
        self._text_share = 1.0
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
            rows[split] = even_rows(len(table), MOST_ROWS if is_training else len(table))
            chosen = table if len(rows[split]) == len(table) else table.select(rows[split])
            sets[split] = RowDataset(chosen) if self.task.recipe.reads_labels else CaptionDataset(chosen, "all")
            collator = self.task.collator(
                processor, split=split, seed=self.args.seed, training_data=self.data if is_training else None
            )
            normalise_on_device(self.plan.model, self.args.device, collator)
            self.features.attach(sets[split], collator, is_training=is_training)
        self._text_share = self._mean_length(sets["train"])
        section = self.task.recipe.evaluation
        if section.baselines == "auto" and (why_not := self._too_dear(sets)) is not None:
            return FrozenFeatures(why_not=why_not)
        self.features.enter(0)
        if any(part.feature not in dataset.columns for dataset in sets.values() for part in self.parts):
            return FrozenFeatures(why_not="they could not be stored")
        found = {split: read_split(rows[split], dataset) for split, dataset in sets.items()} if rank() == 0 else {}
        for dataset in sets.values():
            dataset.columns = {}
        return FrozenFeatures(found, seconds=time.process_time() - begun)

    def _too_dear(self, sets: Mapping[str, RowDataset]) -> str | None:
        """Why the features are not worth their time; None where they are.

        What is stored already costs nothing, nor does what the run itself will store.
        """
        lacking = dict(zip(sets, self.features.lacking(0), strict=True))
        seconds, number = 0.0, 0
        for part in self.parts:
            found: dict[bool, set[bytes]] = {True: set(), False: set()}
            for split, of_split in lacking.items():
                digests = of_split.get(part.name)
                found[self._is_free(split, part)] |= set() if digests is None else set(digests.view("S16").tolist())
            dear = found[False] - found[True]
            number += len(dear)
            seconds += len(dear) * self._seconds(part)
        planned = self._planned_seconds(sets)
        if seconds <= max(_CHEAP_SECONDS, _SHARE * planned):
            return None
        return (
            f"{number:,} features are missing, and computing them would take about {seconds:.0f} s, more than "
            f"{_SHARE:.0%} of the run's {planned:.0f} s; evaluation.baselines: on takes that time"
        )

    def _is_free(self, split: str, part: FeaturePart) -> bool:
        """Whether the run stores a part's features of a split in any case, as the part was pretrained."""
        if split == "train":
            return self.is_stored[part.name]
        if split == "validation":
            return self.trainer.eval_dataset is not None and self._is_read(part, 0)
        trained = {group for stage in self.plan.stages for group in stage.curves}
        return trained.isdisjoint(self.model.part_groups(part)) and self._is_read(part, len(self.plan.stages) - 1)

    def _is_read(self, part: FeaturePart, stage: int) -> bool:
        """Whether a stage's evaluations read stored features of a whole part."""
        choices = [] if self.trainer.features is None else self.trainer.features.choices[stage]
        return any(choice.part == part and choice.is_used for choice in choices)

    def _planned_seconds(self, sets: Mapping[str, RowDataset]) -> float:
        """About how long the encoders compute in the run: in training, in its evaluations, and at its end."""
        seconds = 0.0
        samples = self.setting.samples_per_epoch or 0
        for index, stage in enumerate(self.plan.stages):
            choices = [] if self.trainer.features is None else self.trainer.features.choices[index]
            stored = {choice.part.name for choice in choices if choice.for_training and _is_whole(choice)}
            for part in self.parts:
                content = CONTENT[part.name]
                passes = stage_epochs(self.plan, index) * samples
                if part.name in stored:
                    passes = min(passes, self.setting.places.get(content, 0)) if index == 0 else 0
                trains = any(group in stage.curves for group in self.model.part_groups(part))
                evaluations = 1 if self._is_read(part, index) and index == 0 else self._evaluations(index)
                passes = passes * (3 if trains else 1) + evaluations * self.setting.evaluated.get(content, 0)
                seconds += passes * self._seconds(part)
        measured = [dataset for split, dataset in sets.items() if split in self.task.recipe.evaluation.splits]
        for part in self.parts:
            seconds += sum(dataset.num_places(CONTENT[part.name]) for dataset in measured) * self._seconds(part)
        return seconds

    def _evaluations(self, index: int) -> float:
        """How often the validation split is evaluated in a stage."""
        if self.trainer.eval_dataset is None or self.args.eval_strategy == "no":
            return 0
        if self.args.eval_strategy == "epoch":
            return float(max(stage_epochs(self.plan, index) / self.task.recipe.evaluation.every_epochs, 1))
        return self.plan.stages[index].num_steps / float(self.args.eval_steps or self.args.logging_steps)

    def _seconds(self, part: FeaturePart) -> float:
        measured, content = self._measured.get(part.name), CONTENT[part.name]
        if measured is None:  # of no fixed shape: it is never stored
            return 0.0
        if content == "text":  # it was measured on the longest that there can be
            measured = replace(measured, flops=int(measured.flops * self._text_share))
        return part_seconds(measured, content, self.args.device.type)

    def _mean_length(self, dataset: RowDataset) -> float:
        """About how long texts are in comparison with the longest; 1 where the model reads none."""
        tokens = self.features.example_inputs.get("input_ids")
        if tokens is None or "text" not in self.is_stored:
            return 1.0
        places = even_rows(dataset.num_places("text"), _TEXTS_LOOKED_AT)
        lengths = [float(len(text or "")) for text in dataset.texts(places)]
        mean = sum(lengths) / max(len(lengths), 1) / _CHARACTERS_A_TOKEN + _SPECIAL_TOKENS
        return min(mean / tokens.shape[1], 1.0)

    def _choose(self, measure: Measure) -> list[list[PartChoice]]:
        chosen = []
        for part in self.parts:
            if (found := measure(part)) is not None:
                self._measured[part.name] = found
                dtype = stored_dtype(self.setting.section, found)
                chosen.append(PartChoice(part, True, True, "", found.shape, dtype, 0, 0.0, 1.0))
        return [chosen]


def read_split(rows: NDArray[np.int64], dataset: RowDataset, most: int | None = None) -> SplitFeatures:
    """The features that a data set reads from stores.

    Args:
        rows (`NDArray`): (N,) rows of the split's table that its images are in.
        dataset ([`RowDataset`]): With a column `image_features`.
        most (`int`, *optional*): Of more images, evenly spaced ones are read; absent: all.
    """
    columns: Mapping[str, Any] = dataset.columns
    images: FeatureColumn = columns["image_features"]
    sound = np.array([place for place in range(len(rows)) if place not in images.faults], dtype=np.int64)
    sound = sound[even_rows(len(sound), most or len(sound))]
    texts = columns.get("text_features")
    found = SplitFeatures(rows[sound], read_features(images, sound))
    if texts is None:
        return found
    if not isinstance(dataset, CaptionDataset):
        return replace(found, texts=read_features(texts, sound))
    position = np.full(len(rows), -1)
    position[sound] = np.arange(len(sound))
    owners = position[dataset.caption_owners()]
    known = np.flatnonzero(owners >= 0)
    return replace(found, texts=read_features(texts, known), caption_owners=owners[known])


def read_features(
    column: FeatureColumn, places: NDArray[np.int64], views: int | NDArray[np.int64] = 0
) -> NDArray[np.float32]:
    """(N, D) features of N images, or texts, as stored views of them show them; patches are averaged."""
    stored = column.positions[places, views]
    found = []
    for start in range(0, len(stored), _ROWS_AT_ONCE):
        values = column.store.read(stored[start : start + _ROWS_AT_ONCE]).float()
        found.append((values.flatten(1, -2).mean(dim=1) if values.dim() > 2 else values).numpy())
    return np.concatenate(found)


def _is_whole(choice: PartChoice) -> bool:
    return choice.is_used and choice.part.boundary is None
