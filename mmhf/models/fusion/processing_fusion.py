"""From pairs of an image and a text to the tensors of the fusion classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import new
from torch import Tensor
from transformers import BatchFeature, CLIPImageProcessor, PreTrainedTokenizerBase

from mmhf.models.processing import TEXT_INPUTS, Images, PairProcessor, Texts

_NOTHING_SEEN = new("RGB", (32, 32), "white")


class FusionProcessor(PairProcessor):
    """Resize and normalise images, tokenise texts.

    Args:
        image_processor ([`CLIPImageProcessor`]): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`, *optional*): Longest text in tokens, special tokens included; what is longer is cut at the
            end. Absent = the tokenizer's own, else 128.
        text_prefix (`str`): Put before each text, as before those of the table of embeddings that a model was trained
            on.
        images_kwargs, text_kwargs, kwargs: As of [`PairProcessor`].
    """

    def __init__(
        self,
        image_processor: CLIPImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        text_prefix: str = "",
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, max_length, images_kwargs, text_kwargs, **kwargs)
        self.text_prefix = text_prefix

    def __call__(
        self,
        images: Images = None,
        text: Texts = None,
        masks: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list, where None is a missing image.
            text: Texts; one or a list, where None is a missing text.
            masks (`bool`, defaults to `False`): Give the masks even where nothing is missing.
            kwargs: Arguments of the parts for this call, by themselves or in `images_kwargs`, `text_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, S, S) fp32 and `input_ids`, `attention_mask` (B, T) int64, padded
            to the longest text of the batch. Where a row lacks its image or text, also `image_mask` or `text_mask`
            (B,) int64, with 0 in this row; what stands in its place in the other tensors has no effect.

        Raises:
            `ValueError`: neither images nor texts, or not as many of the one as of the other; an
                argument that is given twice.
        """
        if images is None and text is None:
            raise ValueError("FusionProcessor needs images, text or both")
        images_kwargs, text_kwargs = self._arguments(kwargs)
        data: dict[str, Tensor] = {}
        if images is not None:
            listed = list(images) if isinstance(images, Sequence) else [images]
            seen = [_NOTHING_SEEN if image is None else image for image in listed]
            data["pixel_values"] = self._pixel_values(seen, images_kwargs)
            data.update(_mask("image_mask", listed, always=masks))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            encoded = self.tokenizer([self.text_prefix + (each or "") for each in texts], **text_kwargs)
            data.update({name: encoded[name] for name in TEXT_INPUTS if name in encoded})
            data.update(_mask("text_mask", texts, always=masks))
        if len({len(tensor) for tensor in data.values()}) > 1:
            raise ValueError(f"{len(data['pixel_values'])} images for {len(data['input_ids'])} texts")
        return BatchFeature(data)


def _mask(name: str, values: Sequence[Any], *, always: bool) -> dict[str, Tensor]:
    present = [value is not None for value in values]
    return {} if all(present) and not always else {name: torch.tensor(present, dtype=torch.int64)}
