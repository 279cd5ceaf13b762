"""The image-text fusion classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmhf.models.family import Family

if TYPE_CHECKING:
    from mmhf.models.fusion.configuration_fusion import FusionConfig as FusionConfig
    from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification as FusionForImageTextClassification
    from mmhf.models.fusion.processing_fusion import FusionProcessor as FusionProcessor

FAMILY = Family(
    package=__name__,
    model_type="mmhf_fusion",
    task="image-text-classification",
    config="configuration_fusion:FusionConfig",
    model="modeling_fusion:FusionForImageTextClassification",
    processor="processing_fusion:FusionProcessor",
    pipeline_task="image-text-classification",
    pipeline="mmhf.inference.pipelines:ImageTextClassificationPipeline",
    card_call='classify({"image": "photo.jpg", "text": "what is said about the photo"})',
    predictor="mmhf.inference.label_predictors:LabelPredictor",
    subject="mmhf.inference.demo.subjects:ClassifierSubject",
    graphs="mmhf.export.graphs:ClassifierGraphs",
)


def __getattr__(name: str) -> Any:
    return FAMILY.attribute(name)
