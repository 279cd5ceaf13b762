"""The image-text fusion classifier, registered with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from mmhf.models.fusion.building import build_fusion_config, build_fusion_model, load_fusion_model
from mmhf.models.fusion.configuration_fusion import FusionConfig
from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification, FusionOutput
from mmhf.models.fusion.processing_fusion import FusionProcessor, build_fusion_processor

AutoConfig.register(FusionConfig.model_type, FusionConfig)
AutoModel.register(FusionConfig, FusionForImageTextClassification)
AutoProcessor.register(FusionConfig, FusionProcessor)

__all__ = [
    "FusionConfig",
    "FusionForImageTextClassification",
    "FusionOutput",
    "FusionProcessor",
    "build_fusion_config",
    "build_fusion_model",
    "build_fusion_processor",
    "load_fusion_model",
]
