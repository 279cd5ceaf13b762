"""A column of stored features beside the rows of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmhf.conventions import Content
from mmhf.data.datasets import STORED_IMAGE
from mmhf.data.digests import NO_IMAGE_DIGEST, Digests
from mmhf.data.samplers import SampleKey, derive_seed, sample_seed
from mmhf.data.table import NO_IMAGE
from mmhf.features.store import FeatureStore

_VIEW = 0x766965
"""Sets the choice of views apart from other random choices."""
_VIEW_STEP = 0x9E3779B97F4A7C15


@dataclass
class FeatureColumn:
    """The features of the images, texts or rows of a data set.

    Attributes:
        feature (`str`): Their name in a batch.
        content (`"image" | "text" | "row"`): What they are made of.
        store ([`FeatureStore`]): Where they are.
        dtype (`torch.dtype`): In which the model takes them.
        digests (`Digests`): (N,) what each image, text or row contains.
        num_views (`int`): Changed views of each image; 0 where images are as they are.
        seed (`int`): What the views are drawn from.
        view_of (`Callable[[int], int]`, *optional*): From a sample's seed to its view, where the views are all that
            there are; absent, each sample is given one of them.
        salt (`int`): Stands for the random changes, so that views of others are not taken for these.
        positions (`NDArray`): (N, views) places in the store.
        faults (`dict[int, str]`): Which images cannot be decoded, and why; a white image's features stand for them.
    """

    feature: str
    content: Content
    store: FeatureStore
    dtype: torch.dtype
    digests: Digests
    num_views: int = 0
    seed: int = 0
    salt: int = 0
    view_of: Callable[[int], int] | None = None
    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 1), dtype=np.int64))
    faults: dict[int, str] = field(default_factory=dict)

    def stored_digests(self) -> Digests:
        """(N * views,) what each view's features are stored under; a missing image has no views."""
        if not self.num_views:
            return self.digests
        halves = np.frombuffer(self.digests.tobytes(), dtype="<u8").reshape(-1, 1, 2)
        steps = np.arange(1, self.num_views + 1, dtype=np.uint64) * np.uint64(_VIEW_STEP) + np.uint64(self.salt)
        views = (halves + steps[None, :, None]).view(self.digests.dtype)[..., 0]
        stored: Digests = np.where((self.digests == NO_IMAGE_DIGEST)[:, None], NO_IMAGE_DIGEST, views).ravel()
        return stored

    def add_faults(self, faults: Mapping[bytes, str]) -> None:
        """Take in what images cannot be decoded: digest that an image, or a view of it, is stored under → why."""
        stored = self.stored_digests()
        broken = np.isin(stored.view("S16"), np.array(list(faults), dtype="S16"))
        for index in np.flatnonzero(broken).tolist():
            self.faults[index // max(self.num_views, 1)] = faults[stored[index].tobytes()]

    def bind(self) -> None:
        """Find all features in the store; those of broken images are a missing one's."""
        positions = self.store.find(self.stored_digests()).reshape(len(self.digests), -1)
        if self.faults:
            positions[list(self.faults)] = self.store.find(NO_IMAGE_DIGEST[None])[0]
        self.positions = positions

    def read(self, places: NDArray[np.int64], keys: NDArray[np.int64]) -> Tensor:
        """Features of some samples.

        Args:
            places (`NDArray`): (B,) which image, or text, each has.
            keys (`NDArray`): (B, 3) index, epoch and draw of each, which decide the view.
        """
        views: Any = 0
        if self.view_of is not None:
            views = [self.view_of(sample_seed(self.seed, SampleKey(*key))) for key in keys.tolist()]
        elif self.num_views > 1:
            views = [derive_seed(_VIEW, self.seed, *key) % self.num_views for key in keys.tolist()]
        return self.store.read(self.positions[places, views]).to(self.dtype)

    def view_seed(self, place: int, view: int) -> int:
        """Seed of the random changes of one view: by the image's content, so that other data sets find it, too."""
        content = int.from_bytes(self.digests[place].tobytes()[:8], "little") >> 1
        return derive_seed(_VIEW, self.seed, content, view)

    def stand_in(self, place: int) -> dict[str, Any]:
        """What a row has instead of its image."""
        if place in self.faults:
            return {"image": STORED_IMAGE, "broken": self.faults[place]}
        return {"image": NO_IMAGE if self.digests[place] == NO_IMAGE_DIGEST else STORED_IMAGE}
