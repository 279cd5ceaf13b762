"""A tiny model of each family, with random weights, in a folder; a new family is one more entry in `FAMILIES`.

What the models answer depends on what they are given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_processors import WORDS, square_images, word_tokenizer
from transformers import BertConfig, CLIPVisionConfig, PreTrainedModel, Qwen3Config, ViTConfig

from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.models.naflex import NaflexImageProcessor

SIDE = 32
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {"id2label": {0: "fake", 1: "true"}, "label2id": {"fake": 0, "true": 1}, "initializer_range": 0.3}
STATISTICS = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
_WORDS = [*WORDS, "photo", "of", "."]


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
        has_prompt (`bool`): Whether it needs `prompt_ids`.
    """

    recipe_task: str
    make: Callable[[], tuple[PreTrainedModel, Any]]
    pipeline_task: str
    output: str = "logits"
    arguments: Callable[[str], list[Any]] = lambda image: [image]
    call: dict[str, Any] = field(default_factory=dict)
    has_text: bool = False
    has_prompt: bool = False


def _text_processors() -> dict[str, Any]:
    return {"image_processor": square_images(SIDE), "tokenizer": word_tokenizer(_WORDS), "max_length": 12}


def _bert() -> BertConfig:
    return BertConfig(vocab_size=32, max_position_embeddings=32, initializer_range=0.3, **TOWER)


def _fusion() -> tuple[PreTrainedModel, Any]:
    vision = timm_config("test_efficientnet", STATISTICS)
    config = FusionConfig(vision, _bert(), text_pooling="mean", embedding_dim=16, hidden_dims=[16], **LABELS)
    return FusionForImageTextClassification(config), FusionProcessor(**_text_processors())


def _fusion_with_columns() -> tuple[PreTrainedModel, Any]:
    columns = {
        "numbers": [{"name": "age", "center": 40.0, "scale": 20.0, "may_lack": True}],
        "categories": [{"name": "site", "values": ["back", "face"], "may_lack": False}],
    }
    model, _ = _fusion()
    config = FusionConfig.from_dict({**model.config.to_dict(), "columns": columns})
    return FusionForImageTextClassification(config), FusionProcessor(**_text_processors(), columns=columns)


def _fusion_of_own_shapes() -> tuple[PreTrainedModel, Any]:
    processor = FusionProcessor(**{**_text_processors(), "image_processor": _patches()})
    return FusionForImageTextClassification(
        FusionConfig(_naflexvit(), _bert(), text_pooling="mean", embedding_dim=16, hidden_dims=[16], **LABELS)
    ), processor


def _image_classifier_of_own_shapes() -> tuple[PreTrainedModel, Any]:
    config = BackboneForImageClassificationConfig(_naflexvit(), head_hidden_dim=16, **LABELS)
    return BackboneForImageClassification(config), _patches()


def _naflexvit() -> Any:
    narrow = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
    return timm_config("naflexvit_base_patch16_gap", STATISTICS, narrow)


def _patches() -> NaflexImageProcessor:
    return NaflexImageProcessor(patch_size=8, max_num_patches=(SIDE // 8) ** 2)


def _image_classifier() -> tuple[PreTrainedModel, Any]:
    vision = timm_config("test_efficientnet", STATISTICS)
    config = BackboneForImageClassificationConfig(vision, head_hidden_dim=16, **LABELS)
    return BackboneForImageClassification(config), square_images(SIDE)


def _captioner() -> tuple[PreTrainedModel, Any]:
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=16, projection_dim=24, **TOWER)
    language = Qwen3Config(
        vocab_size=4 + len(_WORDS), num_key_value_heads=1, head_dim=16, eos_token_id=3, pad_token_id=0, **TOWER
    )
    config = PrefixCaptionerConfig(vision, language, prefix_length=4, projector_hidden_dims=[16])
    config.language_config.initializer_range = 0.3
    return PrefixCaptionerForConditionalGeneration(config), CaptionerProcessor(**_text_processors())


def _captioner_with_prompt() -> tuple[PreTrainedModel, Any]:
    prompt = {"prompt_template": "a photo of {kind} .", "prompt_missing": "a lamp"}
    model, _ = _captioner()
    config = PrefixCaptionerConfig.from_dict({**model.config.to_dict(), **prompt})
    config.language_config.initializer_range = 0.3
    return PrefixCaptionerForConditionalGeneration(config), CaptionerProcessor(**_text_processors(), **prompt)


def _dual_encoder() -> tuple[PreTrainedModel, Any]:
    vision = ViTConfig(image_size=SIDE, patch_size=8, initializer_range=0.3, **TOWER)
    config = DualEncoderConfig(vision, _bert(), vision_pooling="cls", text_pooling="mean", embedding_dim=16)
    config.matryoshka = [4, 8, 16]
    return DualEncoderModel(config), DualEncoderProcessor(**_text_processors())


FAMILIES = {
    "fusion": Family(
        "image-text-classification",
        _fusion,
        pipeline_task="image-text-classification",
        arguments=lambda image: [{"image": image, "text": "a frog on the lamp"}],
        has_text=True,
    ),
    "fusion with columns": Family(
        "image-text-classification",
        _fusion_with_columns,
        pipeline_task="image-text-classification",
        arguments=lambda image: [{"image": image, "text": "a frog", "columns": {"age": 61, "site": "face"}}],
        has_text=True,
    ),
    "image classifier": Family("image-classification", _image_classifier, pipeline_task="image-classification"),
    "image classifier of own shapes": Family(
        "image-classification", _image_classifier_of_own_shapes, pipeline_task="image-classification"
    ),
    "fusion of own shapes": Family(
        "image-text-classification",
        _fusion_of_own_shapes,
        pipeline_task="image-text-classification",
        arguments=lambda image: [{"image": image, "text": "a frog on the lamp"}],
        has_text=True,
    ),
    "captioner": Family("image-captioning", _captioner, pipeline_task="image-captioning", has_text=True),
    "captioner with prompt": Family(
        "image-captioning",
        _captioner_with_prompt,
        pipeline_task="image-captioning",
        arguments=lambda image: [{"image": image, "columns": {"kind": "the frog"}}],
        has_text=True,
        has_prompt=True,
    ),
    "dual encoder": Family(
        "contrastive",
        _dual_encoder,
        output="logits_per_image",
        pipeline_task="zero-shot-image-classification",
        call={"candidate_labels": ["frog", "lamp"]},
        has_text=True,
    ),
}


def save_tiny_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a model of one of `FAMILIES` and its processor, different for each seed."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[name].make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_family_run(folder: Path, name: str, *, seed: int, metrics: dict[str, float]) -> Path:
    """The same as a finished run folder."""
    save_tiny_family(name, folder, seed=seed)
    (folder / "recipe.yaml").write_text(f"task: {FAMILIES[name].recipe_task}\ndata: {{source: sample}}\n")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def model_inputs(family: Family) -> dict[str, torch.Tensor]:
    """The batch that a model is asked about, here and in the clean environment."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=generator)}
    if family.has_text:
        inputs["input_ids"] = torch.tensor([[2, 4, 5, 3], [2, 6, 7, 3]])
    if family.has_prompt:
        inputs |= {"prompt_ids": torch.tensor([[0, 5], [6, 7]]), "prompt_mask": torch.tensor([[0, 1], [1, 1]])}
    return inputs


def write_image(path: Path) -> Path:
    """A picture of 20 × 30 pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path)
    return path
