"""Ranks of the right captions and images among all, without ever holding the whole matrix of similarities."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 27
_MAX_BLOCK_ROWS = 192
"""Below 256: a block's hits of one caption are counted in a byte."""


@dataclass(frozen=True)
class RetrievalRanks:
    """Where each right answer stands, 1 being the first.

    Equal similarities stand in the order of their rows. `*_hits` decide ties as CLIP_benchmark does, that is as
    `torch.topk` happens to order them.

    Attributes:
        caption_ranks (`NDArray[np.int64]` of shape `(T,)`): of each caption, among all, for its image.
        image_ranks (`NDArray[np.int64]` of shape `(T,)`): of its image, among all, for each caption.
        image_hits (`dict[int, NDArray[np.bool_]]`): k -> `(I,)`: one of the image's captions is among the first k.
        caption_hits (`dict[int, NDArray[np.bool_]]`): k -> `(T,)`: the caption's image is among the first k.
    """

    caption_ranks: NDArray[np.int64]
    image_ranks: NDArray[np.int64]
    image_hits: dict[int, NDArray[np.bool_]]
    caption_hits: dict[int, NDArray[np.bool_]]


def retrieval_ranks(
    images: torch.Tensor, texts: torch.Tensor, image_index: NDArray[np.int64], ks: Sequence[int]
) -> RetrievalRanks:
    """Rank all captions for each image and all images for each caption by one pass over their products.

    Memory beyond the inputs is one block of similarities, at most 128 MiB or 8 rows.

    Args:
        images (`torch.Tensor` of shape `(I, D)`): Float32 on the CPU; the similarity is the dot product.
        texts (`torch.Tensor` of shape `(T, D)`): The same.
        image_index (`NDArray[np.int64]` of shape `(T,)`): The image of each caption.
        ks (`Sequence[int]`): Where hits are counted; more than there are candidates means all.
    """
    counter = _RankCounter(images, texts, image_index, ks)
    for start in range(0, len(images), counter.block_rows):
        counter.count_block(start)
    counter.settle_ties()
    return counter.ranks()


