"""The task image-text-classification: fusion classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmhf.data.collators import ImageTextCollator
from mmhf.data.loading import LoadedData
from mmhf.data.modalities import ModalityMasking
from mmhf.models.backbones import Modality
from mmhf.models.classification_loss import LossSettings
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

    def collator_options(self, *, is_training: bool) -> dict[str, Any]:
        modalities, data = self.recipe.model.modalities, self.recipe.data
        masking = ModalityMasking(
            mask=modalities.mask,
            drop_image=modalities.dropout.image if is_training else 0.0,
            drop_text=modalities.dropout.text if is_training else 0.0,
            missing_image=data.on_bad_image == "mask",
            missing_text=data.on_empty_text == "mask",
        )
        return {} if masking == ModalityMasking() else {"masking": masking}

    def missing_modalities(self) -> list[str]:
        """Those that rows may lack once the model is trained, because training meets such rows."""
        modalities, data = self.recipe.model.modalities, self.recipe.data
        lacking = {
            "image": modalities.mask == "image" or modalities.dropout.image > 0 or data.on_bad_image == "mask",
            "text": modalities.mask == "text" or modalities.dropout.text > 0 or data.on_empty_text == "mask",
        }
        return [modality for modality, may_lack in lacking.items() if may_lack]

    def loss_settings(self, data: LoadedData | None) -> LossSettings:
        return replace(super().loss_settings(data), auxiliary_weights=self.recipe.loss.auxiliary_weights())

    def _fresh_model(self, **options: Any) -> FusionForImageTextClassification:
        return build_fusion_model(self.recipe.model, missing_modalities=self.missing_modalities(), **options)

    def _released_model(self, parent: Path, **options: Any) -> FusionForImageTextClassification:
        return load_fusion_model(parent, self.recipe.model, missing_modalities=self.missing_modalities(), **options)
