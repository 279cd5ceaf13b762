"""The prefix captioner, registered with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from mmhf.models.captioner.building import (
    build_captioner_config,
    build_captioner_model,
    build_captioner_processor,
    generation_config,
    load_captioner_model,
)
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.captioner.modeling_captioner import PrefixCaptionerForConditionalGeneration, PrefixCaptionerOutput
from mmhf.models.captioner.processing_captioner import CaptionerProcessor

AutoConfig.register(PrefixCaptionerConfig.model_type, PrefixCaptionerConfig)
AutoModel.register(PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration)
AutoProcessor.register(PrefixCaptionerConfig, CaptionerProcessor)

__all__ = [
    "CaptionerProcessor",
    "PrefixCaptionerConfig",
    "PrefixCaptionerForConditionalGeneration",
    "PrefixCaptionerOutput",
    "build_captioner_config",
    "build_captioner_model",
    "build_captioner_processor",
    "generation_config",
    "load_captioner_model",
]
