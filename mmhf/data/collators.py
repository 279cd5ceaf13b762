"""Rows into batches of tensors: images are decoded, changed at random and processed here, in the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmhf.conventions import IGNORED_IMAGE, IGNORED_LABEL, Modality
from mmhf.data.augment import Augmentation
from mmhf.data.bad_examples import BadExample, BadExampleLog
from mmhf.data.datasets import Row
from mmhf.data.feature_cache import PART_INPUTS, STORED_IMAGE, AskedRows
from mmhf.data.images import BadImageError, decode_image
from mmhf.data.mixing import BatchMixer
from mmhf.data.modalities import ModalityMasking, names_no_image
from mmhf.data.samplers import SampleKey, sample_seed
from mmhf.errors import InputError

logger = logging.getLogger(__name__)

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
    is_own_image: bool = False
    """Whether the image is the row's, and not a white one in its place."""


class _Targets(NamedTuple):
    """What rows say of what is to be learnt, one a row."""

    keys: Sequence[SampleKey]
    labels: Sequence[int] | None = None
    image_index: Sequence[int] | None = None
    skipped: Sequence[bool] | NDArray[np.bool_] = ()


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

    def __call__(self, rows: Sequence[Row] | AskedRows) -> dict[str, Any]:
        """Make a batch.

        Args:
            rows (`list[dict]` or `AskedRows`):
                B rows of a `RowDataset`.

        Returns:
            `dict[str, torch.Tensor]`: what the processor gives, such as `pixel_values` (B, 3, H, W), and `labels`
            when the rows have labels: (B,) class ids, or (B, C) probabilities from a mixer. Of `AskedRows`, the inputs
            of those rows that need them, and a `PartInputs` under the name `PART_INPUTS`, which says which these are.

        Raises:
            InputError: an image is broken and `on_bad_image` is `"raise"`.
        """
        if isinstance(rows, AskedRows):
            return self._collate_asked(rows)
        changes = self._changes_for(rows[0]["stage"] if self.stage_changes else 0)
        samples = [self._sample(row, changes.augmentation) for row in rows]
        batch = self._encode(samples)
        self._add_targets(batch, _targets(rows, samples), changes)
        return batch

    def _collate_asked(self, rows: AskedRows) -> dict[str, Any]:
        changes = self._changes_for(rows.stage)
        samples = self._asked_samples(rows, changes.augmentation)
        batch = self._encode_asked(samples, rows)
        skipped = np.zeros(len(rows), dtype=bool)
        for number, sample in samples.items():
            skipped[number] = sample.skipped
        labels, image_index = rows.values("label"), rows.values("image_index")
        self._add_targets(batch, _Targets(rows.sample_keys, labels, image_index, skipped), changes)
        return {**batch, PART_INPUTS: rows.inputs}

    def _asked_samples(self, rows: AskedRows, augmentation: Augmentation | None) -> dict[int, _Sample]:
        """The samples that inputs are made of, by number of their row."""
        wanted = rows.read(rows.rows_without("image"))
        return {number: self._sample(row, augmentation) for number, row in wanted.items()}

    def _encode_asked(self, samples: Mapping[int, _Sample], rows: AskedRows) -> dict[str, torch.Tensor]:
        """Inputs of the rows that need them."""
        chosen = [samples[number] for number in rows.rows_without("image").tolist()]
        rows.set_sound("image", [sample.is_own_image for sample in chosen])
        return self._encode_images(chosen) if chosen else {}

    def changes_in(self, stage: int) -> RandomChanges:
        """What happens to images at random in a stage of training."""
        return self._changes_for(stage)

    def _changes_for(self, stage: int) -> RandomChanges:
        return self.stage_changes.get(stage, self.changes)

    def _sample(self, row: Row, augmentation: Augmentation | None) -> _Sample:
        image = self._load_image(row, augmentation)
        if image is None:
            return _Sample(blank_image(), _text_of(row), skipped=self.on_bad_image == "skip")
        return _Sample(image, _text_of(row), is_own_image=not names_no_image(row["image"]))

    def _add_targets(self, batch: dict[str, torch.Tensor], targets: _Targets, changes: RandomChanges) -> None:
        """Add what the model learns from; a skipped row is one that it learns nothing from."""
        if targets.labels is None:
            return
        labels = torch.as_tensor(targets.labels, dtype=torch.int64)
        batch["labels"] = labels.masked_fill(torch.as_tensor(targets.skipped), IGNORED_LABEL)
        if changes.mixer is not None:
            mixed = changes.mixer(batch["pixel_values"], batch["labels"], targets.keys)
            batch["pixel_values"], batch["labels"] = mixed

    def _encode(self, samples: Sequence[_Sample]) -> dict[str, torch.Tensor]:
        return self._encode_images(samples)

    def _encode_images(self, samples: Sequence[_Sample]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=[sample.image for sample in samples], return_tensors="pt"))

    def _load_image(self, row: Row, augmentation: Augmentation | None) -> Image.Image | None:
        image = row["image"]
        if image is STORED_IMAGE or names_no_image(image):  # the latter was listed when the data was loaded
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
            seed = row["view_seed"] if "view_seed" in row else sample_seed(self.seed, key_of(row))
            generator.manual_seed(seed)
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

    def _asked_samples(self, rows: AskedRows, augmentation: Augmentation | None) -> dict[int, _Sample]:
        numbers = np.union1d(rows.rows_without("image"), rows.rows_without("text"))
        return {number: self._sample(row, augmentation) for number, row in rows.read(numbers).items()}

    def _sample(self, row: Row, augmentation: Augmentation | None) -> _Sample:
        masking = self.masking or ModalityMasking()
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
            is_own = not names_no_image(row["image"])
            return _Sample(image, None if dropped == "text" else text, is_own_image=is_own)
        if masking.missing_image:
            return _Sample(None, text, skipped=text is None)
        return _Sample(blank_image(), text, skipped=self.on_bad_image == "skip")

    def _encode(self, samples: Sequence[_Sample]) -> dict[str, torch.Tensor]:
        images, texts = [sample.image for sample in samples], [sample.text for sample in samples]
        if self.masking is None:
            return dict(self.processor(images=images, text=texts))
        hidden = self.masking.mask
        given = {"images": None if hidden == "image" else images, "text": None if hidden == "text" else texts}
        return dict(self.processor(**given, masks=True))

    def _encode_asked(self, samples: Mapping[int, _Sample], rows: AskedRows) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = {}
        hidden = None if self.masking is None else self.masking.mask
        modalities: tuple[Modality, ...] = ("image", "text")
        for modality in modalities:
            numbers = rows.rows_without(modality)
            chosen = [samples[number] for number in numbers.tolist()]
            if modality == "image":
                values: list[Any] = [sample.image for sample in chosen]
                rows.set_sound(modality, [sample.is_own_image for sample in chosen])
            else:
                values = [sample.text for sample in chosen]
                rows.set_sound(modality, [value is not None for value in values])
            if hidden == modality:
                continue
            if values:
                name = "images" if modality == "image" else "text"
                batch.update(self.processor(**{name: values}, masks=self.masking is not None))
            if self.masking is not None:
                mask = torch.ones(len(rows), dtype=torch.int64)
                mask[numbers] = batch.get(f"{modality}_mask", mask[numbers])
                batch[f"{modality}_mask"] = mask
        return batch


