"""From pairs of an image and a text to the tensors of the fusion classifier."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from PIL.Image import Image, new
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

_NOTHING_SEEN = new("RGB", (32, 32), "white")


class FusionProcessor(ProcessorMixin):
    """Resize and normalise images, tokenise texts.

    Args:
        image_processor ([`CLIPImageProcessor`]): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`): Longest text in tokens, special tokens included; what is longer is cut at the end.
        text_prefix (`str`): Put before each text, as before those of the table of embeddings that a model was trained
            on.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        max_length: int = 128,
        text_prefix: str = "",
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer)
        self.max_length = max_length
        self.text_prefix = text_prefix

    def __call__(
        self,
        images: Image | Tensor | Sequence[Image | Tensor | None] | None = None,
        text: str | Sequence[str | None] | None = None,
        masks: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list, where None is a missing image.
            text: Texts; one or a list, where None is a missing text.
            masks (`bool`, defaults to `False`): Give the masks even where nothing is missing.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, S, S) fp32 and `input_ids`, `attention_mask` (B, T) int64, padded
            to the longest text of the batch. Where a row lacks its image or text, also `image_mask` or `text_mask`
            (B,) int64, with 0 in this row; what stands in its place in the other tensors has no effect.

        Raises:
            `ValueError`: neither images nor texts, or not as many of the one as of the other.
        """
        if images is None and text is None:
            raise ValueError("FusionProcessor needs images, text or both")
        data: dict[str, Tensor] = {}
        if images is not None:
            listed = list(images) if isinstance(images, Sequence) else [images]
            seen = [_NOTHING_SEEN if image is None else image for image in listed]
            data["pixel_values"] = self.image_processor(seen, return_tensors="pt")["pixel_values"]
            data.update(_mask("image_mask", listed, always=masks))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data.update(self._tokenize([self.text_prefix + (each or "") for each in texts]))
            data.update(_mask("text_mask", texts, always=masks))
        if len({len(tensor) for tensor in data.values()}) > 1:
            raise ValueError(f"{len(data['pixel_values'])} images for {len(data['input_ids'])} texts")
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Save; the files do not depend on what was tokenised before."""
        if self.tokenizer.is_fast:
            # A fast tokenizer keeps, and saves, the truncation and padding of its last call.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _tokenize(self, text: list[str]) -> dict[str, Tensor]:
        encoded = self.tokenizer(text, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def _mask(name: str, values: Sequence[Any], *, always: bool) -> dict[str, Tensor]:
    present = [value is not None for value in values]
    return {} if all(present) and not always else {name: torch.tensor(present, dtype=torch.int64)}
