"""A toy family: an image belongs to the class whose prototype is nearest."""

from __future__ import annotations

from typing import Any

from mmhf.models.family import Family

FAMILY = Family(
    package=__name__,
    model_type="toy_prototypes",
    task="prototype-classification",
    config="configuration_prototypes:PrototypeConfig",
    model="modeling_prototypes:PrototypeModel",
    auto_classes=("AutoModel", "AutoModelForImageClassification"),
    name_table="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    pipeline_task="image-classification",
    pipeline_tag="image-classification",
    card_call='classify("photo.jpg")',
    predictor="mmhf.inference.label_predictors:ClassificationPredictor",
    subject="mmhf.inference.demo.subjects:ClassifierSubject",
)


def __getattr__(name: str) -> Any:
    return FAMILY.attribute(name)
