"""Rows into batches of tensors: images are decoded, changed at random and processed here, in the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image

from mmhf.data.augmentation import Augmentation
from mmhf.data.bad_examples import BadExample, BadExampleLog
from mmhf.data.datasets import Row
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.mixing import BatchMixer
from mmhf.data.modalities import ModalityMasking, names_no_image
from mmhf.data.samplers import SampleKey, sample_seed
from mmhf.errors import InputError

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100
"""A row with this label counts in no loss and no metric."""
IGNORED_IMAGE = -1
"""A row with this `image_index` takes part in no contrastive loss."""
_BLANK_SIDE = 32

Processor = Callable[..., Any]


class RandomChanges(NamedTuple):
    """What happens to training images at random: to each alone, and to those of a batch together."""

    augmentation: Augmentation | None = None
    mixer: BatchMixer | None = None


class _Sample(NamedTuple):
    """What the model sees of a row; a skipped row is one that it learns nothing from."""

    image: Image.Image | None
    text: str | None
    skipped: bool = False


def blank_image() -> Image.Image:
    """Make the white image that stands for one that cannot be used; the processor gives it its size."""
    return Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), "white")


def key_of(row: Row) -> SampleKey:
    """What a row was asked for with."""
    return SampleKey(row["index"], row["epoch"], row["draw"])


class ImageCollator:
    """Makes a batch of rows with image and label.

    What a sample looks like depends on seed, epoch and row index alone, so neither the number of workers or processes
    nor a resumed run changes it; PyTorch's global random state stays as it was.

    Args:
        processor (`Callable`):
            `processor(images=[PIL.Image], return_tensors="pt")` → tensors; a stock image processor.
        augmentation (`Callable`, *optional*):
            Random change of a PIL image; none in evaluation.
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
        self.processor = processor
        self.changes = RandomChanges(augmentation, mixer)
        self.stage_changes = dict(stage_changes or {})
        self.seed = seed
        self.on_bad_image = on_bad_image
        self.bad_examples = bad_examples
        self.split = split

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            rows (`list[dict]`):
                B rows of a `RowDataset`.

        Returns:
            `dict[str, torch.Tensor]`: what the processor gives, such as `pixel_values` (B, 3, H, W), and `labels`
            when the rows have labels: (B,) class ids, or (B, C) probabilities from a mixer.

        Raises:
            InputError: an image is broken and `on_bad_image` is `"raise"`.
        """
        changes = self._changes_for(rows)
        images = [self._load_image(row, changes.augmentation) for row in rows]
        broken = [image is None for image in images]
        usable = [blank_image() if image is None else image for image in images]
        batch = self._encode(usable, rows)
        self._add_targets(batch, rows, [bad and self.on_bad_image == "skip" for bad in broken], changes)
        return batch

    def _changes_for(self, rows: Sequence[Row]) -> RandomChanges:
        return self.stage_changes.get(rows[0]["stage"], self.changes) if self.stage_changes else self.changes

    def _add_targets(
        self, batch: dict[str, torch.Tensor], rows: Sequence[Row], skipped: Sequence[bool], changes: RandomChanges
    ) -> None:
        """Add what the model learns from; a skipped row is one that it learns nothing from."""
        if "label" not in rows[0]:
            return
        labels = [IGNORED_LABEL if skip else row["label"] for row, skip in zip(rows, skipped, strict=True)]
        batch["labels"] = torch.tensor(labels, dtype=torch.int64)
        if changes.mixer is not None:
            keys = [key_of(row) for row in rows]
            batch["pixel_values"], batch["labels"] = changes.mixer(batch["pixel_values"], batch["labels"], keys)

    def _encode(self, images: list[Image.Image], rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=images, return_tensors="pt"))

    def _load_image(self, row: Row, augmentation: Augmentation | None) -> Image.Image | None:
        image = row["image"]
        if names_no_image(image):  # blanked and listed when the data was loaded
            return blank_image()
        try:
            decoded = decode_image(image)
        except BadImageError as error:
            self._report(row, str(error))
            return None
        return decoded if augmentation is None else self._augment(decoded, augmentation, row)

    def _augment(self, image: Image.Image, augmentation: Augmentation, row: Row) -> Image.Image:
        # The CPU generator itself: torch.manual_seed would also reset the generators of accelerators.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(sample_seed(self.seed, key_of(row)))
            return augmentation(image)
        finally:
            generator.set_state(state)

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
    """Makes a batch of rows with image, text and label.

    As [`ImageCollator`], with `processor(images=[PIL.Image], text=[str])`, a `FusionProcessor`, which adds `input_ids`
    and `attention_mask` (B, T). With `masking`, both may be None for some rows, and the batch has `image_mask` and
    `text_mask`, (B,). A row is never left with neither: what was to be dropped stays where the other cannot be used,
    and a row that has nothing to begin with gets the label -100.

    Args:
        masking (`ModalityMasking`, *optional*):
            Which images and texts are hidden or may be missing; absent: none.
    """

    def __init__(self, processor: Processor, *, masking: ModalityMasking | None = None, **options: Any) -> None:
        super().__init__(processor, **options)
        self.masking = masking

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """See [`ImageCollator`]."""
        if self.masking is None:
            return super().__call__(rows)
        changes = self._changes_for(rows)
        samples = [self._sample(row, self.masking, changes.augmentation) for row in rows]
        images, texts = [sample.image for sample in samples], [sample.text for sample in samples]
        hidden = self.masking.mask
        batch = dict(
            self.processor(
                images=None if hidden == "image" else images, text=None if hidden == "text" else texts, masks=True
            )
        )
        self._add_targets(batch, rows, [sample.skipped for sample in samples], changes)
        return batch

    def _sample(self, row: Row, masking: ModalityMasking, augmentation: Augmentation | None) -> _Sample:
        text = None if masking.lacks_text(row) else row["text"]
        if masking.lacks_image(row):
            if text is None:
                self._list(row, "neither image nor text is left")
            return _Sample(None, text, skipped=text is None)
        dropped = None if text is None else masking.drop(self.seed, key_of(row))
        if dropped == "image":
            return _Sample(None, text)
        image = self._load_image(row, augmentation)
        if image is not None:
            return _Sample(image, None if dropped == "text" else text)
        if masking.missing_image:
            return _Sample(None, text, skipped=text is None)
        return _Sample(blank_image(), text, skipped=self.on_bad_image == "skip")

    def _encode(self, images: list[Image.Image], rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=images, text=[row["text"] for row in rows]))


class CaptionCollator(ImageCollator):
    """Makes a batch of images with a caption each; the base of those of the two tasks that have captions.

    As [`ImageCollator`], with `processor(images=[PIL.Image], text=[str])`, which adds `input_ids` and `attention_mask`
    (B, T), cut and padded as the processor does. What a stream found on the way to a row is listed, too.
    """

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """See [`ImageCollator`]."""
        if self.bad_examples is not None:
            self.bad_examples.extend(fault for row in rows for fault in row.get("faults", ()))
        return super().__call__(rows)

    def _encode(self, images: list[Image.Image], rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=images, text=[row["caption"] for row in rows]))


class CaptioningCollator(CaptionCollator):
    """Makes a batch for a captioner.

    Adds `labels` (B, T): the `input_ids`, with -100 where they are padding and throughout a row whose image turned out
    to be broken under `on_bad_image: skip`. Whatever ends a caption is learnt if the processor puts it there.
    """

    def _add_targets(
        self, batch: dict[str, torch.Tensor], rows: Sequence[Row], skipped: Sequence[bool], changes: RandomChanges
    ) -> None:
        # By the mask and not by the padding token, which is that of the end of the text in many tokenizers.
        unlearnt = (batch["attention_mask"] == 0) | torch.tensor(skipped)[:, None]
        batch["labels"] = batch["input_ids"].masked_fill(unlearnt, IGNORED_LABEL)


class ContrastiveCollator(CaptionCollator):
    """Makes a batch for a dual encoder.

    Adds `image_index` (B,): equal for captions of one image, and -1 in a row whose image turned out to be broken under
    `on_bad_image: skip`, which takes part in nothing.
    """

    def _add_targets(
        self, batch: dict[str, torch.Tensor], rows: Sequence[Row], skipped: Sequence[bool], changes: RandomChanges
    ) -> None:
        indices = [IGNORED_IMAGE if skip else row["image_index"] for row, skip in zip(rows, skipped, strict=True)]
        batch["image_index"] = torch.tensor(indices, dtype=torch.int64)
