"""Computes the features that a store lacks, in one pass over distinct images, texts or rows.

A feature has the same bits whatever else is computed with it. Batches have one size, and are filled up; texts of one
length go together, so that none is padded; and it is proven on the first batch of each shape that the place of a row
in it makes no difference. Where it does, rows are computed one by one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mmhf.conventions import Content
from mmhf.data.collators import ImageCollator, Picture
from mmhf.data.datasets import Row, RowDataset
from mmhf.data.digests import NO_IMAGE_DIGEST, Digests
from mmhf.data.images import BadImageError
from mmhf.data.samplers import SampleKey
from mmhf.errors import InputError
from mmhf.features.boundaries import in_eval_mode
from mmhf.features.column import FeatureColumn
from mmhf.features.parts import FeaturePart
from mmhf.features.store import FeatureStore, make_room
from mmhf.parallel import failing_together, gather, rank, world_size

logger = logging.getLogger(__name__)

_BATCH_SIZES = {"cpu": 8}  # larger ones gain nothing there, and lose the CPU's caches
_BATCH_SIZE_ELSEWHERE = 128
_TEXTS_AT_ONCE = 1024
_MOST_BYTES_IN_MEMORY = 1 << 30


@dataclass(frozen=True)
class Source:
    """A data set whose features are wanted, and the collator of its batches."""

    dataset: RowDataset
    collator: ImageCollator
    is_training: bool


@dataclass(frozen=True)
class Lacking:
    """Distinct images, texts or rows whose features are to be computed.

    Attributes:
        digests (`Digests`): (M,) what their features are stored under.
        sources, places, views (`NDArray`): (M,) which source has each, where (-1: a missing image), and which
            view it is.
        columns (`Sequence[FeatureColumn]`): One a source.
    """

    digests: Digests
    sources: NDArray[np.int64]
    places: NDArray[np.int64]
    views: NDArray[np.int64]
    columns: Sequence[FeatureColumn]

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def content(self) -> Content:
        """What they are."""
        return self.columns[0].content

    @classmethod
    def of_no_image(cls, columns: Sequence[FeatureColumn]) -> Lacking:
        """The white image that stands for those that are missing or broken."""
        first = np.zeros(1, dtype=np.int64)
        return cls(NO_IMAGE_DIGEST[None], first, first - 1, first, columns)


@dataclass
class Filled:
    """What a pass did, on all processes together.

    Attributes:
        num_rows (`int`): Features that were computed.
        seconds (`float`): How long it took.
        faults (`dict[bytes, str]`): Digest of each image that cannot be decoded, and why.
    """

    num_rows: int = 0
    seconds: float = 0.0
    faults: dict[bytes, str] = field(default_factory=dict)


def gathered_digests(dataset: RowDataset, content: Content) -> Digests:
    """(N,) digests of a data set's images, texts or rows, a share of which each process makes."""
    shards = gather(dataset.digests(content, shard=rank(), num_shards=world_size()))
    digests = np.empty(sum(map(len, shards)), dtype=shards[0].dtype)
    for number, shard in enumerate(shards):
        digests[number :: len(shards)] = shard
    return digests


def make_room_for(num_rows: int, store: FeatureStore, *, max_bytes: int | None) -> None:
    """Make room for features that will be stored, before they are computed; asked by all processes.

    Args:
        num_rows (`int`): How many there are.
        store ([`FeatureStore`]): Where they go.
        max_bytes (`int`, *optional*): As of `make_room`.

    Raises:
        InputError: There is not enough.
    """
    with failing_together():
        if num_rows and store.is_writable and rank() == 0:
            make_room(store.folder.parent, num_rows * store.layout.row_bytes, max_bytes=max_bytes, keep=store.folder)


def find_lacking(columns: Sequence[FeatureColumn]) -> Lacking:
    """What the store of some columns lacks; damaged features, which are dropped, are among it."""
    store = columns[0].store
    digests = [column.stored_digests() for column in columns]
    sizes = [len(each) for each in digests]
    numbers = np.concatenate([np.arange(size) for size in sizes])
    sources = np.repeat(np.arange(len(columns)), sizes)
    num_views = np.array([max(column.num_views, 1) for column in columns])[sources]
    wanted = np.concatenate(digests)
    _, firsts = np.unique(wanted.view("S16"), return_index=True)
    firsts.sort()
    positions = store.find(wanted[firsts])
    lacks, present = positions < 0, np.flatnonzero(positions >= 0)
    own = present[rank() :: world_size()]
    damaged = wanted[firsts[own[store.damaged(positions[own])]]]
    if world_size() > 1:  # all go by what the first process lacks and by what any finds damaged
        agreed = [lacks]
        broadcast_object_list(agreed)
        lacks, damaged = agreed[0], np.concatenate(gather(damaged))
    if len(damaged):
        logger.warning("%s: %d stored features are damaged; they are computed again", store.folder, len(damaged))
        store.drop(damaged)
        lacks = lacks | np.isin(wanted[firsts].view("S16"), damaged.view("S16"))
    chosen = firsts[lacks]
    places, views = np.divmod(numbers[chosen], num_views[chosen])
    return Lacking(wanted[chosen], sources[chosen], places, views, columns)


