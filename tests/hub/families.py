"""A tiny model of each family, with random weights, as a run folder; a new family is one more entry in `FAMILIES`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    ViTConfig,
)

from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

SIDE = 32
WORDS = ["frog", "lamp", "shield", "weapon", "sitting", "on", "a", "the", "red", "green"]
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {"id2label": {0: "fake", 1: "true"}, "label2id": {"fake": 0, "true": 1}}
STATISTICS = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


@dataclass(frozen=True)
class Family:
    """One family: how a tiny model of it is made, and how it is asked.

    Args:
        recipe_task (`str`): `task:` of its recipes.
        make (`Callable`): Model and processor.
        pipeline_task (`str`): What `pipeline()` is asked for.
        output (`str`): Field of the model's output that is compared.
        arguments (`Callable`): From the path of an image to what the pipeline is called with.
        call (`dict`): Keywords of that call.
        has_text (`bool`): Whether the model itself takes `input_ids`.
    """

    recipe_task: str
    make: Callable[[], tuple[PreTrainedModel, Any]]
    pipeline_task: str
    output: str = "logits"
    arguments: Callable[[str], list[Any]] = lambda image: [image]
    call: dict[str, Any] = field(default_factory=dict)
    has_text: bool = False


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def _images() -> CLIPImageProcessor:
    square = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size=square, do_center_crop=False, crop_size=square)


def _bert() -> BertConfig:
    return BertConfig(vocab_size=32, max_position_embeddings=32, **TOWER)


def _fusion() -> tuple[PreTrainedModel, Any]:
    vision = timm_config("test_efficientnet", STATISTICS)
    config = FusionConfig(vision, _bert(), text_pooling="mean", embedding_dim=16, hidden_dims=[16], **LABELS)
    return FusionForImageTextClassification(config), FusionProcessor(_images(), _tokenizer(), max_length=12)


def _image_classifier() -> tuple[PreTrainedModel, Any]:
    vision = timm_config("test_efficientnet", STATISTICS)
    config = BackboneForImageClassificationConfig(vision, head_hidden_dim=16, **LABELS)
    return BackboneForImageClassification(config), _images()


def _captioner() -> tuple[PreTrainedModel, Any]:
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=16, projection_dim=24, **TOWER)
    language = Qwen3Config(vocab_size=32, num_key_value_heads=1, head_dim=16, eos_token_id=3, pad_token_id=0, **TOWER)
    config = PrefixCaptionerConfig(vision, language, prefix_length=4, projector_hidden_dims=[16])
    return PrefixCaptionerForConditionalGeneration(config), CaptionerProcessor(_images(), _tokenizer(), max_length=12)


def _dual_encoder() -> tuple[PreTrainedModel, Any]:
    vision = ViTConfig(image_size=SIDE, patch_size=16, **TOWER)
    config = DualEncoderConfig(vision, _bert(), vision_pooling="cls", text_pooling="mean", embedding_dim=16)
    return DualEncoderModel(config), DualEncoderProcessor(_images(), _tokenizer(), max_length=12)


FAMILIES = {
    "fusion": Family(
        "image-text-classification",
        _fusion,
        pipeline_task="image-text-classification",
        arguments=lambda image: [{"image": image, "text": "a frog on the lamp"}],
        has_text=True,
    ),
    "image classifier": Family("image-classification", _image_classifier, pipeline_task="image-classification"),
    "captioner": Family("image-captioning", _captioner, pipeline_task="image-captioning", has_text=True),
    "dual encoder": Family(
        "contrastive",
        _dual_encoder,
        output="logits_per_image",
        pipeline_task="zero-shot-image-classification",
        call={"candidate_labels": ["frog", "lamp"]},
        has_text=True,
    ),
}


def write_family_run(folder: Path, family: Family, *, seed: int, metrics: dict[str, float]) -> Path:
    """A finished run folder with a real model, different for each seed."""
    torch.manual_seed(seed)
    model, processor = family.make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(f"task: {family.recipe_task}\ndata: {{source: sample}}\n")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def model_inputs(family: Family) -> dict[str, torch.Tensor]:
    """The batch that a model is asked about, here and in the clean environment."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=generator)}
    if family.has_text:
        inputs["input_ids"] = torch.tensor([[2, 4, 5, 3], [2, 6, 7, 3]])
    return inputs


def write_image(path: Path) -> Path:
    """A picture of 20 × 30 pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path)
    return path
