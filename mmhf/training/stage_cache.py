"""The features of a run's frozen parts: opened when a stage begins, read in place of inputs, computed once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.data.datasets import RowDataset
from mmhf.data.feature_cache import OFF, PART_INPUTS, PLAIN, AskedRows, DatasetFeatures, FeatureColumn, PartInputs
from mmhf.data.feature_store import DamagedStoreError, Digests, FeatureLayout, FeatureStore, make_room
from mmhf.data.samplers import SampleKey
from mmhf.errors import InputError
from mmhf.models.feature_parts import FeaturePart, HasFeatureParts
from mmhf.recipe.cache_section import CacheSection
from mmhf.training.boundary_checks import is_sharded
from mmhf.training.cache_choice import CONTENT, CacheSetting, PartChoice, choose_parts, measure_part
from mmhf.training.stages import StagePlan
from mmhf.training.store_keys import part_state, store_name

logger = logging.getLogger(__name__)

Collate = Callable[[Any], dict[str, Any]]
Autocast = Callable[[], AbstractContextManager[Any]]

_MASKS = {"image_features": "image_mask", "text_features": "text_mask"}


def features_folder(section: CacheSection) -> Path:
    """Where stores are kept: `cache.folder`, `$MMHF_FEATURES`, or a folder beside Hugging Face's own caches."""
    given = section.folder or os.environ.get("MMHF_FEATURES")
    return Path(given).expanduser() if given else Path(HF_HOME) / "mmhf" / "features"


@dataclass
class CacheCounts:
    """What a cache has done for one part.

    Attributes:
        read, computed (`int`): Rows whose features were read, and that were computed.
        seconds (`float`): What computing took.
        num_bytes (`int`): What was written.
    """

    read: int = 0
    computed: int = 0
    seconds: float = 0.0
    num_bytes: int = 0


@dataclass
class _OpenPart:
    """A part whose features are stored now."""

    choice: PartChoice
    store: FeatureStore
    dtype: torch.dtype
    """What the part gives, and the model takes."""
    state: tuple[tuple[int, int], ...]
    salt: int
    is_trusted: bool = True
    """Whether the part's weights are those of the store."""


@dataclass
class _Table:
    """A data set with its collator and the features of its samples."""

    dataset: RowDataset
    collator: Collate
    features: DatasetFeatures
    is_training: bool


