"""The stored features of a run: which parts are read now, and the columns that data sets get for them."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from transformers import PreTrainedModel

from mmhf.conventions import Processor
from mmhf.data.augment import Flips
from mmhf.data.collators import ImageCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.digests import Digests
from mmhf.errors import InputError
from mmhf.features.choice import CONTENT, CacheSetting, PartChoice, PartMeasure, measure_part, num_views
from mmhf.features.column import FeatureColumn
from mmhf.features.fill import Filler, Lacking, Source, find_lacking, gathered_digests, make_room_for
from mmhf.features.keys import part_state, store_name
from mmhf.features.parts import FeaturePart, HasFeatureParts
from mmhf.features.store import FeatureLayout, FeatureStore
from mmhf.files import expand_path
from mmhf.parallel import failing_together
from mmhf.recipe.training_sections import CacheSection

if TYPE_CHECKING:
    from mmhf.training.stages import StagePlan

logger = logging.getLogger(__name__)


Measure = Callable[[FeaturePart], PartMeasure | None]


def features_folder(section: CacheSection) -> Path:
    """Where stores are kept: `cache.folder`, `$MMHF_FEATURES`, or a folder beside Hugging Face's own caches."""
    given = section.folder or os.environ.get("MMHF_FEATURES")
    return Path(expand_path(given)) if given else Path(HF_HOME) / "mmhf" / "features"


@dataclass
class _OpenPart:
    """A part whose features are read now."""

    choice: PartChoice
    store: FeatureStore
    dtype: torch.dtype
    """What the part gives, and the model takes."""
    state: tuple[tuple[int, int], ...]
    """Of the part's tensors when they were last compared with the store's name."""
    is_trusted: bool = True
    """Whether the part's weights are those of the store."""


@dataclass
class _Counts:
    """What was read and computed for one argument of `forward`."""

    read: int = 0
    computed: int = 0
    unstored: int = 0
    seconds: float = 0.0
    num_bytes: int = 0


