"""Rows with captions into batches of tensors, for captioners and dual encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmhf.conventions import IGNORED_IMAGE, IGNORED_LABEL, Processor
from mmhf.data.augment import Augmentation
from mmhf.data.collators import IMAGE_FEATURES, ImageCollator, Picture, RandomChanges, Sample
from mmhf.data.datasets import Row
from mmhf.data.table import extra_column


class CaptionCollator(ImageCollator):
    """Makes a batch of images with a caption each; the base of those of the two tasks that have captions.

    As [`ImageCollator`], with `processor(images=[PIL.Image], text=[str])`, which adds `input_ids` and `attention_mask`
    (B, T), cut and padded as the processor does. What a stream found on the way to a row is listed, too.
    """

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """See [`ImageCollator`]."""
        if self.bad_examples is not None:
            self.bad_examples.extend(fault for row in rows for fault in row.get("faults", ()))
        return super().__call__(rows)

    def encode_images(self, images: Sequence[Picture]) -> dict[str, Tensor]:
        """See [`ImageCollator`]."""
        return dict(self.processor(images=images))

    def _encode(self, samples: Sequence[Sample], features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The losses need all captions, also those whose features are stored.
        given: dict[str, Any] = {"text": [sample.text for sample in samples]}
        if IMAGE_FEATURES.isdisjoint(features):
            given["images"] = [sample.image for sample in samples]
        if samples[0].columns is not None:
            given["columns"] = [sample.columns for sample in samples]
        return dict(self.processor(**given))


class CaptioningCollator(CaptionCollator):
    """Makes a batch for a captioner.

    Adds `labels` (B, T): the `input_ids`, with -100 where they are padding and throughout a row whose image turned out
    to be broken under `on_bad_image: skip`. Whatever ends a caption is learnt if the processor puts it there. Where
    the prompt names columns, also each row's `prompt_ids` and `prompt_mask` (B, P), which are not learnt.

    Args:
        columns (`Sequence[str]`):
            The columns of the table that the processor is given for the prompt.
        tells_images (`bool`, defaults to False):
            Adds `image_index` (B,), the place of each row's image in the table.
    """

    def __init__(
        self, processor: Processor, *, columns: Sequence[str] = (), tells_images: bool = False, **options: Any
    ) -> None:
        super().__init__(processor, **options)
        self.tells_images = tells_images
        self.columns = {name: extra_column(name) for name in columns}

    def _sample(self, row: Row, augmentation: Augmentation | None) -> Sample:
        sample = super()._sample(row, augmentation)
        if not self.columns:
            return sample
        return sample._replace(columns={name: row[key] for name, key in self.columns.items()})

    def _add_targets(
        self, batch: dict[str, Tensor], rows: Sequence[Row], skipped: Tensor, changes: RandomChanges
    ) -> None:
        # By the mask and not by the padding token, which is that of the end of the text in many tokenizers.
        unlearnt = (batch["attention_mask"] == 0) | skipped[:, None]
        batch["labels"] = batch["input_ids"].masked_fill(unlearnt, IGNORED_LABEL)
        if self.tells_images:
            batch["image_index"] = _image_index(rows)


class ContrastiveCollator(CaptionCollator):
    """Makes a batch for a dual encoder.

    Adds `image_index` (B,): equal for captions of one image, and -1 in a row whose image turned out to be broken under
    `on_bad_image: skip`, which takes part in nothing.
    """

    def _add_targets(
        self, batch: dict[str, Tensor], rows: Sequence[Row], skipped: Tensor, changes: RandomChanges
    ) -> None:
        batch["image_index"] = _image_index(rows).masked_fill(skipped, IGNORED_IMAGE)


def _image_index(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([row["image_index"] for row in rows], dtype=torch.int64)
