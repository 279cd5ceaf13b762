"""Where the weights come from that a small release leaves out."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, PreTrainedModel

from mmhf.models.backbones import load_encoder
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.captioner.vision_features import vision_class


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