class CaptionCollator(ImageCollator):
    """Makes a batch of images with a caption each; the base of those of the two tasks that have captions.

    As [`ImageCollator`], with `processor(images=[PIL.Image], text=[str])`, which adds `input_ids` and `attention_mask`
    (B, T), cut and padded as the processor does. What a stream found on the way to a row is listed, too.
    """

    def __call__(self, rows: Sequence[Row] | AskedRows) -> dict[str, Any]:
        """See [`ImageCollator`]."""
        if self.bad_examples is not None and not isinstance(rows, AskedRows):
            self.bad_examples.extend(fault for row in rows for fault in row.get("faults", ()))
        return super().__call__(rows)

    def _encode(self, samples: Sequence[_Sample]) -> dict[str, torch.Tensor]:
        images, texts = [sample.image for sample in samples], [sample.text for sample in samples]
        return dict(self.processor(images=images, text=texts))

    def _encode_asked(self, samples: Mapping[int, _Sample], rows: AskedRows) -> dict[str, torch.Tensor]:
        # The losses need all captions, also those whose features are stored.
        captions = dict(self.processor(text=rows.values("caption")))
        rows.inputs.kept = tuple(captions)
        rows.set_sound("text", [True] * len(rows.rows_without("text")))
        return {**super()._encode_asked(samples, rows), **captions}


class CaptioningCollator(CaptionCollator):
    """Makes a batch for a captioner.

    Adds `labels` (B, T): the `input_ids`, with -100 where they are padding and throughout a row whose image turned out
    to be broken under `on_bad_image: skip`. Whatever ends a caption is learnt if the processor puts it there.
    """

    def _add_targets(self, batch: dict[str, torch.Tensor], targets: _Targets, changes: RandomChanges) -> None:
        # By the mask and not by the padding token, which is that of the end of the text in many tokenizers.
        unlearnt = (batch["attention_mask"] == 0) | torch.as_tensor(targets.skipped)[:, None]
        batch["labels"] = batch["input_ids"].masked_fill(unlearnt, IGNORED_LABEL)


class ContrastiveCollator(CaptionCollator):
    """Makes a batch for a dual encoder.

    Adds `image_index` (B,): equal for captions of one image, and -1 in a row whose image turned out to be broken under
    `on_bad_image: skip`, which takes part in nothing.
    """

    def _add_targets(self, batch: dict[str, torch.Tensor], targets: _Targets, changes: RandomChanges) -> None:
        assert targets.image_index is not None
        index = torch.as_tensor(targets.image_index, dtype=torch.int64)
        batch["image_index"] = index.masked_fill(torch.as_tensor(targets.skipped), IGNORED_IMAGE)


def _text_of(row: Row) -> str | None:
    return row["caption"] if "caption" in row else row.get("text")


def _targets(rows: Sequence[Row], samples: Sequence[_Sample]) -> _Targets:
    labels = [row["label"] for row in rows] if "label" in rows[0] else None
    image_index = [row["image_index"] for row in rows] if "image_index" in rows[0] else None
    return _Targets([key_of(row) for row in rows], labels, image_index, [sample.skipped for sample in samples])
