"""Which samples of a data set have stored features, and batches that read of the others alone what they need.

The training process keeps, in memory that it shares with its workers, where each sample's features are stored. A
worker decodes and tokenises only what has none. It can be behind the training process, which therefore looks again;
all that matters is that a batch says which of its samples it holds inputs of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mmhf.conventions import Modality
from mmhf.data.digests import Digests
from mmhf.data.samplers import SampleKey, derive_seed

PART_INPUTS = "part_inputs"
"""Key of a batch that some features may take the place of inputs in; its value is a `PartInputs`."""

OFF, PLAIN = 0, -1
"""Modes of a `FeatureColumn`: no features are used, or those of samples as they are; K > 0: of K changed views."""

STORED_IMAGE: dict[str, Any] = {"path": "its features are stored", "bytes": None}
"""Stands for the image of a row that need not be looked at."""

_VIEW = 0x766965
"""Sets the choice of views apart from other random choices."""
_VIEW_STEP = 0x9E3779B97F4A7C15

Row = dict[str, Any]
"""What of a sample features are made of."""


@dataclass
class FeatureColumn:
    """One kind of features of all samples of a data set.

    Attributes:
        content (`"image" | "text"`): What of a sample they are made of.
        digests (`Digests`): (N,) what each image, or text, of the data set contains.
        num_views (`int`): Changed views of each image that there may be.
        seed (`int`): What the views are drawn from.
        is_storable (`NDArray`): (N,) False for an image whose content could not be read.
        positions (`Tensor`): (N, num_views) int64 in shared memory, where features are stored; -1 where they are not.
        mode (`Tensor`): (1,) int64 in shared memory, `OFF`, `PLAIN` or the number of views that are used now.
    """

    content: Modality
    digests: Digests
    num_views: int = 1
    seed: int = 0
    is_storable: NDArray[np.bool_] = field(init=False)
    positions: torch.Tensor = field(init=False)
    mode: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.is_storable = self.digests != np.zeros((), dtype=self.digests.dtype)
        shape = (len(self.digests), self.num_views)
        self.positions = torch.full(shape, -1, dtype=torch.int64).share_memory_()
        self.mode = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def is_active(self) -> bool:
        """Whether stored features are used now."""
        return int(self.mode) != OFF

    def views_of(self, keys: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
        """Which view of its image each sample is; all 0 where images do not change."""
        if mode <= 1:
            return np.zeros(len(keys), dtype=np.int64)
        return np.array([derive_seed(_VIEW, self.seed, *key) % mode for key in keys.tolist()], dtype=np.int64)

    def view_seed(self, place: int, view: int) -> int:
        """Seed of the random changes of one view: by the image's content, so that other data sets find it, too."""
        content = int.from_bytes(self.digests[place].tobytes()[:8], "little") >> 1
        return derive_seed(_VIEW, self.seed, content, view)

    def stored_digests(self, places: NDArray[np.int64], views: NDArray[np.int64], salt: int) -> Digests:
        """What the features of some samples are stored under.

        Args:
            places, views (`NDArray`): (M,) which images or texts, and which view of each.
            salt (`int`): Stands for the random changes that views are drawn from.
        """
        digests = self.digests[places]
        return digests if int(self.mode) == PLAIN else _view_digests(digests, views, salt)

    def find(self, places: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the features of some samples are stored; -1 where they are not."""
        if self.num_views == 1:
            return self.positions.numpy()[places, 0]
        return self.positions.numpy()[places, views]


def _view_digests(digests: Digests, views: NDArray[np.int64], salt: int) -> Digests:
    steps = (views + 1).astype(np.uint64) * np.uint64(_VIEW_STEP) + np.uint64(salt)
    halves = np.frombuffer(np.ascontiguousarray(digests).tobytes(), dtype="<u8").reshape(-1, 2) + steps[:, None]
    return np.frombuffer(halves.tobytes(), dtype=digests.dtype)


@dataclass
class PartInputs:
    """Which samples of a batch it holds inputs of, for what features of its data set are made of: images, texts.

    Attributes:
        dataset (`int`): Number of the data set.
        keys (`NDArray`): (B, 3) index, epoch and draw of each sample.
        stage (`int`): Stage of training that the batch was made for.
        modes (`dict[str, int]`): `image`, `text` → mode in which its inputs were made.
        rows (`dict[str, NDArray]`): `image`, `text` → (M,) rows of the batch that it holds inputs of, in order.
        sound (`dict[str, NDArray]`): `image`, `text` → (M,) whether these inputs are the sample's own, and not a white
            image or an empty text in their place.
        kept (`tuple[str, ...]`): Inputs that a loss needs, too: they are there for all rows, and stay.
    """

    dataset: int
    keys: NDArray[np.int64]
    stage: int
    modes: dict[str, int]
    rows: dict[str, NDArray[np.int64]]
    sound: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()


class CachedDataset(Protocol):
    """What is asked of a data set whose samples may have features."""

    def read_rows(self, keys: Sequence[SampleKey]) -> list[Row]:
        """Rows as a collator takes them."""
        ...

    def places(self, content: Modality, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the data set's images, or texts, each sample has."""
        ...

    def values(self, name: str, keys: NDArray[np.int64]) -> Any:
        """One value a sample, such as its label, without reading its image; None where samples have no such value."""
        ...


@dataclass
class DatasetFeatures:
    """The features of a data set's samples, by what they are made of: `image`, `text`."""

    number: int
    columns: dict[str, FeatureColumn]


class AskedRows:
    """The rows of a batch, of which a collator reads those alone whose features are absent.

    Args:
        dataset (`CachedDataset`): Where they are.
        features (`DatasetFeatures`): What is stored.
        keys (`Sequence[SampleKey]`): Which were asked for.
        stage (`int`): For which stage of training.
        all_absent (`bool`, defaults to `False`): Read everything, whatever is stored.
    """

    def __init__(
        self,
        dataset: CachedDataset,
        features: DatasetFeatures,
        keys: Sequence[SampleKey],
        stage: int,
        *,
        all_absent: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sample_keys = keys
        self.keys = np.array(keys, dtype=np.int64).reshape(-1, 3)
        self._features = features
        modes = {name: int(column.mode) for name, column in features.columns.items()}
        self.inputs = PartInputs(features.number, self.keys, stage, modes, {})
        everything = np.arange(len(keys))
        for name, column in features.columns.items():
            rows = everything
            if modes[name] != OFF and not all_absent:
                places = dataset.places(column.content, self.keys)
                rows = np.flatnonzero(column.find(places, column.views_of(self.keys, modes[name])) < 0)
            self.inputs.rows[name] = rows

    def __len__(self) -> int:
        return len(self.sample_keys)

    @property
    def stage(self) -> int:
        """Stage of training that they are read for."""
        return self.inputs.stage

    def rows_without(self, content: Modality) -> NDArray[np.int64]:
        """(M,) rows whose image, or text, is to be looked at."""
        return self.inputs.rows.get(content, np.arange(len(self)))

    def read(self, wanted: NDArray[np.int64]) -> dict[int, Row]:
        """Read some rows: number in the batch → row, with `STORED_IMAGE` in it where that will do."""
        if not len(wanted):
            return {}
        rows = self.dataset.read_rows([self.sample_keys[at] for at in wanted])
        found = dict(zip(wanted.tolist(), rows, strict=True))
        needed = set(self.rows_without("image").tolist())
        for at, row in found.items():
            row["stage"] = self.stage
            if at not in needed:
                row["image"] = STORED_IMAGE
        self._choose_views(found)
        return found

    def values(self, name: str) -> Any:
        """One value a row, such as its label; None where rows have none."""
        return self.dataset.values(name, self.keys)

    def set_sound(self, content: Modality, sound: Sequence[bool]) -> None:
        """Say for which of `rows_without(content)` the batch holds the sample's own image, or text."""
        if content in self.inputs.rows:
            self.inputs.sound[content] = np.array(sound, dtype=bool)

    def _choose_views(self, rows: dict[int, Row]) -> None:
        column = self._features.columns.get("image")
        mode = self.inputs.modes.get("image", OFF)
        if column is None or mode <= 0:
            return
        numbers = list(rows)
        places = self.dataset.places("image", self.keys[numbers]).tolist()
        views = column.views_of(self.keys[numbers], mode).tolist()
        for number, place, view in zip(numbers, places, views, strict=True):
            rows[number]["view_seed"] = column.view_seed(place, view)
