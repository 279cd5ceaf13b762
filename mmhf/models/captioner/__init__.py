"""The prefix captioner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmhf.models.family import Family

if TYPE_CHECKING:
    from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig as PrefixCaptionerConfig
    from mmhf.models.captioner.modeling_captioner import (
        PrefixCaptionerForConditionalGeneration as PrefixCaptionerForConditionalGeneration,
    )
    from mmhf.models.captioner.processing_captioner import CaptionerProcessor as CaptionerProcessor

FAMILY = Family(
    package=__name__,
    model_type="mmhf_prefix_captioner",
    task="image-captioning",
    config="configuration_captioner:PrefixCaptionerConfig",
    model="modeling_captioner:PrefixCaptionerForConditionalGeneration",
    processor="processing_captioner:CaptionerProcessor",
    pipeline_task="image-captioning",
    pipeline="mmhf.inference.captioning:ImageCaptioningPipeline",
    pipeline_inputs="image",
    pipeline_tag="image-to-text",
    card_call='caption("photo.jpg")',
    predictor="mmhf.inference.predictors:CaptionPredictor",
    subject="mmhf.inference.demo.subjects:CaptionerSubject",
    graphs="mmhf.export.graphs:CaptionerGraphs",
)


def __getattr__(name: str) -> Any:
    return FAMILY.attribute(name)