@dataclass
class _Wanted:
    """Rows of a batch whose features are to be had.

    Attributes:
        places, views (`NDArray`): (B,) which image or text, and which view of it.
        positions (`NDArray`): (B,) where they are stored; -1 where they are not.
    """

    places: NDArray[np.int64]
    views: NDArray[np.int64]
    positions: NDArray[np.int64]


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
    counts: dict[str, CacheCounts] = field(default_factory=dict)
    stage: int | None = None
    _autocast: Autocast = nullcontext
    _autocast_dtype: torch.dtype | None = None
    _open: dict[str, _OpenPart] = field(default_factory=dict)
    _tables: list[_Table] = field(default_factory=list)
    _digests: dict[tuple[int, str], tuple[Any, Digests]] = field(default_factory=dict)
    _choices: list[list[PartChoice]] | None = None

    def use_precision(self, autocast: Autocast, dtype: torch.dtype | None) -> None:
        """Say how the model computes: the context of its passes and, under autocast, their dtype."""
        self._autocast, self._autocast_dtype = autocast, dtype

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
        if any(table.dataset is dataset and table.collator is collator for table in self._tables):
            return
        used = {
            each.part.feature: each
            for stage in self.choices
            for each in stage
            if each.is_used and (each.for_training or not is_training)
        }
        if not used or (is_sharded()):
            return
        views = (self.setting.section.views or 1) if is_training else 1
        columns = {}
        for feature, choice in used.items():
            content = CONTENT[choice.part.name]
            digests = self._digests_of(dataset, content)
            columns[feature] = FeatureColumn(content, digests, views if content == "image" else 1, self.seed)
        dataset.features = DatasetFeatures(len(self._tables), columns)
        self._tables.append(_Table(dataset, collator, dataset.features, is_training))
        for feature in self._open:
            self._bind(feature, self._tables[-1])

    def enter(self, index: int) -> None:
        """Open what a stage stores, and close what it does not; its parts must be frozen by now."""
        self.stage = index
        self._open = {}
        for choice in self.choices[index]:
            if choice.is_used and not is_sharded():
                self._open_part(choice, index)
        for table in self._tables:
            for feature, column in table.features.columns.items():
                if feature not in self._open:
                    column.mode.fill_(OFF)
        for feature in list(self._open):
            for table in self._tables:
                self._bind(feature, table)
            self._make_room(feature)

    def check(self, global_step: int) -> None:
        """Look, before an evaluation, whether the parts still hold the weights that their stores were made with.

        Args:
            global_step (`int`): Steps that are done.
        """
        if self.stage is None and self.plan.locate(global_step) is None:
            self.enter(len(self.plan.stages) - 1)
        for feature, opened in self._open.items():
            state = part_state(self.plan.model, opened.choice.part)
            if state == opened.state:
                continue
            opened.state = state
            is_trusted = self._name_of(opened.choice) == opened.store.folder.name
            if is_trusted != opened.is_trusted:
                opened.is_trusted = is_trusted
                for table in self._tables:
                    self._bind(feature, table)

    def refresh(self) -> None:
        """See what other processes have stored since."""
        for feature, opened in self._open.items():
            known = len(opened.store)
            opened.store.refresh()
            if len(opened.store) != known:
                for table in self._tables:
                    self._bind(feature, table)

    def complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Put features into a batch in place of the inputs of those parts that store them.

        Args:
            batch (`Mapping[str, Any]`): As a collator makes it; one without `PART_INPUTS` stays as it is.
        """
        inputs = batch.get(PART_INPUTS)
        if inputs is None:
            return dict(batch)
        table = self._tables[inputs.dataset]
        done = self._filled(table, batch)
        if done is None:  # made for another stage, or of rows whose features have turned out to be damaged
            done = self._filled(table, self._make_anew(table, inputs))
        assert done is not None
        return done

    def facts(self) -> dict[str, str]:
        """What the cache did in this run, by part, in words."""
        found = {}
        for feature, counts in self.counts.items():
            total = counts.read + counts.computed
            saved = counts.read * counts.seconds / counts.computed if counts.computed else None
            found[f"cache of {feature.replace('_', ' ')}"] = (
                f"{counts.read / max(total, 1):.1%} of {total:,} rows read, {counts.computed:,} computed in "
                f"{counts.seconds:.1f} s, {counts.num_bytes / 2**20:.1f} MiB written, "
                + (f"about {saved:.0f} s of the encoder saved" if saved is not None else "nothing had to be computed")
            )
        return found

    def _filled(self, table: _Table, batch: Mapping[str, Any]) -> dict[str, Any] | None:
        """The batch with features in it; None if it lacks inputs that are needed."""
        inputs: PartInputs = batch[PART_INPUTS]
        done = {name: value for name, value in batch.items() if name != PART_INPUTS}
        for feature, column in table.features.columns.items():
            if inputs.modes[feature] != int(column.mode):
                return None
            if not column.is_active:
                continue
            features = self._features(feature, table, column, batch)
            if features is None:
                return None
            for name in self._open[feature].choice.part.inputs:
                if name not in inputs.kept:
                    done.pop(name, None)
            done[feature] = features
        return done

    def _features(self, feature: str, table: _Table, column: FeatureColumn, batch: Mapping[str, Any]) -> Tensor | None:
        inputs: PartInputs = batch[PART_INPUTS]
        opened, counts = self._open[feature], self.counts.setdefault(feature, CacheCounts())
        places = table.dataset.places(column.content, inputs.keys)
        views = column.views_of(inputs.keys, int(column.mode))
        wanted = _Wanted(places, views, column.find(places, views))
        device = self.plan.model.device
        present = wanted.positions >= 0
        if present.all():
            found = self._read(opened, column, wanted, present)
            counts.read += len(places)
            return None if found is None else found.to(device)
        needed = ~present
        if (mask := batch.get(_MASKS[feature])) is not None:  # of other rows the model looks at no features
            needed &= mask.cpu().numpy() > 0
        features = torch.zeros(len(places), *opened.choice.shape, dtype=opened.dtype, device=device)
        if present.any():
            found = self._read(opened, column, wanted, present)
            if found is None:
                return None
            features[torch.from_numpy(present)] = found.to(device)
            counts.read += int(present.sum())
        if needed.any():
            computed = self._compute(feature, column, batch, wanted, np.flatnonzero(needed))
            if computed is None:
                return None
            features[torch.from_numpy(needed)] = computed
        return features

    def _read(
        self, opened: _OpenPart, column: FeatureColumn, wanted: _Wanted, present: NDArray[np.bool_]
    ) -> Tensor | None:
        """Stored features; None, and forgotten, where they are damaged."""
        positions = wanted.positions[present]
        try:
            return opened.store.read(positions).to(opened.dtype)
        except DamagedStoreError as error:
            logger.warning("%s; they are computed anew", error)
            damaged = opened.store.drop_damaged(positions)
            lost = np.flatnonzero(present)[damaged]
            column.positions.numpy()[wanted.places[lost], wanted.views[lost]] = -1
            return None

    def _compute(
        self, feature: str, column: FeatureColumn, batch: Mapping[str, Any], wanted: _Wanted, rows: NDArray[np.int64]
    ) -> Tensor | None:
        """Compute the features of some rows, each image or text once, and store what is the samples' own."""
        inputs: PartInputs = batch[PART_INPUTS]
        held = inputs.rows[feature]
        at = np.minimum(np.searchsorted(held, rows), max(len(held) - 1, 0))
        if not len(held) or (held[at] != rows).any():
            return None
        firsts, places_of = _first_of_each(wanted.places[rows] * column.num_views + wanted.views[rows])
        at, chosen = at[firsts], rows[firsts]
        opened, counts = self._open[feature], self.counts[feature]
        begun = time.perf_counter()
        given = self._select(opened.choice.part, batch, at, chosen)
        computed = self._run(opened.choice.part, given).to(opened.store.layout.dtype)
        sound = inputs.sound[feature][at]
        if sound.any():
            self._store(opened, column, wanted, chosen[sound], computed[torch.from_numpy(sound)])
        counts.seconds += time.perf_counter() - begun
        counts.computed += len(firsts)
        return computed.to(opened.dtype)[torch.from_numpy(places_of)]

    def _select(
        self, part: FeaturePart, batch: Mapping[str, Any], at: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """The inputs of the rows `chosen`, which are `at` these places among those that the batch holds."""
        device, kept = self.plan.model.device, batch[PART_INPUTS].kept
        selected = {}
        for name in (each for each in part.inputs if each in batch):
            index = torch.from_numpy(chosen if name in kept else at).to(batch[name].device)
            selected[name] = batch[name][index].to(device) if len(index) < len(batch[name]) else batch[name].to(device)
        mask = selected.get("attention_mask")
        if mask is not None and len(mask) < len(batch["attention_mask"]):  # padded to the longest of other texts
            used = mask.any(dim=0)
            selected = {name: value[:, used] for name, value in selected.items()}
        return selected

    @torch.no_grad()
    def _run(self, part: FeaturePart, given: Mapping[str, Tensor]) -> Tensor:
        model = self.plan.model
        assert isinstance(model, HasFeatureParts)
        with self._autocast():
            return model.compute_features(part, **given)

    def _store(
        self,
        opened: _OpenPart,
        column: FeatureColumn,
        wanted: _Wanted,
        rows: NDArray[np.int64],
        features: Tensor,
    ) -> None:
        if not opened.store.is_writable:
            return
        places, views = wanted.places[rows], wanted.views[rows]
        try:
            positions = opened.store.append(column.stored_digests(places, views, opened.salt), features)
        except InputError as error:
            logger.warning("%s; the run goes on without storing more", error)
            opened.store.is_writable = False
            return
        column.positions.numpy()[places, views] = positions
        self.counts[opened.choice.part.feature].num_bytes += len(rows) * opened.store.layout.row_bytes

    def _make_anew(self, table: _Table, inputs: PartInputs) -> dict[str, Any]:
        """The batch of the same samples, with the inputs of all of them."""
        keys = [SampleKey(*key) for key in inputs.keys.tolist()]
        return table.collator(AskedRows(table.dataset, table.features, keys, inputs.stage, all_absent=True))

    def _measure(self, part: FeaturePart) -> Any:
        device = self.plan.model.device
        example = {name: value[:1].to(device) for name, value in self.example_inputs.items()}
        with self._autocast():
            return measure_part(self.plan.model, part, example)

    def _digests_of(self, dataset: RowDataset, content: Any) -> Digests:
        key = (id(dataset.table), content)
        if key not in self._digests:
            world, rank = _world_size(), _rank()
            begun = time.perf_counter()
            digests = dataset.digests(content, shard=rank, num_shards=world)
            if world > 1:
                shards = gather_object([digests])
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
        if (error := _first_error(error)) is not None or store is None:
            self._do_without(part, error)
            return
        measured = self._measure(part)
        described = f"{self.augmentations[index]} {self.seed}".encode()
        salt = int.from_bytes(hashlib.blake2b(described, digest_size=8).digest(), "little")
        state = part_state(self.plan.model, part)
        self._open[part.feature] = _OpenPart(choice, store, measured.dtype, state, salt)

    def _bind(self, feature: str, table: _Table) -> None:
        """Find the samples of a data set in a store that has been opened or has grown."""
        column = table.features.columns.get(feature)
        if column is None:
            return
        opened = self._open[feature]
        changes = self.setting.changes_in(self.stage or 0)
        if not opened.is_trusted or (table.is_training and not opened.choice.for_training):
            column.mode.fill_(OFF)
            return
        is_changed = table.is_training and column.content == "image" and changes.augmentation is not None
        column.mode.fill_(column.num_views if is_changed else PLAIN)
        places = np.arange(len(column.digests))
        for view in range(column.num_views if is_changed else 1):
            views = np.full(len(places), view)
            column.positions.numpy()[:, view] = opened.store.find(column.stored_digests(places, views, opened.salt))

    def _make_room(self, feature: str) -> None:
        """Look, before anything is computed, whether what is absent has room."""
        opened = self._open[feature]
        columns = [table.features.columns.get(feature) for table in self._tables]
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
        if absent and opened.store.is_writable and _rank() == 0:
            try:
                needed = absent * opened.store.layout.row_bytes
                root = opened.store.folder.parent
                make_room(root, needed, max_bytes=self.setting.section.max_bytes, keep=opened.store.folder)
            except InputError as found:
                error = found
        if (error := _first_error(error)) is not None:
            self._do_without(opened.choice.part, error)

    def _do_without(self, part: FeaturePart, error: InputError | None) -> None:
        if self.setting.section.mode == "on" and error is not None:
            raise error
        logger.warning("%s; the run goes on without stored %s", error, part.feature.replace("_", " "))
        self._open.pop(part.feature, None)
        for table in self._tables:
            if part.feature in table.features.columns:
                table.features.columns[part.feature].mode.fill_(OFF)


class CacheStages(TrainerCallback):
    """Opens what each stage stores; belongs behind `StageCallback`, which freezes and may load other weights."""

    def __init__(self, cache: StageCache) -> None:
        self.cache = cache

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.cache.stage = None
        self.on_step_begin(args, state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        position = self.cache.plan.locate(state.global_step)
        if position is not None and position.index != self.cache.stage:
            self.cache.enter(position.index)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.cache.refresh()


def _first_of_each(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each value is for the first time, in order, and for each value the number of its first among these."""
    _, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(firsts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return firsts[order], rank[inverse]


def _world_size() -> int:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _world_size() > 1 else 0


def _first_error(own: InputError | None) -> InputError | None:
    """What any process met: all do the same about it."""
    if _world_size() == 1:
        return own
    return next((error for error in gather_object([own]) if error is not None), None)
