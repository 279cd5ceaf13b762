"""From mmhf.models.captioner.references of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

from .backbones import load_encoder
from .configuration_captioner import PrefixCaptionerConfig
from .vision_features import vision_class
from transformers import AutoModelForCausalLM, PreTrainedModel

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


def load_reference(config: PrefixCaptionerConfig, part: str) -> PreTrainedModel:
    """The part that a captioner's `config.references` names."""
    return load_part(config, part, config.references[part])