@dataclass
class Filler:
    """Computes features and stores them.

    Args:
        model (`torch.nn.Module`): Whose parts they are of; it has a `device`, and `compute_features` as of
            `HasFeatureParts`.
        autocast (`Callable`): Context of the model's passes.
        num_workers (`int`): Processes that decode and tokenise.
        with_bar (`bool`): Show how far it is.
    """

    model: Any
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    num_workers: int = 0
    with_bar: bool = True

    def fill(
        self, part: FeaturePart, store: FeatureStore, lacking: Lacking, sources: Sequence[Source], *, stage: int = 0
    ) -> Filled:
        """Compute what is lacking; each process takes its share of the batches.

        A batch is stored before the next one is computed. What cannot be stored is kept in memory, if it is little.
        The columns are told of images that cannot be decoded, and then the store has the features of a white one.

        Args:
            part ([`FeaturePart`]): What computes them.
            store ([`FeatureStore`]): Where they go.
            lacking ([`Lacking`]): Of what.
            sources (`Sequence[Source]`): The data sets, one a column of `lacking`.
            stage (`int`, defaults to 0): Stage of training whose random changes make views.

        Raises:
            InputError: Too much cannot be stored.
        """
        filled = self._fill(part, store, lacking, sources, stage)
        if filled.faults:
            for column in lacking.columns:
                column.add_faults(filled.faults)
            blank = Lacking.of_no_image(lacking.columns)
            if store.find(blank.digests)[0] < 0:
                filled.num_rows += self._fill(part, store, blank, sources, stage).num_rows
        return filled

    def _fill(
        self, part: FeaturePart, store: FeatureStore, lacking: Lacking, sources: Sequence[Source], stage: int
    ) -> Filled:
        begun = time.perf_counter()
        size = _BATCH_SIZES.get(self.model.device.type, _BATCH_SIZE_ELSEWHERE)
        batches = _Batches(lacking, sources, size, stage)
        faults: dict[bytes, str] = {}
        # A generator of its own: base seeds are drawn from the global one otherwise.
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(rank(), len(batches), world_size()),
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )
        compute, kept = _Computed(self.model, part, self.autocast), _Kept(store)
        bar = tqdm(
            total=len(lacking), unit=lacking.content, desc=part.feature.replace("_", " "), leave=False,
            disable=not (self.with_bar and rank() == 0 and len(lacking)),
        )  # fmt: skip
        with bar, in_eval_mode(self.model):
            for members, inputs, broken in loader:
                sound = np.array([member not in broken for member in members.tolist()], dtype=bool)
                if sound.any():
                    features = compute(inputs, len(members))
                    kept.add(lacking.digests[members[sound]], features[torch.from_numpy(sound)])
                faults.update({lacking.digests[member].tobytes(): reason for member, reason in broken.items()})
                bar.update(min(len(members) * world_size(), len(lacking) - bar.n))
        kept.share()
        store.refresh()
        faults = {digest: why for share in gather(faults) for digest, why in share.items()}
        num_rows = len(lacking) - len(faults)
        return Filled(num_rows, time.perf_counter() - begun, faults)


