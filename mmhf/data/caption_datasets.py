"""Images with several captions each, as samples of one image and one caption."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mmhf.conventions import Content, Modality
from mmhf.data.bad_examples import BadExample
from mmhf.data.datasets import Row, RowDataset
from mmhf.data.digests import Digests, digest_texts
from mmhf.data.samplers import SampleKey, derive_seed

_SALT = 0x636170
"""Sets the seeds here apart from those of the images' changes."""
_ROWS_AT_ONCE = 1000


class CaptionDataset(RowDataset):
    """Images with one of their captions each.

    Rows are those of the table, with `caption` and `image_index`, the position of the image in the table, beside the
    index and epoch that the row was asked for with.

    Args:
        table (`datasets.Dataset`):
            Rows with `captions`, as `load_data` gives them.
        captions (`str`, defaults to `"sample"`):
            `"sample"`: a row is an image with one caption, another one each epoch until all have been seen; `"all"`: a
            row is a caption with its image, in the order of the table.
        seed (`int`, defaults to 0):
            Seed of the choice.
        weights (`ArrayLike`, *optional*):
            One an image: images are drawn with replacement by them, or captions, which share their image's; absent =
            every sample once an epoch.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        captions: Literal["sample", "all"] = "sample",
        *,
        seed: int = 0,
        weights: ArrayLike | None = None,
    ) -> None:
        super().__init__(table)
        self.captions = captions
        self.seed = seed
        counts = np.array([len(texts) for texts in table["captions"][:]], dtype=np.int64)
        self._first_item = np.concatenate([[0], np.cumsum(counts)])
        if weights is not None:
            by_image = np.asarray(weights, dtype=np.float64)
            self.weights = by_image if captions == "sample" else np.repeat(by_image / counts, counts)

    def __len__(self) -> int:
        return len(self.table) if self.captions == "sample" else int(self._first_item[-1])

    def _read(self, keys: Sequence[SampleKey]) -> list[Row]:
        images, numbers = self._locate(keys)
        rows = self._read_table(images.tolist())
        for row, image, number in zip(rows, images.tolist(), numbers, strict=True):
            row["caption"], row["image_index"] = row["captions"][number], image
        return rows

    def places(self, content: Content, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `RowDataset`; texts are all captions, in the order of the table."""
        if content == "image":
            return self._images_of(keys[:, 0])
        images, numbers = self._locate([SampleKey(*key) for key in keys.tolist()])
        return self._first_item[images] + np.array(numbers, dtype=np.int64)

    def num_places(self, content: Modality) -> int:
        """See `RowDataset`."""
        return len(self.table) if content == "image" else int(self._first_item[-1])

    def caption_owners(self) -> NDArray[np.int64]:
        """(T,) row of the table of each of the T captions, in the order of the table."""
        return np.repeat(np.arange(len(self.table)), np.diff(self._first_item))

    def digests(self, content: Content, *, shard: int = 0, num_shards: int = 1) -> Digests:
        """See `RowDataset`."""
        if content == "text":
            return digest_texts(self._texts[shard::num_shards].to_pylist())
        return super().digests(content, shard=shard, num_shards=num_shards)

    @functools.cached_property
    def _texts(self) -> pa.Array:
        """All captions, in the order of the table."""
        return self._light.column("captions").combine_chunks().flatten()

    def _images_of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the table that each sample's image is in."""
        items = items % len(self)  # a negative index counts from the end
        return items if self.captions == "sample" else np.searchsorted(self._first_item, items, side="right") - 1

    def _locate(self, keys: Sequence[SampleKey]) -> tuple[NDArray[np.int64], list[int]]:
        """Row of the table that each sample's image is in, and the number of its caption there."""
        items = np.array([key.index for key in keys], dtype=np.int64)
        images = self._images_of(items)
        if self.captions == "all":
            return images, (items % len(self) - self._first_item[images]).tolist()
        counts = self._first_item[images + 1] - self._first_item[images]
        return images, [
            caption_number(int(image), key.epoch + key.draw, int(count), seed=self.seed)
            for image, key, count in zip(images, keys, counts, strict=True)
        ]


def caption_number(image: int, epoch: int, count: int, *, seed: int = 0) -> int:
    """Draw one of an image's captions; in `count` epochs from epoch 0, each is drawn once.

    Args:
        image, epoch (`int`):
            What the choice depends on, beside the seed.
        count (`int`):
            Captions of the image.
        seed (`int`, defaults to 0):
            Seed.

    Returns:
        `int`: its number, from 0.
    """
    turn, place = divmod(epoch, count)
    return sorted(range(count), key=lambda number: derive_seed(_SALT, seed, image, turn, number))[place]


def find_long_captions(
    table: datasets.Dataset, count_tokens: Callable[[list[str]], Sequence[int]], max_length: int, *, split: str
) -> list[BadExample]:
    """Find captions that a processor will cut.

    Args:
        table (`datasets.Dataset`):
            Rows with `captions`.
        count_tokens (`Callable`):
            Texts → the number of tokens of each, with all that the processor adds.
        max_length (`int`):
            Tokens that are kept.
        split (`str`):
            For the list.

    Returns:
        `list[BadExample]`: one for each such caption.
    """
    found = []
    columns = table.select_columns(["row", "id", "captions"])
    for start in range(0, len(columns), _ROWS_AT_ONCE):
        rows = columns[start : start + _ROWS_AT_ONCE]
        lengths = iter(count_tokens([text for texts in rows["captions"] for text in texts]))
        for row, name, texts in zip(rows["row"], rows["id"], rows["captions"], strict=True):
            for number, length in zip(range(1, len(texts) + 1), lengths, strict=False):
                if length > max_length:
                    reason = f"caption {number} has {length} tokens; it is cut at the end to {max_length}"
                    found.append(BadExample(split, row, name, reason))
    return found
