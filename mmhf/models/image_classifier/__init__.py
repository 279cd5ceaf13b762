"""The image classifier, registered with transformers' Auto classes and its stock pipeline."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from mmhf.models.image_classifier.building import (
    build_image_classifier,
    build_image_classifier_config,
    load_image_classifier,
)
from mmhf.models.image_classifier.configuration_image_classifier import BackboneForImageClassificationConfig
from mmhf.models.image_classifier.modeling_image_classifier import BackboneForImageClassification

AutoConfig.register(BackboneForImageClassificationConfig.model_type, BackboneForImageClassificationConfig)
AutoModel.register(BackboneForImageClassificationConfig, BackboneForImageClassification)
AutoModelForImageClassification.register(BackboneForImageClassificationConfig, BackboneForImageClassification)
# Up to transformers 5.23 the stock pipeline knows a registered model by this table of names alone.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[BackboneForImageClassificationConfig.model_type] = (
    BackboneForImageClassification.__name__
)

__all__ = [
    "BackboneForImageClassification",
    "BackboneForImageClassificationConfig",
    "build_image_classifier",
    "build_image_classifier_config",
    "load_image_classifier",
]
