"""From images and texts to the tensors of a dual encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mmhf.errors import InputError
from mmhf.models.backbones import ImageStatistics, load_tokenizer
from mmhf.models.dual_encoder.tokenizer_training import train_tokenizer
from mmhf.models.image_processing import build_image_processor, image_processor_of
from mmhf.recipe.contrastive_sections import DualEncoderModelSection, TextTowerSection
from mmhf.recipe.schema import DataSectionBase, VisionEncoderSection

_TEXT_INPUTS = ["input_ids", "attention_mask"]
_HALF = (0.5, 0.5, 0.5)


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
    tokenizer.model_input_names = list(_TEXT_INPUTS)
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
