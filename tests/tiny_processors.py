"""A tokenizer of a few whole words, and an image processor of small squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

WORDS = ["frog", "lamp", "shield", "weapon", "sitting", "on", "a", "the", "red", "green"]


def word_tokenizer(words: Sequence[str] = WORDS, **options: Any) -> PreTrainedTokenizerFast:
    """Padding, unknown, begin and end have the ids 0 to 3, the words those from 4 on."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, **options)


def square_images(side: int, **options: Any) -> CLIPImageProcessor:
    """Squeezes images into squares of so many pixels a side."""
    square = {"height": side, "width": side}
    return CLIPImageProcessor(**{"size": square, "do_center_crop": False, "crop_size": square, **options})
