"""The image classifier, served by transformers' stock pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmhf.models.family import Family

if TYPE_CHECKING:
    from mmhf.models.image_classifier.configuration_image_classifier import (
        BackboneForImageClassificationConfig as BackboneForImageClassificationConfig,
    )
    from mmhf.models.image_classifier.modeling_image_classifier import (
        BackboneForImageClassification as BackboneForImageClassification,
    )

FAMILY = Family(
    package=__name__,
    model_type="mmhf_backbone",
    task="image-classification",
    config="configuration_image_classifier:BackboneForImageClassificationConfig",
    model="modeling_image_classifier:BackboneForImageClassification",
    auto_classes=("AutoModel", "AutoModelForImageClassification"),
    name_table="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    pipeline_task="image-classification",
    pipeline_tag="image-classification",
    card_call='classify("photo.jpg")',
    predictor="mmhf.inference.label_predictors:LabelPredictor",
    subject="mmhf.inference.demo.subjects:ClassifierSubject",
    graphs="mmhf.export.graphs:ClassifierGraphs",
)


def __getattr__(name: str) -> Any:
    return FAMILY.attribute(name)
