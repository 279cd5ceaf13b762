"""The task image-text-classification: fusion classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmhf.data.collators import ImageTextCollator
from mmhf.data.loading import LoadedData
from mmhf.models.backbones import Modality
from mmhf.models.fusion import (
    FusionForImageTextClassification,
    FusionProcessor,
    build_fusion_model,
    build_fusion_processor,
    load_fusion_model,
)
from mmhf.recipe.schema import FusionRecipe, TextEncoderSection, VisionEncoderSection
from mmhf.tasks.classification import ClassificationTask


class ImageTextClassification(ClassificationTask[FusionRecipe]):
    """Fusion classifiers: pairs of an image and a text."""

    collator_class = ImageTextCollator

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> FusionProcessor:
        if parent is not None:
            return FusionProcessor.from_pretrained(parent)
        return build_fusion_processor(self.recipe.model, self.recipe.data)

    def encoder_sections(self) -> Mapping[Modality, VisionEncoderSection | TextEncoderSection]:
        return {"vision": self.recipe.model.vision, "text": self.recipe.model.text}

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        tokens = torch.ones(batch_size, self.recipe.data.max_length, dtype=torch.long, device=device)
        return {**super().example_inputs(batch_size, device), "input_ids": tokens, "attention_mask": tokens}

    def _fresh_model(self, **options: Any) -> FusionForImageTextClassification:
        return build_fusion_model(self.recipe.model, **options)

    def _released_model(self, parent: Path, **options: Any) -> FusionForImageTextClassification:
        return load_fusion_model(parent, self.recipe.model, **options)
