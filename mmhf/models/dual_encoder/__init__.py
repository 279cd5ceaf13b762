"""The dual encoder, registered with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from mmhf.models.dual_encoder.building import build_dual_encoder, build_dual_encoder_config, load_dual_encoder
from mmhf.models.dual_encoder.configuration_dual_encoder import DualEncoderConfig
from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderModel, DualEncoderOutput
from mmhf.models.dual_encoder.processing_dual_encoder import DualEncoderProcessor, build_dual_encoder_processor

AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoderModel)
AutoModelForZeroShotImageClassification.register(DualEncoderConfig, DualEncoderModel)
AutoProcessor.register(DualEncoderConfig, DualEncoderProcessor)
# transformers 5.23: the pipeline looks here, and not at what is registered, before it complains of a foreign model.
MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES[DualEncoderConfig.model_type] = DualEncoderModel.__name__

__all__ = [
    "DualEncoderConfig",
    "DualEncoderModel",
    "DualEncoderOutput",
    "DualEncoderProcessor",
    "build_dual_encoder",
    "build_dual_encoder_config",
    "build_dual_encoder_processor",
    "load_dual_encoder",
]