class _Batches(Dataset[Any]):
    """Lacking images, texts or rows as the inputs of batches of one size."""

    def __init__(self, lacking: Lacking, sources: Sequence[Source], batch_size: int, stage: int) -> None:
        self.stage = stage
        self.lacking = lacking
        self.sources = sources
        self.batch_size = batch_size
        every = np.arange(len(lacking))
        groups = [every] if lacking.content == "image" else self._by_length(every)
        self._batches = [
            group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[NDArray[np.int64], dict[str, Tensor], dict[int, str]]:
        """Which are in a batch, the inputs, filled up with copies of the first, and which images are broken."""
        members = self._batches[number]
        broken: dict[int, str] = {}
        collator, filling = self.sources[0].collator, self.batch_size - len(members)
        if self.lacking.content == "text":
            texts = self._texts(members)
            return members, _cropped(collator.encode_texts(texts + texts[:1] * filling)), broken
        if self.lacking.content == "row":
            rows = self._rows(members)
            return members, collator(rows + rows[:1] * filling), broken
        pictures = self._pictures(members, broken)
        return members, collator.encode_images(pictures + pictures[:1] * filling), broken

    def _by_length(self, every: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        lengths = np.zeros(len(every), dtype=np.int64)
        for start in range(0, len(every), _TEXTS_AT_ONCE):
            some = every[start : start + _TEXTS_AT_ONCE]
            mask = self.sources[0].collator.encode_texts(self._texts(some)).get("attention_mask")
            lengths[some] = 0 if mask is None else mask.sum(dim=1).numpy()
        return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]

    def _rows(self, members: NDArray[np.int64]) -> list[Row]:
        rows: list[Row] = []
        for member in members.tolist():
            dataset = self.sources[self.lacking.sources[member]].dataset
            rows += dataset.read_rows([SampleKey(int(self.lacking.places[member]), 0)])
        return rows

    def _texts(self, members: NDArray[np.int64]) -> list[str]:
        found = np.empty(len(members), dtype=object)
        for number, source in enumerate(self.sources):
            here = self.lacking.sources[members] == number
            if here.any():
                found[here] = source.dataset.texts(self.lacking.places[members[here]])
        return [text or "" for text in found]

    def _pictures(self, members: NDArray[np.int64], broken: dict[int, str]) -> list[Picture]:
        pictures: list[Picture] = []
        for member in members.tolist():
            place, source = int(self.lacking.places[member]), self.sources[self.lacking.sources[member]]
            if place < 0:
                pictures.append(self.sources[0].collator.blank)
                continue
            column, view, seed = self.lacking.columns[self.lacking.sources[member]], None, 0
            if column.num_views:
                view = int(self.lacking.views[member])
                seed = column.view_seed(place, view)
            image = source.dataset.image(place)
            try:
                pictures.append(source.collator.picture(image, self.stage, view=view, view_seed=seed))
            except BadImageError as error:
                broken[member] = str(error)
                pictures.append(source.collator.blank)
        return pictures


@dataclass
class _Computed:
    """The features of a batch, by passes of one shape in which no row's place counts."""

    model: Any
    part: FeaturePart
    autocast: Callable[[], AbstractContextManager[Any]]
    _is_placeless: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def __call__(self, inputs: Mapping[str, Tensor], num_rows: int) -> Tensor:
        given = {name: inputs[name].to(self.model.device) for name in self.part.inputs if name in inputs}
        features = self._run(given)
        shape = tuple(size for value in given.values() for size in value.shape)
        if shape not in self._is_placeless:
            moved = self._run({name: value.roll(1, dims=0) for name, value in given.items()})
            self._is_placeless[shape] = torch.equal(moved, features.roll(1, dims=0))
        if not self._is_placeless[shape]:
            rows = range(num_rows)
            features = torch.cat([self._run({n: value[row : row + 1] for n, value in given.items()}) for row in rows])
        return features[:num_rows]

    @torch.no_grad()
    def _run(self, given: Mapping[str, Tensor]) -> Tensor:
        with self.autocast():
            features: Tensor = self.model.compute_features(self.part, **given)
            return features


@dataclass
class _Kept:
    """Stores features, and keeps in memory what cannot be stored."""

    store: FeatureStore
    digests: list[Digests] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    error: InputError | None = None

    def add(self, digests: Digests, features: Tensor) -> None:
        if not len(digests) or self.error is not None:
            return
        if self.store.is_writable:
            try:
                self.store.append(digests, features)
                return
            except InputError as error:
                logger.warning("%s; they are kept in memory", error)
                self.store.is_writable = False
        self.digests.append(digests)
        self.features.append(features.to("cpu", self.store.layout.dtype))
        if sum(map(len, self.digests)) * self.store.layout.row_bytes > _MOST_BYTES_IN_MEMORY:
            self.error = InputError(
                f"{self.store.folder}: cannot be written, and the features are too many for memory"
            )

    def share(self) -> None:
        """Let all processes have what any one keeps in memory.

        Raises:
            InputError: One of them keeps too much.
        """
        own = (self.error, self.digests, [] if self.error else self.features)
        for error, digests, features in gather(own):
            if error is not None:
                raise error
            if digests:
                self.store.keep(np.concatenate(digests), torch.cat(features))


def _cropped(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Texts of one length without what a tokenizer fills them up with."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return inputs
    used = mask.any(dim=0)
    return {name: value[:, used] if value.shape == mask.shape else value for name, value in inputs.items()}


def _as_it_is(value: Any) -> Any:
    return value
