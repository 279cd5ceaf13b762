"""Of a captioner: what it reads of an image encoder, and what its config leaves open.

An image encoder gives CLIP's projected vector, all patches, or one pooled vector. Releases carry this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.metaclip_2 import MetaClip2VisionModelWithProjection

from mmhf.conventions import ImageSize, height_and_width
from mmhf.models.backbones import load_encoder
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.encoders import (
    EncoderOutput,
    describe_vision,
    fresh_encoder,
    native_image_size,
    patch_tokens,
    pool_vision,
    run_vision,
)

_DEFAULT_PREFIX_LENGTH = 10
# Image towers whose projection into the space of texts belongs to a class of its own.
_WITH_PROJECTION: dict[str, type[PreTrainedModel]] = {
    "clip_vision_model": CLIPVisionModelWithProjection,
    "metaclip_2_vision_model": MetaClip2VisionModelWithProjection,
}


def vision_class(config: PreTrainedConfig, features: str) -> Any:
    """Class that the image encoder is built with and loaded by.

    Raises:
        `ValueError`: `projected` features of an encoder without a projection.
    """
    if features != "projected":
        return AutoModel
    if config.model_type not in _WITH_PROJECTION:
        raise ValueError("only CLIP's image encoders have projected features; use 'patches', 'avg' or 'pooler'")
    return _WITH_PROJECTION[config.model_type]


def fresh_vision(config: PreTrainedConfig, features: str) -> PreTrainedModel:
    """Image encoder without pretrained weights."""
    encoder_class = vision_class(config, features)
    return fresh_encoder(config) if encoder_class is AutoModel else encoder_class(config)


def describe_features(
    config: PreTrainedConfig, features: str, *, image_size: ImageSize | None = None
) -> EncoderOutput:
    """Read what the projector will get from the encoder's config alone; no weights are made.

    Raises:
        `ValueError`: the encoder does not have these features, or cannot take images of this size.
    """
    if features == "patches":
        return describe_vision(config, "avg", image_size=image_size)
    if features != "projected":
        return describe_vision(config, features, image_size=image_size)
    with torch.device("meta"):
        encoder = vision_class(config, features)(config)
    if image_size is not None:
        describe_vision(config, "pooler", image_size=image_size)
    return EncoderOutput(encoder.config.projection_dim)


def num_patches(config: PreTrainedConfig, shape: EncoderOutput, image_size: ImageSize) -> int:
    """Patch or grid features of an image, found by a pass on the meta device."""
    height, width = height_and_width(image_size)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config).eval()
        output = run_vision(encoder, torch.zeros(1, 3, height, width), "avg")
    return patch_tokens(output.last_hidden_state, shape).shape[1]


def complete_config(config: PrefixCaptionerConfig, *, image_size: ImageSize | None = None) -> None:
    """Find out what a config leaves open: the image features' shape and the length of the prefix.

    Raises:
        `ValueError`: the image encoder does not have the features, or a prefix length was given where the number of
            patches decides it.
    """
    if config.vision_output is None:
        shape = describe_features(config.vision_config, config.vision_features, image_size=image_size)
        config.vision_output = shape.to_dict()
    each_patch = config.projector == "mlp" and config.vision_features == "patches"
    if config.prefix_length is not None:
        return
    config.prefix_length = _DEFAULT_PREFIX_LENGTH
    if each_patch:
        shape = EncoderOutput.from_dict(config.vision_output)
        size = image_size or native_image_size(config.vision_config)
        config.prefix_length = num_patches(config.vision_config, shape, size)


def language_width(config: PrefixCaptionerConfig) -> int:
    """Width of the language model's token embeddings."""
    values = config.language_config.get_text_config()
    return int(values.to_dict().get("word_embed_proj_dim") or values.hidden_size)


def read_features(output: Any, features: str, shape: EncoderOutput) -> Tensor:
    """Of an image encoder's output (B, width), or (B, patches, width) for `patches`."""
    if features == "projected":
        projected: Tensor = output.image_embeds
        return projected
    if features == "patches":
        return patch_tokens(output.last_hidden_state, shape)
    return pool_vision(output, features, shape)


def load_part(config: PrefixCaptionerConfig, part: str, name: str) -> PreTrainedModel:
    """The `vision` or `language` part of a captioner, with the pretrained weights of a backbone, in fp32.

    Raises:
        `InputError`: there are no such weights.
        `UnreachableError`: they cannot be fetched now.
    """
    if part == "language":
        return load_encoder(name, config.language_config, pretrained=True, auto_class=AutoModelForCausalLM)
    auto_class = vision_class(config.vision_config, config.vision_features)
    return load_encoder(name, config.vision_config, pretrained=True, auto_class=auto_class)
