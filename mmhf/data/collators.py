"""Rows into batches of tensors: images are decoded, changed at random and processed here, in the workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mmhf.conventions import IGNORED_LABEL, TEACHER_ANSWERS, TEACHER_EMBEDS, Processor
from mmhf.data.augment import Augmentation, Flips
from mmhf.data.bad_examples import BadExample, BadExampleLog
from mmhf.data.datasets import STORED_IMAGE, Row
from mmhf.data.images import BadImageError
from mmhf.data.mixing import BatchMixer
from mmhf.data.modalities import ModalityMasking, names_no_image
from mmhf.data.pixels import Normalisation, PicturePreparer, decode_pixels
from mmhf.data.samplers import SampleKey, sample_seed
from mmhf.data.table import extra_column
from mmhf.errors import InputError

logger = logging.getLogger(__name__)

_BLANK_SIDE = 32
IMAGE_FEATURES = {"image_features", "image_hidden"}
_FEATURES = (*sorted(IMAGE_FEATURES), "text_features", TEACHER_ANSWERS, *TEACHER_EMBEDS)

Picture = Image.Image | Tensor
"""As the processor gets it: a PIL image, or uint8 pixels (3, H, W)."""


class RandomChanges(NamedTuple):
    """What happens to training images at random: to each alone, and to those of a batch together."""

    augmentation: Augmentation | None = None
    mixer: BatchMixer | None = None


class Sample(NamedTuple):
    """What the model sees of a row; a skipped row is one that it learns nothing from."""

    image: Picture | None
    text: str | None
    skipped: bool = False
    columns: Mapping[str, str | None] | None = None


def key_of(row: Row) -> SampleKey:
    """The key that a row was requested by."""
    return SampleKey(row["index"], row["epoch"], row["draw"])


class ImageCollator:
    """Makes a batch of rows with image and label.

    What a sample looks like depends on seed, epoch and row index alone, so neither the number of workers or processes
    nor a resumed run changes it; PyTorch's global random state stays as it was.

    Args:
        processor (`Processor`):
            `processor(images=[...], return_tensors="pt")` → tensors; a stock image processor, which gets uint8 pixels
            (3, H, W), or any other, which gets PIL images.
        augmentation ([`Augmentation`], *optional*):
            Random change of an image; none in evaluation.
        seed (`int`, defaults to 0):
            Seed of the augmentation.
        on_bad_image (`str`, defaults to `"skip"`):
            What to do with an image that turns out to be broken only when it is decoded: `"skip"` (a white image whose
            label becomes -100), `"blank"` (a white image that keeps its label) or `"raise"`.
        bad_examples (`BadExampleLog`, *optional*):
            Where broken images are listed.
        split (`str`, defaults to `"train"`):
            The split's name in that list.
        mixer (`BatchMixer`, *optional*):
            Mixes the images of a batch and their labels, which become probabilities.
        stage_changes (`Mapping[int, RandomChanges]`, *optional*):
            Index of a stage of training → what takes the place of `augmentation` and `mixer` in it.

    Attributes:
        blank (`PIL.Image.Image` or `Tensor`):
            The white picture that stands for one that cannot be used.
        least_side (`int`, *optional*):
            Large JPEG files are decoded no larger than their sides need to be, see `decode_pixels`; None: whole.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        on_bad_image: Literal["skip", "blank", "mask", "raise"] = "skip",
        bad_examples: BadExampleLog | None = None,
        split: str = "train",
        mixer: BatchMixer | None = None,
        stage_changes: Mapping[int, RandomChanges] | None = None,
    ) -> None:
        self.prepare = PicturePreparer(processor)
        self.processor = self.prepare.processor
        self._left: Normalisation | None = None
        self.blank = self.prepare(torch.full((3, _BLANK_SIDE, _BLANK_SIDE), 255, dtype=torch.uint8))
        self.changes = RandomChanges(augmentation, mixer)
        self.stage_changes = dict(stage_changes or {})
        self.seed = seed
        self.least_side: int | None = None
        self.on_bad_image = on_bad_image
        self.bad_examples = bad_examples
        self.split = split

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Make a batch.

        Args:
            rows (`list[dict]`):
                B rows of a `RowDataset`.

        Returns:
            `dict[str, Tensor]`: what the processor gives, such as `pixel_values` (B, 3, H, W), or in its place
            the features that the rows have, such as `image_features` (B, ...), what a teacher made of them where rows
            have that, and `labels` when the rows have labels:
            (B,) class ids, (B, C) probabilities from a mixer, (B, C) of 0 and 1 where a row has several, or (B, T)
            numbers, NaN where there is none to learn from.

        Raises:
            InputError: an image is broken and `on_bad_image` is `"raise"`.
        """
        changes = self._changes_for(rows[0]["stage"] if self.stage_changes else 0)
        samples = [self._sample(row, changes.augmentation) for row in rows]
        batch = {name: torch.stack([row[name] for row in rows]) for name in _FEATURES if name in rows[0]}
        batch.update(self._encode(samples, batch))
        self._add_targets(batch, rows, torch.tensor([sample.skipped for sample in samples]), changes)
        return batch

    def picture(
        self, image: dict[str, Any] | None, stage: int = 0, *, view: int | None = None, view_seed: int = 0
    ) -> Picture:
        """One image as the processor gets it.

        Args:
            image (`dict`, *optional*):
                A row's image; none is white.
            stage (`int`, defaults to 0):
                Stage of training whose random changes it gets.
            view (`int`, *optional*):
                Which of its views, where these are few, such as flips; absent: it is as it is.
            view_seed (`int`, defaults to 0):
                Seed of the changes where views are drawn.

        Raises:
            BadImageError: it cannot be decoded.
        """
        if image is None or names_no_image(image):
            return self.blank
        pixels, augmentation = decode_pixels(image, least_side=self.least_side), self._changes_for(stage).augmentation
        if view is not None and isinstance(augmentation, Flips):
            pixels = augmentation.view(pixels, view)
        elif view is not None and augmentation is not None:
            pixels = _augment(pixels, augmentation, view_seed)
        return self.prepare(pixels)

    def encode_images(self, images: Sequence[Picture]) -> dict[str, Tensor]:
        """What the processor makes of images: `pixel_values` (B, 3, H, W)."""
        return dict(self.processor(images=images, return_tensors="pt"))

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the processor makes of texts, such as `input_ids` and `attention_mask` (B, T)."""
        return dict(self.processor(text=texts))

    def leave_normalising(self) -> Normalisation | None:
        """Give images as uint8 from now on, but for those that are mixed; see [`PicturePreparer`]."""
        self._left = self.prepare.leave_normalising()
        return self._left

    def changes_in(self, stage: int) -> RandomChanges:
        """What happens to images at random in a stage of training."""
        return self._changes_for(stage)

    def _changes_for(self, stage: int) -> RandomChanges:
        return self.stage_changes.get(stage, self.changes)

    def _sample(self, row: Row, augmentation: Augmentation | None) -> Sample:
        image = self._load_image(row, augmentation)
        if image is None:
            return Sample(self.blank, _text_of(row), skipped=self.on_bad_image == "skip")
        return Sample(image, _text_of(row))

    def _encode(self, samples: Sequence[Sample], features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs that are not replaced by features."""
        if IMAGE_FEATURES.isdisjoint(features):
            return self.encode_images([self.blank if sample.image is None else sample.image for sample in samples])
        return {}

    def _add_targets(
        self, batch: dict[str, Tensor], rows: Sequence[Row], skipped: Tensor, changes: RandomChanges
    ) -> None:
        """Add what the model learns from; a skipped row is one that it learns nothing from."""
        if "labels" in rows[0]:
            several = torch.tensor([row["labels"] for row in rows], dtype=torch.float32)
            batch["labels"] = several.masked_fill(skipped[:, None], IGNORED_LABEL)
        elif "numbers" in rows[0]:
            numbers = torch.tensor([row["numbers"] for row in rows], dtype=torch.float32)
            batch["labels"] = numbers.masked_fill(skipped[:, None], float("nan"))
        elif "label" in rows[0]:
            labels = torch.tensor([row["label"] for row in rows], dtype=torch.int64)
            batch["labels"] = labels.masked_fill(skipped, IGNORED_LABEL)
        else:
            return
        if changes.mixer is not None:
            keys = [key_of(row) for row in rows]
            images = batch["pixel_values"] if self._left is None else self._left.of(batch["pixel_values"])
            batch["pixel_values"], batch["labels"] = changes.mixer(images, batch["labels"], keys)

    def _load_image(self, row: Row, augmentation: Augmentation | None) -> Picture | None:
        image = row["image"]
        if "broken" in row:
            self._report(row, row["broken"])
            return None
        if image is STORED_IMAGE or names_no_image(image):  # the latter was listed when the data was loaded
            return self.blank
        try:
            pixels = decode_pixels(image, least_side=self.least_side)
        except BadImageError as error:
            self._report(row, str(error))
            return None
        if augmentation is not None:
            pixels = _augment(pixels, augmentation, sample_seed(self.seed, key_of(row)))
        return self.prepare(pixels)

    def _report(self, row: Row, reason: str) -> None:
        if self.on_bad_image == "raise":
            place = f"{self.split} row {row['row']} (id {row['id']})"
            raise InputError(f"{place}: {reason}; set data.on_bad_image to skip or blank to go on without it")
        self._list(row, reason)

    def _list(self, row: Row, reason: str) -> None:
        logger.warning("%s row %s (id %s): %s", self.split, row["row"], row["id"], reason)
        if self.bad_examples is not None:
            self.bad_examples.record(BadExample(self.split, row["row"], row["id"], reason))


class ImageTextCollator(ImageCollator):
    """Makes a batch of rows with image, text, label and, where the model reads them, columns of the table.

    As [`ImageCollator`], with `processor(images=[PIL.Image], text=[str])`, a `FusionProcessor`, which adds `input_ids`
    and `attention_mask` (B, T). With `masking`, both may be None for some rows, and the batch has `image_mask` and
    `text_mask`, (B,), and the numbers of the rows in which they are 1, `image_rows` and `text_rows`; `columns_mask`
    likewise. What was to be dropped stays where the image cannot be used, and a row that has neither image nor text to
    begin with gets the label -100.

    Args:
        masking (`ModalityMasking`, *optional*):
            Which images, texts and columns are hidden or may be missing; absent: none.
        columns (`Sequence[str]`):
            The columns of the table that the processor is given.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        masking: ModalityMasking | None = None,
        columns: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(processor, **options)
        self.masking = masking
        self.columns = {name: extra_column(name) for name in columns}

    def _sample(self, row: Row, augmentation: Augmentation | None) -> Sample:
        masking = self.masking or ModalityMasking()
        text = None if masking.lacks_text(row) else row["text"]
        columns = None
        if self.columns and masking.mask != "columns":
            columns = {name: row[key] for name, key in self.columns.items()}
        lacks_image = masking.lacks_image(row)
        if lacks_image and text is None:
            self._list(row, "neither image nor text is left")
            return Sample(None, None, True, columns)
        has_several = (not lacks_image) + (text is not None) + (columns is not None) > 1
        dropped = masking.drop(self.seed, key_of(row)) if has_several else None
        image = None if lacks_image or dropped == "image" else self._load_image(row, augmentation)
        if image is not None or lacks_image or dropped == "image":
            if dropped == "text":
                text = None
            return Sample(image, text, False, None if dropped == "columns" else columns)
        if masking.missing_image:
            return Sample(None, text, text is None, columns)
        return Sample(self.blank, text, self.on_bad_image == "skip", columns)

    def encode_images(self, images: Sequence[Picture]) -> dict[str, Tensor]:
        """See [`ImageCollator`]."""
        return dict(self.processor(images=images))

    def _encode(self, samples: Sequence[Sample], features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden, masks = (None, {}) if self.masking is None else (self.masking.mask, {"masks": True})
        given, batch = {}, {}
        read: dict[str, tuple[str, list[Any]]] = {
            "image": ("images", [sample.image for sample in samples]),
            "text": ("text", [sample.text for sample in samples]),
        }
        if self.columns:
            read["columns"] = ("columns", [sample.columns for sample in samples])
        for modality, (name, values) in read.items():
            if hidden == modality:
                continue
            if any(each.startswith(modality) for each in features):
                present = [value is not None for value in values]
                if masks or not all(present):
                    batch[f"{modality}_mask"] = torch.tensor(present, dtype=torch.int64)
            else:
                given[name] = values
        batch.update(self.processor(**given, **masks) if given else {})
        for modality, name in (("image", "images"), ("text", "text")):
            if name in given and f"{modality}_mask" in batch:
                # A GPU would have to be waited for to find them in the mask.
                batch[f"{modality}_rows"] = batch[f"{modality}_mask"].nonzero()[:, 0]
        return batch


def _text_of(row: Row) -> str | None:
    return row["caption"] if "caption" in row else row.get("text")


def _augment(pixels: Tensor, augmentation: Augmentation, seed: int) -> Tensor:
    # The CPU generator itself: torch.manual_seed would also reset the generators of accelerators.
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        return augmentation(pixels)
    finally:
        generator.set_state(state)
