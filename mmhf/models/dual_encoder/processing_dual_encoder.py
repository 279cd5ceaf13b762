"""From images and texts to the tensors of a dual encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from mmhf.errors import InputError
from mmhf.models.backbones import ImageStatistics, load_tokenizer
from mmhf.models.dual_encoder.tokenizer_training import train_tokenizer
from mmhf.models.fusion.processing_fusion import FusionProcessor
from mmhf.models.image_processing import build_image_processor, image_processor_of
from mmhf.recipe.contrastive_sections import DualEncoderModelSection, TextTowerSection
from mmhf.recipe.schema import DataSectionBase, VisionEncoderSection

_MODEL_INPUTS = ["input_ids", "attention_mask"]
_HALF = (0.5, 0.5, 0.5)


class DualEncoderProcessor(FusionProcessor):
    """Resize and normalise images, tokenise texts; as [`FusionProcessor`], but there may be more of the one.

    Args:
        image_processor ([`CLIPImageProcessor`]): Resizing, cropping, mean and standard deviation.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        max_length (`int`): Longest text in tokens, special tokens included; what is longer is cut at the end.
    """

    def __call__(
        self,
        images: Image | Tensor | Sequence[Image | Tensor] | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare images, texts or both.

        Returns:
            `BatchFeature` with `pixel_values` (images, 3, S, S) fp32 and `input_ids`, `attention_mask` (texts, T)
            int64, padded to the longest text.

        Raises:
            `ValueError`: neither images nor texts.
        """
        if images is None or text is None:
            return super().__call__(images=images, text=text, **kwargs)
        return BatchFeature({**super().__call__(images=images), **super().__call__(text=text)})


def build_dual_encoder_processor(
    section: DualEncoderModelSection, data_section: DataSectionBase, captions: Iterable[str]
) -> DualEncoderProcessor:
    """Processor for the towers and image size of a recipe.

    Args:
        section ([`DualEncoderModelSection`]): Section `model` of the recipe.
        data_section ([`DataSectionBase`]): Section `data` of the recipe.
        captions (`Iterable[str]`): What a tokenizer is learnt from, where the recipe names none.

    Raises:
        `InputError`: a file of a backbone cannot be fetched, or the tokenizer has no end-of-text token to pool.
    """
    tokenizer = _tokenizer(section.text, captions, data_section.max_length)
    tokenizer.model_input_names = list(_MODEL_INPUTS)
    max_length = min(data_section.max_length, tokenizer.model_max_length)
    if section.text.pooling == "eot" and end_of_text_id(tokenizer) != tokenizer("a")["input_ids"][-1]:
        raise InputError("model.text.pooling: eot, but the tokenizer ends no text with a token of its own; use mean")
    return DualEncoderProcessor(_image_processor(section, data_section), tokenizer, max_length=max_length)


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a tokenizer ends texts with."""
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def _tokenizer(section: TextTowerSection, captions: Iterable[str], max_length: int) -> PreTrainedTokenizerBase:
    name = section.tokenizer or section.backbone
    if name is not None:
        return load_tokenizer(name)
    return train_tokenizer(captions, vocab_size=section.vocab_size, max_length=max_length)


def _image_processor(section: DualEncoderModelSection, data_section: DataSectionBase) -> Any:
    vision = section.vision
    if vision.backbone is not None:
        encoder = VisionEncoderSection(backbone=vision.backbone, pretrained=vision.pretrained)
        return image_processor_of(encoder, data_section)
    centred = ImageStatistics(_HALF, _HALF, Resampling.BICUBIC)
    return build_image_processor(centred, image_size=data_section.image_size, resize=data_section.resize)
