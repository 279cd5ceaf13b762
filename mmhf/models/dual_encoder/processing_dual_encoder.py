"""From images and texts to the tensors of a dual encoder."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

_TEXT_INPUTS = ["input_ids", "attention_mask"]


class DualEncoderProcessor(ProcessorMixin):
    """Resize and normalise images, tokenise texts.

    Args:
        image_processor ([`CLIPImageProcessor`]): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`): Longest text in tokens, special tokens included; what is longer is cut at the end.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, max_length: int = 77, **kwargs: Any):
        super().__init__(image_processor, tokenizer)
        self.max_length = max_length

    def __call__(
        self,
        images: Image | Tensor | Sequence[Image | Tensor] | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare images, texts or both; there may be more of the one than of the other.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list.
            text: Texts; one or a list.

        Returns:
            `BatchFeature` with `pixel_values` (images, 3, S, S) fp32 and `input_ids`, `attention_mask` (texts, T)
            int64, padded to the longest text.

        Raises:
            `ValueError`: neither images nor texts.
        """
        if images is None and text is None:
            raise ValueError("DualEncoderProcessor needs images, text or both")
        data: dict[str, Tensor] = {}
        if images is not None:
            data["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            encoded = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            data.update({name: encoded[name] for name in _TEXT_INPUTS})
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", *_TEXT_INPUTS]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Save; the files do not depend on what was tokenised before."""
        if self.tokenizer.is_fast:
            # A fast tokenizer keeps, and saves, the truncation and padding of its last call.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, *args, **kwargs)