class _RankCounter:
    """Counts, block of images by block of images, what stands before each right answer.

    A block has whole rows, so that the ranks of captions are ready with it. The ranks of images need the similarity
    of each right pair before all blocks have been seen: it is computed beforehand with a product of its own. Captions
    with a tie, or whose similarity came out otherwise in the block (rounding of another kernel), get their row of
    similarities computed once more, whole.
    """

    def __init__(
        self, images: torch.Tensor, texts: torch.Tensor, image_index: NDArray[np.int64], ks: Sequence[int]
    ) -> None:
        self.images, self.texts, self.image_index = images, texts, image_index
        self.block_rows = int(np.clip(_BLOCK_BYTES // (4 * len(texts)), 8, _MAX_BLOCK_ROWS))
        self._block = torch.empty(min(self.block_rows, len(images)), len(texts))
        self._by_image = np.argsort(image_index, kind="stable")
        self._offsets = np.searchsorted(image_index[self._by_image], np.arange(len(images) + 1))
        self._expected = self._right_similarities()
        self._greater = np.zeros(len(texts), np.int64)
        self._equal = np.zeros(len(texts), np.int64)
        self._is_rounded_otherwise = np.zeros(len(texts), bool)
        self.caption_ranks = np.zeros(len(texts), np.int64)
        self.image_hits = {k: np.zeros(len(images), bool) for k in ks}
        self.image_ranks = np.zeros(len(texts), np.int64)
        self.caption_hits = {k: np.zeros(len(texts), bool) for k in ks}

    def _captions(self, start: int, end: int) -> NDArray[np.int64]:
        """Captions of the images from `start` to `end`."""
        return self._by_image[self._offsets[start] : self._offsets[end]]

    def _right_similarities(self) -> NDArray[np.float32]:
        similarities = np.empty(len(self.texts), np.float32)
        for start in range(0, len(self.images), self.block_rows):
            end = min(start + self.block_rows, len(self.images))
            captions = self._captions(start, end)
            product = torch.mm(self.images[start:end], self.texts[torch.from_numpy(captions)].T).numpy()
            similarities[captions] = product[self.image_index[captions] - start, np.arange(len(captions))]
        return similarities

    def count_block(self, start: int) -> None:
        end = min(start + self.block_rows, len(self.images))
        block = torch.mm(self.images[start:end], self.texts.T, out=self._block[: end - start]).numpy()
        captions = self._captions(start, end)
        found = block[self.image_index[captions] - start, captions]
        self._is_rounded_otherwise[captions] = found != self._expected[captions]
        # NumPy lets go of the interpreter while it compares, so that threads share the rows.
        parts = np.array_split(np.arange(start, end), min(torch.get_num_threads(), end - start))
        with ThreadPoolExecutor(len(parts)) as pool:
            for greater, equal in pool.map(lambda rows: self._count_rows(block, rows, start), parts):
                self._greater += greater
                self._equal += equal

    def _count_rows(
        self, block: NDArray[np.float32], rows: NDArray[np.int64], start: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Rank the captions for each image; count, for each caption, the images above and level with its own."""
        greater, equal = np.zeros(len(self.texts), np.uint8), np.zeros(len(self.texts), np.uint8)
        mask = np.empty(len(self.texts), bool)
        as_numbers = mask.view(np.uint8)
        for image in rows:
            row = block[image - start]
            np.greater(row, self._expected, out=mask)
            greater += as_numbers
            np.equal(row, self._expected, out=mask)
            equal += as_numbers
            captions = self._captions(image, image + 1)
            if len(captions):
                self._rank_captions(row, int(image), captions, mask)
        return greater, equal

    def _rank_captions(
        self, row: NDArray[np.float32], image: int, captions: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> None:
        right = row[captions]
        np.greater_equal(row, right.min(), out=mask)
        contenders = row[np.flatnonzero(mask)]  # few, where the right captions stand in front
        contenders.sort()
        behind = contenders.searchsorted(right, side="right")
        ranks = len(contenders) - behind + 1
        is_tied = (behind - contenders.searchsorted(right)) > 1
        for at in np.flatnonzero(is_tied):
            ranks[at] = _rank(row, int(captions[at]), mask)
        self.caption_ranks[captions] = ranks
        first = ranks.min()
        is_first_tied = is_tied[right.argmax()]
        for k, hits in self.image_hits.items():
            hits[image] = np.isin(captions, _top(row, k)).any() if is_first_tied else first <= k

    def settle_ties(self) -> None:
        """Turn counts into ranks of images, ranking anew where a count cannot tell."""
        self.image_ranks[:] = self._greater + 1
        for k, hits in self.caption_hits.items():
            hits[:] = self.image_ranks <= k
        unsettled = np.flatnonzero((self._equal != 1) | self._is_rounded_otherwise)
        size = int(max(_BLOCK_BYTES // (4 * len(self.images)), 8))
        for start in range(0, len(unsettled), size):
            captions = unsettled[start : start + size]
            rows = torch.mm(self.texts[torch.from_numpy(captions)], self.images.T).numpy()
            mask = np.empty(len(self.images), bool)
            for caption, row in zip(captions, rows, strict=True):
                image = int(self.image_index[caption])
                self.image_ranks[caption] = _rank(row, image, mask)
                for k, hits in self.caption_hits.items():
                    hits[caption] = image in _top(row, k)

    def ranks(self) -> RetrievalRanks:
        return RetrievalRanks(self.caption_ranks, self.image_ranks, self.image_hits, self.caption_hits)


def _rank(row: NDArray[np.float32], at: int, mask: NDArray[np.bool_]) -> int:
    """Rank of one candidate among all; of equal ones the earlier stands before. `mask` is room to work in."""
    np.greater_equal(row[:at], row[at], out=mask[:at])
    np.greater(row[at:], row[at], out=mask[at : len(row)])
    return int(np.count_nonzero(mask[: len(row)])) + 1


def _top(row: NDArray[np.float32], k: int) -> NDArray[Any]:
    return torch.topk(torch.from_numpy(row), min(k, len(row))).indices.numpy()
