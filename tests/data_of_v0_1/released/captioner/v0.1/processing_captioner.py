"""From mmhf.models.captioner.processing_captioner of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

import torch
from PIL.Image import Image
from collections.abc import Sequence
from os import PathLike
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from typing import Any

class CaptionerProcessor(ProcessorMixin):
    """Resize and normalise images, tokenise captions, read captions out of tokens.

    Args:
        image_processor ([`CLIPImageProcessor`]): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model; its end-of-text token ends a caption.
        max_length (`int`): Longest caption in tokens, its end included; what is longer is cut and does not end.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, max_length: int = 128, **kwargs: Any):
        super().__init__(image_processor, tokenizer)
        self.max_length = max_length

    def __call__(
        self,
        images: Image | Tensor | Sequence[Image | Tensor] | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list.
            text: Captions; one or a list.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, S, S) fp32 of the images, and of the captions `input_ids` and
            `attention_mask` (B, T) int64: each ended by end of text, padded on the right to the longest of the batch.

        Raises:
            `ValueError`: neither images nor captions, or not as many of the one as of the other.
        """
        if images is None and text is None:
            raise ValueError("CaptionerProcessor needs images, text or both")
        data: dict[str, Tensor] = {}
        if images is not None:
            data["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        if text is not None:
            data.update(self._tokenize([text] if isinstance(text, str) else list(text)))
        if len({len(tensor) for tensor in data.values()}) > 1:
            raise ValueError(f"{len(data['pixel_values'])} images for {len(data['input_ids'])} captions")
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def captions(self, token_ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Captions that the model generated, without what ends them and pads them."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with its end; more than `max_length` are cut."""
        return [len(ids) + 1 for ids in self._token_ids(list(captions))]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Save; the files do not depend on what was tokenised before."""
        if self.tokenizer.is_fast:
            # A fast tokenizer keeps, and saves, the truncation and padding of its last call.
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        ended = [[*ids, self.tokenizer.eos_token_id][: self.max_length] for ids in self._token_ids(captions)]
        shape = (len(ended), max(len(ids) for ids in ended))
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, ids in enumerate(ended):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _token_ids(self, captions: list[str]) -> list[list[int]]:
        return self.tokenizer(captions, add_special_tokens=False)["input_ids"] if captions else []
