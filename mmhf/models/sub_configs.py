"""Configs of encoders inside a family's config, with small ones where none is given."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from mmhf.models.torchvision_encoder import TorchvisionConfig

AutoConfig.register(TorchvisionConfig.model_type, TorchvisionConfig, exist_ok=True)

_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128}
SMALL_VIT: dict[str, Any] = {"model_type": "vit", "image_size": 64, "patch_size": 16, **_SMALL}
SMALL_CLIP_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "image_size": 64,
    "patch_size": 16,
    "projection_dim": 64,
    **_SMALL,
}
SMALL_CLIP_TEXT: dict[str, Any] = {"model_type": "clip_text_model", "vocab_size": 1000, **_SMALL}
SMALL_BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 1000, **_SMALL}
SMALL_QWEN: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 1000,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **_SMALL,
}


def sub_config(config: PreTrainedConfig | dict[str, Any] | None, *, default: dict[str, Any]) -> PreTrainedConfig:
    """An encoder's config from what a family's config was given.

    Args:
        config (`PreTrainedConfig` or `dict`, *optional*): Absent = `default`; a dict without `model_type` has its.
        default (`dict`): One of the small configs here.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    values = config or default
    return CONFIG_MAPPING[values.get("model_type", default["model_type"])].from_dict(values)