class StageFeatures:
    """Gives data sets the features of a stage's frozen parts, as columns that replace images and texts.

    `attach` names the data sets; `enter` opens what a stage reads and computes what is lacking of it for all of them.

    Args:
        model (`PreTrainedModel`): The model.
        choose (`Callable`): Given what measures a part, chooses for each stage its frozen parts, and whether their
            features are stored; asked once, when it matters.
        setting ([`CacheSetting`]): What it chooses by.
        processor (`Processor`): What makes the model's inputs.
        example_inputs (`Mapping[str, Tensor]`): Inputs of one sample of the largest shape.
        seed (`int`, defaults to 0): What changed views are drawn from.
        augmentations (`Sequence[str]`, *optional*): For each stage what tells its random changes from others.
        most_lacking (`float`, defaults to 1.0): Share of a data set's samples up to which features that are lacking
            are computed; where more are, the data set is read as if there were no store. Below 1, no store is made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        choose: Callable[[Measure], list[list[PartChoice]]],
        setting: CacheSetting,
        *,
        processor: Processor,
        example_inputs: Mapping[str, Tensor],
        seed: int = 0,
        augmentations: Sequence[str] = (),
        most_lacking: float = 1.0,
    ) -> None:
        self.model = model
        self._choose = choose
        self.setting = setting
        self.processor = processor
        self.example_inputs = example_inputs
        self.seed = seed
        self.augmentations = augmentations
        self.most_lacking = most_lacking
        self.stage: int | None = None
        self._filler = Filler(model)
        self._precision = "no"
        self._is_sharded = False
        self._open: dict[str, _OpenPart] = {}
        self._sources: list[Source] = []
        self._digests: dict[tuple[int, str], tuple[Any, Digests]] = {}
        self._counts: dict[str, _Counts] = {}

    def use(self, accelerator: Accelerator, *, num_workers: int = 0, with_bar: bool = True) -> None:
        """Say how the model computes, and with how many processes samples are read.

        Args:
            accelerator (`Accelerator`): What prepares the model; its precision is the one that counts, wherever it
                was set.
            num_workers (`int`, defaults to 0): Processes that decode.
            with_bar (`bool`, defaults to `True`): Show a progress bar.
        """
        self._precision = str(accelerator.mixed_precision)
        self._is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self._filler = Filler(self.model, accelerator.autocast, num_workers, with_bar)

    def attach(self, dataset: Any, collator: Any, *, is_training: bool) -> None:
        """Name a data set that will be read; once a stage has begun, it gets its columns at once.

        Args:
            dataset (`Any`): Any; those that are no table of rows stay as they are.
            collator (`Callable`): Makes its batches.
            is_training (`bool`): Whether it is trained on, so that its images may change at random.
        """
        if not isinstance(dataset, RowDataset) or not isinstance(dataset.table, datasets.Dataset):
            return
        if not isinstance(collator, ImageCollator) or any(each.dataset is dataset for each in self._sources):
            return
        source = Source(dataset, collator, is_training)
        self._sources.append(source)
        if self.stage is not None:
            self._give_columns([source])

    @functools.cached_property
    def choices(self) -> list[list[PartChoice]]:
        """For each stage its frozen parts, and whether their features are stored."""
        return self._choose(self._measure)

    def enter(self, index: int) -> None:
        """Open what a stage reads, and compute what is lacking; the stage's parts are frozen by now."""
        self._open_stage(index)
        self._give_columns(self._sources)

    def lacking(self, index: int) -> list[dict[str, Digests]]:
        """What a stage would compute: for each data set, in the order of `attach`, part → digests of its samples."""
        self._open_stage(index)
        return [
            {
                opened.choice.part.name: find_lacking([self._column(opened, source)]).digests
                for opened in self._open.values()
            }
            for source in self._sources
        ]

    def store_ahead(self, plan: StagePlan) -> None:
        """Compute what the stages of a plan will read of parts that no earlier stage trains."""
        trained: set[str] = set()
        for index, stage in enumerate(plan.stages):
            parts = [choice.part for choice in self.choices[index]]
            if isinstance(self.model, HasFeatureParts) and all(
                trained.isdisjoint(self.model.part_groups(part)) for part in parts
            ):
                self.enter(index)
            trained |= set(stage.curves)

    def check(self) -> None:
        """Before an evaluation, see whether the parts still hold the weights that their features were made with.

        Where they do not, such as under averaged weights, evaluation reads images and texts.
        """
        if self.stage is None and self.choices:
            self.enter(len(self.choices) - 1)
        for opened in self._open.values():
            state = part_state(self.model, opened.choice.part)
            if state == opened.state:
                continue
            opened.state = state
            is_trusted = self._name_of(opened.choice) == opened.store.folder.name
            if is_trusted != opened.is_trusted:
                opened.is_trusted = is_trusted
                self._give_columns([source for source in self._sources if not source.is_training])

    def facts(self) -> dict[str, str]:
        """What was read and computed in this run, by part, in words."""
        found = {}
        for feature, counts in self._counts.items():
            total, name = counts.read + counts.computed, f"stored {feature.replace('_', ' ')}"
            if not counts.computed:
                found[name] = f"0 of {total:,} computed: all were there already"
                continue
            spared = counts.read * counts.seconds / counts.computed
            saved = f", which saved about {spared:.0f} s" if counts.read else ""
            found[name] = (
                f"{counts.computed:,} of {total:,} computed in {counts.seconds:.1f} s "
                f"({counts.num_bytes / 2**20:.1f} MiB written), {counts.read:,} there already{saved}"
            )
        return found

    @property
    def num_computed(self) -> int:
        """Features that were computed, by all processes together."""
        return sum(counts.computed for counts in self._counts.values())

    @property
    def num_unstored(self) -> int:
        """Those of them that were computed for a store that could not be written to its end."""
        return sum(counts.unstored for counts in self._counts.values())

    def _open_stage(self, index: int) -> None:
        self.stage = index
        self._open = {}
        if isinstance(self.model, HasFeatureParts):
            self.model.use_part(None)
        for choice in self.choices[index]:
            if choice.is_used and not self._is_sharded:
                self._open_part(choice)

    def _name_of(self, choice: PartChoice) -> str:
        return store_name(
            self.model,
            choice.part,
            self.processor,
            dtype=choice.dtype,
            precision=self._precision,
            device=self.model.device,
            least_side=self.setting.least_side,
        )

    def _measure(self, part: FeaturePart) -> PartMeasure | None:
        example = {name: value[:1].to(self.model.device) for name, value in self.example_inputs.items()}
        with self._filler.autocast():
            return measure_part(self.model, part, example)

    def _open_part(self, choice: PartChoice) -> None:
        part = choice.part
        folder = features_folder(self.setting.section) / self._name_of(choice)
        if self.most_lacking < 1 and not folder.exists():
            return
        try:
            with failing_together():
                store = FeatureStore(folder, FeatureLayout(choice.shape, choice.dtype))
        except InputError as error:
            self._do_without(part, error)
            return
        measured = self._measure(part)
        assert measured is not None
        assert isinstance(self.model, HasFeatureParts)
        self.model.use_part(part)
        self._open[CONTENT[part.name]] = _OpenPart(choice, store, measured.dtype, part_state(self.model, part))

    def _give_columns(self, sources: Sequence[Source]) -> None:
        """Give data sets the columns of the parts that are open, and take away others."""
        for source in sources:
            source.dataset.columns = {}
        for opened in list(self._open.values()):
            readers = [each for each in sources if opened.choice.for_training or not each.is_training]
            if readers and opened.is_trusted:
                self._give_column(opened, readers)

    def _give_column(self, opened: _OpenPart, sources: Sequence[Source]) -> None:
        part = opened.choice.part
        columns = [self._column(opened, source) for source in sources]
        counts = self._counts.setdefault(part.feature, _Counts())
        lacking = find_lacking(columns)
        num_wanted = len(np.unique(np.concatenate([column.stored_digests().view("S16") for column in columns])))
        logger.info(
            "Frozen layers are computed once for each of %s %ss: %s there already, %s to do (%s in %s)",
            f"{num_wanted:,}",
            CONTENT[part.name],
            f"{num_wanted - len(lacking):,}",
            f"{len(lacking):,}",
            part.feature.replace("_", " "),
            opened.store.folder,
        )
        counts.read += num_wanted - len(lacking)
        try:
            make_room_for(len(lacking), opened.store, max_bytes=self.setting.section.max_bytes)
            if len(lacking):
                self._fill(opened, lacking, sources)
        except InputError as error:
            self._do_without(part, error)
            return
        for source, column in zip(sources, columns, strict=True):
            column.bind()
            source.dataset.columns[part.feature] = column

    def _column(self, opened: _OpenPart, source: Source) -> FeatureColumn:
        part, content = opened.choice.part, CONTENT[opened.choice.part.name]
        column = FeatureColumn(
            part.feature, content, opened.store, opened.dtype, self._digests_of(source.dataset, content)
        )
        changes = self.setting.changes_in(self.stage or 0)
        if source.is_training and content == "image" and changes.augmentation is not None:
            described = f"{self.augmentations[self.stage or 0]} {self.seed}"
            column.num_views, column.seed = num_views(self.setting, self.stage or 0) or 1, self.seed
            if self.setting.section.views is None and isinstance(changes.augmentation, Flips):
                column.view_of, described = changes.augmentation.view_of, changes.augmentation.description
            column.salt = int.from_bytes(hashlib.blake2b(described.encode(), digest_size=8).digest(), "little")
        return column

    def _fill(self, opened: _OpenPart, lacking: Lacking, sources: Sequence[Source]) -> None:
        part, store = opened.choice.part, opened.store
        filled = self._filler.fill(part, store, lacking, sources, stage=self.stage or 0)
        counts = self._counts[part.feature]
        counts.computed += filled.num_rows
        counts.seconds += filled.seconds
        if store.is_writable:
            counts.num_bytes += filled.num_rows * store.layout.row_bytes
        else:
            counts.unstored += filled.num_rows
        seconds, what = filled.seconds, CONTENT[part.name]
        logger.info("%s %ss done in %.1f s", f"{filled.num_rows:,}", what, seconds)

    def _digests_of(self, dataset: RowDataset, content: Any) -> Digests:
        key = (id(dataset.table), content)
        if key not in self._digests:
            # The table is held, so that its id stays its own.
            self._digests[key] = (dataset.table, gathered_digests(dataset, content))
        return self._digests[key][1]

    def _do_without(self, part: FeaturePart, error: InputError) -> None:
        if self.setting.section.mode == "on":
            raise error
        logger.warning("%s; the run goes on without stored %s", error, part.feature.replace("_", " "))
        self._open.pop(CONTENT[part.name], None)
