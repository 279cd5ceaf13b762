from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            torch.manual_seed(0)
            model, processor = _MAKE[family]()
            made[family] = tmp_path_factory.mktemp("tiny")
            model.save_pretrained(made[family])
            processor.save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 60 x 40 pixels, coloured on the left and white on the right."""
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    pixels[:, :30] = np.random.default_rng(0).integers(0, 256, (40, 30, 3))
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path
