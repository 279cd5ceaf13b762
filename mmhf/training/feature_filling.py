"""Batches with stored features in place of inputs; what is not stored is computed, and stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from mmhf.data.datasets import RowDataset
from mmhf.data.feature_cache import PART_INPUTS, AskedRows, DatasetFeatures, FeatureColumn, PartInputs
from mmhf.data.samplers import SampleKey
from mmhf.errors import InputError
from mmhf.features.choice import PartChoice
from mmhf.features.parts import FeaturePart, HasFeatureParts
from mmhf.features.store import DamagedStoreError, FeatureStore

logger = logging.getLogger(__name__)

Collate = Callable[[Any], dict[str, Any]]
Autocast = Callable[[], AbstractContextManager[Any]]


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
class OpenPart:
    """A part whose features are stored now."""

    choice: PartChoice
    store: FeatureStore
    dtype: torch.dtype
    """What the part gives, and the model takes."""
    state: tuple[tuple[int, int], ...]
    salt: int
    is_trusted: bool = True
    """Whether the part's weights are those of the store."""
    num_bound: int = 0
    """Rows of the store when the samples of all data sets were last looked for in it."""


@dataclass
class CachedTable:
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
class BatchFiller:
    """Puts the features of open parts into batches.

    Args:
        model (`PreTrainedModel`): Whose parts they are.
    """

    model: PreTrainedModel
    autocast: Autocast = nullcontext
    """Context of the model's passes."""
    open: dict[str, OpenPart] = field(default_factory=dict)
    """`image`, `text` → the part of it whose features are stored now."""
    tables: list[CachedTable] = field(default_factory=list)
    counts: dict[str, CacheCounts] = field(default_factory=dict)
    """By argument of `forward`."""

    def complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Put features into a batch in place of the inputs of those parts that store them.

        Args:
            batch (`Mapping[str, Any]`): As a collator makes it; one without `PART_INPUTS` stays as it is.
        """
        inputs = batch.get(PART_INPUTS)
        if inputs is None:
            return dict(batch)
        table = self.tables[inputs.dataset]
        done = self._filled(table, batch)
        if done is None:  # made for another stage, or of rows whose features have turned out to be damaged
            done = self._filled(table, self._make_anew(table, inputs))
        assert done is not None
        return done

    def _filled(self, table: CachedTable, batch: Mapping[str, Any]) -> dict[str, Any] | None:
        """The batch with features in it; None if it lacks inputs that are needed."""
        inputs: PartInputs = batch[PART_INPUTS]
        done = {name: value for name, value in batch.items() if name != PART_INPUTS}
        for content, column in table.features.columns.items():
            if inputs.modes[content] != int(column.mode):
                return None
            if not column.is_active:
                continue
            part = self.open[content].choice.part
            features = self._features(table, column, batch)
            if features is None:
                return None
            for name in part.inputs:
                if name not in inputs.kept:
                    done.pop(name, None)
            done[part.feature] = features
        return done

    def _features(self, table: CachedTable, column: FeatureColumn, batch: Mapping[str, Any]) -> Tensor | None:
        inputs: PartInputs = batch[PART_INPUTS]
        opened = self.open[column.content]
        counts = self.counts.setdefault(opened.choice.part.feature, CacheCounts())
        places = table.dataset.places(column.content, inputs.keys)
        views = column.views_of(inputs.keys, int(column.mode))
        wanted = _Wanted(places, views, column.find(places, views))
        device = self.model.device
        present = wanted.positions >= 0
        if present.all():
            found = self._read(opened, column, wanted, present)
            counts.read += len(places)
            return None if found is None else found.to(device)
        needed = ~present
        if (mask := batch.get(f"{column.content}_mask")) is not None:  # of other rows the model looks at no features
            needed &= mask.cpu().numpy() > 0
        features = torch.zeros(len(places), *opened.choice.shape, dtype=opened.dtype, device=device)
        if present.any():
            found = self._read(opened, column, wanted, present)
            if found is None:
                return None
            features[torch.from_numpy(present)] = found.to(device)
            counts.read += int(present.sum())
        if needed.any():
            computed = self._compute(column, batch, wanted, np.flatnonzero(needed))
            if computed is None:
                return None
            features[torch.from_numpy(needed)] = computed
        return features

    def _read(
        self, opened: OpenPart, column: FeatureColumn, wanted: _Wanted, present: NDArray[np.bool_]
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
        self, column: FeatureColumn, batch: Mapping[str, Any], wanted: _Wanted, rows: NDArray[np.int64]
    ) -> Tensor | None:
        """Compute the features of some rows, each image or text once, and store what is the samples' own."""
        inputs: PartInputs = batch[PART_INPUTS]
        held = inputs.rows[column.content]
        at = np.minimum(np.searchsorted(held, rows), max(len(held) - 1, 0))
        if not len(held) or (held[at] != rows).any():
            return None
        firsts, places_of = _first_of_each(wanted.places[rows] * column.num_views + wanted.views[rows])
        at, chosen = at[firsts], rows[firsts]
        opened = self.open[column.content]
        counts = self.counts[opened.choice.part.feature]
        begun = time.perf_counter()
        given = self._select(opened.choice.part, batch, at, chosen)
        computed = self._run(opened.choice.part, given).to(opened.store.layout.dtype)
        sound = inputs.sound[column.content][at] & column.is_storable[wanted.places[chosen]]
        if sound.any():
            self._store(opened, column, wanted, chosen[sound], computed[torch.from_numpy(sound)])
        counts.seconds += time.perf_counter() - begun
        counts.computed += len(firsts)
        return computed.to(opened.dtype)[torch.from_numpy(places_of)]

    def _select(
        self, part: FeaturePart, batch: Mapping[str, Any], at: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """The inputs of the rows `chosen`, which are `at` these places among those that the batch holds."""
        device, kept = self.model.device, batch[PART_INPUTS].kept
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
        model = self.model
        assert isinstance(model, HasFeatureParts)
        with self.autocast():
            return model.compute_features(part, **given)

    def _store(
        self,
        opened: OpenPart,
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

    def _make_anew(self, table: CachedTable, inputs: PartInputs) -> dict[str, Any]:
        """The batch of the same samples, with the inputs of all of them."""
        keys = [SampleKey(*key) for key in inputs.keys.tolist()]
        return table.collator(AskedRows(table.dataset, table.features, keys, inputs.stage, all_absent=True))


def _first_of_each(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each value is for the first time, in order, and for each value the number of its first among these."""
    _, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(firsts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return firsts[order], rank[inverse]
