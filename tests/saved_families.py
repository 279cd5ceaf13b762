"""A tiny random model of each family, whose answers depend on what it is given."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    ViTConfig,
)

from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

WORDS = ["frog", "lamp", "shield", "weapon", "sitting", "on", "a", "photo", "of", "red", "."]
SIDE = 32
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {"id2label": {0: "fake", 1: "true"}, "label2id": {"fake": 0, "true": 1}, "initializer_range": 0.3}


def _images() -> CLIPImageProcessor:
    square = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size=square, do_center_crop=False, crop_size=square)


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def _vit() -> ViTConfig:
    return ViTConfig(image_size=SIDE, patch_size=8, initializer_range=0.3, **TOWER)


def _bert() -> BertConfig:
    return BertConfig(vocab_size=32, max_position_embeddings=32, initializer_range=0.3, **TOWER)


def _fusion():
    config = FusionConfig(_vit(), _bert(), text_pooling="mean", embedding_dim=16, hidden_dims=[16], **LABELS)
    return FusionForImageTextClassification(config), FusionProcessor(_images(), _tokenizer(), max_length=12)


def _image_classifier():
    return BackboneForImageClassification(BackboneForImageClassificationConfig(_vit(), **LABELS)), _images()


def _captioner():
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=16, projection_dim=24, **TOWER)
    language = Qwen3Config(vocab_size=15, num_key_value_heads=1, head_dim=16, eos_token_id=3, pad_token_id=0, **TOWER)
    config = PrefixCaptionerConfig(vision, language, prefix_length=4, projector_hidden_dims=[16])
    config.language_config.initializer_range = 0.3
    return PrefixCaptionerForConditionalGeneration(config), CaptionerProcessor(_images(), _tokenizer(), max_length=12)


def _dual_encoder():
    config = DualEncoderConfig(_vit(), _bert(), vision_pooling="cls", text_pooling="mean", embedding_dim=16)
    return DualEncoderModel(config), DualEncoderProcessor(_images(), _tokenizer(), max_length=12)


_MAKE = {
    "fusion": _fusion,
    "image classifier": _image_classifier,
    "captioner": _captioner,
    "dual encoder": _dual_encoder,
}


def save_tiny_family(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Save model and processor of one of `fusion`, `image classifier`, `captioner`, `dual encoder` to a folder."""
    torch.manual_seed(seed)
    model, processor = _MAKE[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
