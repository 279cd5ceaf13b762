"""From images and texts to the tensors of a dual encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BatchFeature

from mmhf.models.processing import TEXT_INPUTS, Images, PairProcessor, PairProcessorKwargs, Texts


class DualEncoderProcessorKwargs(PairProcessorKwargs, total=False):
    """As of all families; texts are as long as CLIP's unless told otherwise."""

    _defaults = {  # type: ignore[misc]  # see `PairProcessorKwargs`
        "text_kwargs": {"padding": True, "truncation": True, "max_length": 77},
        "common_kwargs": {"return_tensors": "pt"},
    }


class DualEncoderProcessor(PairProcessor):
    """Resize and normalise images, tokenise texts.

    Args:
        image_processor (`BaseImageProcessor`): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`, *optional*): Longest text in tokens, special tokens included; what is longer is cut at the
            end. Absent = the tokenizer's own, else 77.
        images_kwargs, text_kwargs, kwargs: As of [`PairProcessor`].
    """

    valid_processor_kwargs = DualEncoderProcessorKwargs

    def __call__(self, images: Images = None, text: Texts = None, **kwargs: Any) -> BatchFeature:
        """Prepare images, texts or both; there may be more of the one than of the other.

        Args:
            images: RGB images, as PIL or as uint8 tensors (3, H, W); one or a list.
            text: Texts; one or a list.
            kwargs: Arguments of the parts for this call, by themselves or in `images_kwargs`, `text_kwargs`.

        Returns:
            `BatchFeature` with `pixel_values` (images, 3, S, S) fp32 and `input_ids`, `attention_mask` (texts, T)
            int64, padded to the longest text.

        Raises:
            `ValueError`: neither images nor texts; an argument that is given twice.
        """
        if images is None and text is None:
            raise ValueError("DualEncoderProcessor needs images, text or both")
        images_kwargs, text_kwargs = self._arguments(kwargs)
        data: dict[str, Tensor] = {}
        if images is not None:
            data["pixel_values"] = self._pixel_values(images, images_kwargs)
        if text is not None:
            encoded = self.tokenizer([text] if isinstance(text, str) else list(text), **text_kwargs)
            data.update({name: encoded[name] for name in TEXT_INPUTS if name in encoded})
        return BatchFeature(data)
