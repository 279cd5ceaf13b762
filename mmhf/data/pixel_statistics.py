"""Mean and standard deviation of the training images, in one pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.conventions import Processor
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.modalities import names_no_image
from mmhf.errors import InputError

logger = logging.getLogger(__name__)

_BATCH = 256


def _zeros() -> NDArray[np.int64]:
    return np.zeros(3, dtype=np.int64)


@dataclass
class PixelSums:
    """Sums over pixels of 0 to 255, by channel: whole numbers, so that their order does not matter.

    Attributes:
        num_images (`int`): Images that could be read.
        num_pixels (`int`): Pixels of one channel.
        totals, squares (`NDArray` of shape `(3,)`): Sums of the values and of their squares.
    """

    num_images: int = 0
    num_pixels: int = 0
    totals: NDArray[np.int64] = field(default_factory=_zeros)
    squares: NDArray[np.int64] = field(default_factory=_zeros)

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(
            self.num_images + other.num_images,
            self.num_pixels + other.num_pixels,
            self.totals + other.totals,
            self.squares + other.squares,
        )

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation by channel, of values between 0 and 1.

        Raises:
            InputError: No image could be read, or a channel is the same everywhere.
        """
        if not self.num_images:
            raise InputError("data.mean_std: computed, but no training image can be read")
        mean = self.totals / self.num_pixels
        # The difference of two large whole numbers is taken before it is rounded.
        variance = [
            (int(squares) * self.num_pixels - int(total) ** 2) / self.num_pixels**2
            for total, squares in zip(self.totals, self.squares, strict=True)
        ]
        if min(variance) <= 0:
            raise InputError("data.mean_std: computed, but all training images have one and the same colour")
        return [float(value) for value in mean / 255], [float(np.sqrt(value)) / 255 for value in variance]


def sum_pixels(
    rows: datasets.Dataset | datasets.IterableDataset,
    image_processor: Processor,
    *,
    shard: int = 0,
    num_shards: int = 1,
) -> PixelSums:
    """Add up the pixels of images as a model sees them, resized and cropped but not normalised.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`): With the column `image`; images that are missing or
            cannot be decoded are passed over.
        image_processor (`Processor`): Resizes and crops.
        shard, num_shards (`int`): Take every `num_shards`-th row from row `shard` on; the sums of all shards add up.
    """

    def sums_of(image: dict[str, Any]) -> PixelSums:
        try:
            decoded = decode_image(image)
        except BadImageError:
            return PixelSums()
        given = image_processor(images=[decoded], do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels = given["pixel_values"][0].round().numpy().astype(np.int64).reshape(3, -1)
        return PixelSums(1, pixels.shape[1], pixels.sum(axis=1), np.square(pixels).sum(axis=1))

    images = _images_of(rows, shard, num_shards)
    total = PixelSums()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Batch by batch, since the pool would read a whole stream ahead.
        while batch := list(islice(images, _BATCH)):
            total = sum(pool.map(sums_of, batch), total)
    return total


def _images_of(rows: Iterable[Any], shard: int, num_shards: int) -> Iterator[dict[str, Any]]:
    if isinstance(rows, datasets.Dataset):
        table = rows.select_columns(["image"]).select(range(shard, len(rows), num_shards))
        # By batches: images behind URLs are fetched together.
        return (image for batch in table.iter(_BATCH) for image in batch["image"] if not names_no_image(image))
    rows = islice(rows, shard, None, num_shards)
    return (row["image"] for row in rows if not names_no_image(row["image"]))
