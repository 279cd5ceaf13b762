"""A tiny model of each family, with encoders of transformers and of timm, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, PreTrainedModel, Qwen3Config, ViTConfig

from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

SIDE, LAYERS = 32, 2
TOWER = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = ["fusion", "image classifier", "captioner", "dual encoder"]
ENCODERS = ["transformers", "timm"]


def make_config(family: str, encoder: str) -> Any:
    if encoder == "timm":
        statistics = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
        vision: Any = timm_config("test_efficientnet", statistics)
    else:
        vision = ViTConfig(image_size=SIDE, patch_size=16, **TOWER)
    text = BertConfig(vocab_size=32, max_position_embeddings=32, **TOWER)
    if family == "fusion":
        return FusionConfig(vision, text, text_pooling="mean", embedding_dim=16, hidden_dims=[16], dropout=0.0)
    if family == "image classifier":
        return BackboneForImageClassificationConfig(vision, head_hidden_dim=16)
    if family == "dual encoder":
        return DualEncoderConfig(vision, text, vision_pooling="avg", text_pooling="mean", embedding_dim=16)
    language = Qwen3Config(vocab_size=32, num_key_value_heads=1, head_dim=16, eos_token_id=3, pad_token_id=0, **TOWER)
    return PrefixCaptionerConfig(
        vision, language, vision_features="avg", prefix_length=4, projector_hidden_dims=[16], initializer_range=0.5
    )


MODELS = {
    "fusion": FusionForImageTextClassification,
    "image classifier": BackboneForImageClassification,
    "captioner": PrefixCaptionerForConditionalGeneration,
    "dual encoder": DualEncoderModel,
}
PROCESSORS = {"fusion": FusionProcessor, "captioner": CaptionerProcessor, "dual encoder": DualEncoderProcessor}


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    def make(family: str, encoder: str = "transformers", **changes: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        config = make_config(family, encoder)
        for name, value in changes.items():
            setattr(config, name, value)
        return MODELS[family](config).eval()

    return make


def inputs_of(family: str, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(batch, 3, SIDE, SIDE, generator=generator)}
    if family != "image classifier":
        inputs["input_ids"] = torch.randint(4, 14, (batch, 5), generator=generator)
    return inputs


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
