"""The features of a run's frozen parts: opened when a stage begins, read in place of inputs, computed once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mmhf.data.datasets import RowDataset
from mmhf.data.digests import Digests
from mmhf.data.feature_cache import OFF, PLAIN, DatasetFeatures, FeatureColumn
from mmhf.data.samplers import SampleKey
from mmhf.errors import InputError
from mmhf.features.choice import CONTENT, CacheSetting, PartChoice, choose_parts, measure_part
from mmhf.features.keys import part_state, store_name
from mmhf.features.parts import FeaturePart, HasFeatureParts
from mmhf.features.store import FeatureLayout, FeatureStore, make_room
from mmhf.parallel import first_error, gather, rank, world_size
from mmhf.recipe.training_sections import CacheSection
from mmhf.training.feature_filling import Autocast, BatchFiller, CachedTable, Collate, OpenPart
from mmhf.training.stages import StagePlan
from mmhf.training.weights import is_sharded

logger = logging.getLogger(__name__)


def features_folder(section: CacheSection) -> Path:
    """Where stores are kept: `cache.folder`, `$MMHF_FEATURES`, or a folder beside Hugging Face's own caches."""
    given = section.folder or os.environ.get("MMHF_FEATURES")
    return Path(given).expanduser() if given else Path(HF_HOME) / "mmhf" / "features"


