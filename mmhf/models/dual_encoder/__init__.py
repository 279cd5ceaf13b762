"""The dual encoder, served by transformers' stock pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmhf.models.family import Family

if TYPE_CHECKING:
    from mmhf.models.dual_encoder.configuration_dual_encoder import DualEncoderConfig as DualEncoderConfig
    from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderModel as DualEncoderModel
    from mmhf.models.dual_encoder.processing_dual_encoder import DualEncoderProcessor as DualEncoderProcessor

FAMILY = Family(
    package=__name__,
    model_type="mmhf_dual_encoder",
    task="contrastive",
    config="configuration_dual_encoder:DualEncoderConfig",
    model="modeling_dual_encoder:DualEncoderModel",
    processor="processing_dual_encoder:DualEncoderProcessor",
    auto_classes=("AutoModel", "AutoModelForZeroShotImageClassification"),
    name_table="MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    pipeline_task="zero-shot-image-classification",
    pipeline_tag="zero-shot-image-classification",
    card_call='classify("photo.jpg", candidate_labels=["a dog", "a cat"])',
    embedder="mmhf.inference.embedders:DualEncoderEmbedder",
    subject="mmhf.inference.demo.subjects:DualEncoderSubject",
    graphs="mmhf.export.graphs:DualEncoderGraphs",
)


def __getattr__(name: str) -> Any:
    return FAMILY.attribute(name)