@dataclass
class StageCache:
    """Reads stored features into batches, and computes and stores those that are absent.

    Args:
        plan (`StagePlan`): The stages.
        setting (`CacheSetting`): What decides which parts are stored.
        processor (`Any`): What makes the model's inputs.
        example_inputs (`Mapping[str, Tensor]`): Inputs of one sample of the largest shape.
        seed (`int`): What changed views are drawn from.
        augmentations (`Sequence[str]`): For each stage what tells its random changes from others.
    """

    plan: StagePlan
    setting: CacheSetting
    processor: Any
    example_inputs: Mapping[str, Tensor]
    seed: int
    augmentations: Sequence[str]
    stage: int | None = None
    _autocast_dtype: torch.dtype | None = None
    _digests: dict[tuple[int, str], tuple[Any, Digests]] = field(default_factory=dict)
    _choices: list[list[PartChoice]] | None = None

    def __post_init__(self) -> None:
        self._filler = BatchFiller(self.plan.model)

    def use_precision(self, autocast: Autocast, dtype: torch.dtype | None) -> None:
        """Say how the model computes: the context of its passes and, under autocast, their dtype."""
        self._filler.autocast, self._autocast_dtype = autocast, dtype

    @property
    def choices(self) -> list[list[PartChoice]]:
        """For each stage its frozen parts, and whether their features are stored."""
        if self._choices is None:
            self._choices = choose_parts(self.plan, self.setting, self._measure)
        return self._choices

    def attach(self, dataset: Any, collator: Collate, *, is_training: bool) -> None:
        """Let a data set's batches be made with stored features in mind, if any stage stores some.

        Args:
            dataset (`Any`): Any; those that are no table of rows stay as they are.
            collator (`Callable`): Makes its batches.
            is_training (`bool`): Whether it is trained on, so that its images may change at random.
        """
        if not isinstance(dataset, RowDataset) or not isinstance(dataset.table, datasets.Dataset):
            return
        if any(table.dataset is dataset and table.collator is collator for table in self._filler.tables):
            return
        used = {
            CONTENT[each.part.name]
            for stage in self.choices
            for each in stage
            if each.is_used and (each.for_training or not is_training)
        }
        if not used or is_sharded():
            return
        views = (self.setting.section.views or 1) if is_training else 1
        columns: dict[str, FeatureColumn] = {
            content: FeatureColumn(
                content, self._digests_of(dataset, content), views if content == "image" else 1, self.seed
            )
            for content in sorted(used)
        }
        table = CachedTable(dataset, collator, DatasetFeatures(len(self._filler.tables), columns), is_training)
        dataset.features = table.features
        self._filler.tables.append(table)
        for content, opened in self._filler.open.items():
            opened.store.refresh()  # what this process has stored since can be found, too
            self._bind(content, table)

    def complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Put features into a batch in place of the inputs of those parts that store them.

        Args:
            batch (`Mapping[str, Any]`): As a collator makes it; one without `PART_INPUTS` stays as it is.
        """
        return self._filler.complete(batch)

    def enter(self, index: int) -> None:
        """Open what a stage stores, and close what it does not; its parts must be frozen by now."""
        self.stage = index
        self._filler.open = {}
        model = self.plan.model
        if isinstance(model, HasFeatureParts):
            model.use_part(None)
        for choice in self.choices[index]:
            if choice.is_used and not is_sharded():
                self._open_part(choice, index)
        for table in self._filler.tables:
            for content, column in table.features.columns.items():
                if content not in self._filler.open:
                    column.mode.fill_(OFF)
        for content in list(self._filler.open):
            for table in self._filler.tables:
                self._bind(content, table)
            self._make_room(content)

    def store_ahead(self, *, batch_size: int, num_workers: int) -> int:
        """Compute and store what is absent of the attached data sets, of parts that no earlier stage trains.

        Args:
            batch_size (`int`): Samples that are computed at once, by each process.
            num_workers (`int`): Processes that read them.

        Returns:
            `int`: features that this process computed.
        """
        self.plan.model.eval()
        trained: set[str] = set()
        for index, stage in enumerate(self.plan.stages):
            groups = {group for choice in self.choices[index] for group in self._groups_of(choice.part)}
            if trained.isdisjoint(groups):
                self.enter(index)
                for table in self._filler.tables:
                    for keys in self._absent_keys(table, index):
                        self._store(table, keys, batch_size, num_workers)
                    self.refresh()
            trained |= set(stage.curves)
        return sum(counts.computed for counts in self._filler.counts.values())

    def _groups_of(self, part: FeaturePart) -> tuple[str, ...]:
        model = self.plan.model
        assert isinstance(model, HasFeatureParts)
        return model.part_groups(part)

    def _absent_keys(self, table: CachedTable, index: int) -> Iterator[list[SampleKey]]:
        """For each epoch that a stage trains, or for one evaluation, the samples that have a feature to be stored."""
        epochs = self._epochs(index) if table.is_training else range(1)
        for epoch in epochs:
            keys = np.zeros((len(table.dataset), 3), dtype=np.int64)
            keys[:, 0], keys[:, 1] = np.arange(len(keys)), epoch
            is_absent = np.zeros(len(keys), dtype=bool)
            for column in table.features.columns.values():
                if column.is_active:
                    places = table.dataset.places(column.content, keys)
                    views = column.views_of(keys, int(column.mode))
                    lacks = (column.find(places, views) < 0) & column.is_storable[places]
                    first = np.unique(places * column.num_views + views, return_index=True)[1]
                    is_absent[first[lacks[first]]] = True
            yield [SampleKey(*key) for key in keys[is_absent][rank() :: world_size()].tolist()]

    def _epochs(self, index: int) -> range:
        started_at, ends_at = self.plan.spans()[index]
        if self.plan.has_own_batches:
            return range(self.plan.epoch_of(started_at)[0], self.plan.epoch_of(ends_at - 1)[0] + 1)
        steps = self.plan.stages[index].steps_per_epoch or 1
        return range(started_at // steps, (ends_at - 1) // steps + 1)

    def _store(self, table: CachedTable, keys: list[SampleKey], batch_size: int, num_workers: int) -> None:
        batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        sampler: Any = batches
        loader = DataLoader(table.dataset, batch_sampler=sampler, collate_fn=table.collator, num_workers=num_workers)
        for batch in tqdm(loader, total=len(batches), unit="batch", disable=not batches or rank() > 0):
            self.complete(batch)

    def check(self, global_step: int) -> None:
        """Look, before an evaluation, whether the parts still hold the weights that their stores were made with.

        Args:
            global_step (`int`): Steps that are done.
        """
        if self.stage is None and self.plan.locate(global_step) is None:
            self.enter(len(self.plan.stages) - 1)
        for content, opened in self._filler.open.items():
            state = part_state(self.plan.model, opened.choice.part)
            if state == opened.state:
                continue
            opened.state = state
            is_trusted = self._name_of(opened.choice) == opened.store.folder.name
            if is_trusted != opened.is_trusted:
                opened.is_trusted = is_trusted
                for table in self._filler.tables:
                    self._bind(content, table)

    def refresh(self) -> None:
        """See what other processes have stored since."""
        for content, opened in self._filler.open.items():
            opened.store.refresh()
            if len(opened.store) != opened.num_bound:
                for table in self._filler.tables:
                    self._bind(content, table)
                opened.num_bound = len(opened.store)

    def facts(self) -> dict[str, str]:
        """What the cache did in this run, by part, in words."""
        found = {}
        for feature, counts in self._filler.counts.items():
            total = counts.read + counts.computed
            saved = counts.read * counts.seconds / counts.computed if counts.computed else None
            found[f"cache of {feature.replace('_', ' ')}"] = (
                f"{counts.read / max(total, 1):.1%} of {total:,} rows read, {counts.computed:,} computed in "
                f"{counts.seconds:.1f} s, {counts.num_bytes / 2**20:.1f} MiB written, "
                + (f"about {saved:.0f} s of the encoder saved" if saved is not None else "nothing had to be computed")
            )
        return found

    def _measure(self, part: FeaturePart) -> Any:
        device = self.plan.model.device
        example = {name: value[:1].to(device) for name, value in self.example_inputs.items()}
        with self._filler.autocast():
            return measure_part(self.plan.model, part, example)

    def _digests_of(self, dataset: RowDataset, content: Any) -> Digests:
        key = (id(dataset.table), content)
        if key not in self._digests:
            world = world_size()
            begun = time.perf_counter()
            digests = dataset.digests(content, shard=rank(), num_shards=world)
            if world > 1:
                shards = gather(digests)
                digests = np.empty(sum(map(len, shards)), dtype=digests.dtype)
                for number, shard in enumerate(shards):
                    digests[number::world] = shard
            logger.info("%d %ss hashed in %.1f s", len(digests), content, time.perf_counter() - begun)
            self._digests[key] = (dataset.table, digests)  # (held, so that its id stays its own)
        return self._digests[key][1]

    def _name_of(self, choice: PartChoice) -> str:
        return store_name(
            self.plan.model,
            choice.part,
            self.processor,
            dtype=choice.dtype,
            autocast=self._autocast_dtype,
            device=self.plan.model.device,
        )

    def _open_part(self, choice: PartChoice, index: int) -> None:
        part = choice.part
        folder = features_folder(self.setting.section) / self._name_of(choice)
        store, error = None, None
        try:
            store = FeatureStore(folder, FeatureLayout(choice.shape, choice.dtype))
        except InputError as found:
            error = found
        if (error := first_error(error)) is not None or store is None:
            self._do_without(part, error)
            return
        measured = self._measure(part)
        described = f"{self.augmentations[index]} {self.seed}".encode()
        salt = int.from_bytes(hashlib.blake2b(described, digest_size=8).digest(), "little")
        state = part_state(self.plan.model, part)
        model = self.plan.model
        assert isinstance(model, HasFeatureParts)
        model.use_part(part)
        self._filler.open[CONTENT[part.name]] = OpenPart(choice, store, measured.dtype, state, salt)

    def _bind(self, content: str, table: CachedTable) -> None:
        """Find the samples of a data set in a store that has been opened or has grown."""
        column = table.features.columns.get(content)
        if column is None:
            return
        opened = self._filler.open[content]
        changes = self.setting.changes_in(self.stage or 0)
        if not opened.is_trusted or (table.is_training and not opened.choice.for_training):
            column.mode.fill_(OFF)
            return
        is_changed = table.is_training and column.content == "image" and changes.augmentation is not None
        column.mode.fill_(column.num_views if is_changed else PLAIN)
        places = np.arange(len(column.digests))
        for view in range(column.num_views if is_changed else 1):
            views = np.full(len(places), view)
            found = opened.store.find(column.stored_digests(places, views, opened.salt))
            column.positions.numpy()[:, view] = np.where(column.is_storable, found, -1)

    def _make_room(self, content: str) -> None:
        """Look, before anything is computed, whether what is absent has room."""
        opened = self._filler.open[content]
        columns = [table.features.columns.get(content) for table in self._filler.tables]
        present = [column for column in columns if column is not None and column.is_active]
        absent = sum(int((column.positions[:, : max(int(column.mode), 1)] < 0).sum()) for column in present)
        stored = sum(column.positions[:, : max(int(column.mode), 1)].numel() for column in present) - absent
        logger.info(
            "%s of the frozen %s part: %d of %d samples are stored in %s",
            " × ".join(map(str, opened.choice.shape)),
            opened.choice.part.name,
            stored,
            stored + absent,
            opened.store.folder,
        )
        error = None
        if absent and opened.store.is_writable and rank() == 0:
            try:
                needed = absent * opened.store.layout.row_bytes
                root = opened.store.folder.parent
                make_room(root, needed, max_bytes=self.setting.section.max_bytes, keep=opened.store.folder)
            except InputError as found:
                error = found
        if (error := first_error(error)) is not None:
            self._do_without(opened.choice.part, error)

    def _do_without(self, part: FeaturePart, error: InputError | None) -> None:
        if self.setting.section.mode == "on" and error is not None:
            raise error
        logger.warning("%s; the run goes on without stored %s", error, part.feature.replace("_", " "))
        content = CONTENT[part.name]
        self._filler.open.pop(content, None)
        for table in self._filler.tables:
            if content in table.features.columns:
                table.features.columns[content].mode.fill_(OFF)
