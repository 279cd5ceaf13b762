"""The task image-text-classification: fusion classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel, Trainer

from mmhf.data.collators import IGNORED_LABEL, ImageTextCollator
from mmhf.data.loading import LoadedData
from mmhf.data.modalities import ModalityMasking
from mmhf.evaluation.modality_views import ModalityEvaluation, evaluate_modalities, other_rows
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
from mmhf.tasks.classification import ClassificationTask, Predicted

_ROWS_AT_ONCE = 1024


class ImageTextClassification(ClassificationTask[FusionRecipe]):
    """Fusion classifiers: pairs of an image and a text."""

    collator_class = ImageTextCollator

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> FusionProcessor:
        if parent is not None:
            return FusionProcessor.from_pretrained(parent)
        processor = build_fusion_processor(self.recipe.model, self.recipe.data)
        processor.image_processor = self.normalised_by_data(processor.image_processor, data)
        return processor

    def encoder_sections(self) -> Mapping[Modality, VisionEncoderSection | TextEncoderSection]:
        return {"vision": self.recipe.model.vision, "text": self.recipe.model.text}

    def example_inputs(self, batch_size: int, device: str) -> Mapping[str, torch.Tensor]:
        tokens = torch.ones(batch_size, self.recipe.data.max_length, dtype=torch.long, device=device)
        return {**super().example_inputs(batch_size, device), "input_ids": tokens, "attention_mask": tokens}

    def measure_modalities(
        self, model: PreTrainedModel, predicted: Predicted, label_names: list[str]
    ) -> ModalityEvaluation | None:
        if not self._evaluates_by_modality:
            return None
        assert isinstance(model, FusionForImageTextClassification)
        image_embeds, text_embeds, modalities = predicted.others
        rows = np.flatnonzero(modalities.all(axis=1))
        images, texts, labels = image_embeds[rows], text_embeds[rows], predicted.labels[rows]
        partners = other_rows(len(rows))
        views = {
            "both": predicted.logits[rows],
            "image_only": _classify_view(model, images, texts, (True, False)),
            "text_only": _classify_view(model, images, texts, (False, True)),
            "mismatched": _classify_view(model, images, texts[partners], (True, True)),
        }
        num_labelled = int((predicted.labels != IGNORED_LABEL).sum())
        num_left_out = num_labelled - int((labels != IGNORED_LABEL).sum())
        return evaluate_modalities(views, labels, partners, label_names, num_left_out=num_left_out)

    @property
    def _evaluates_by_modality(self) -> bool:
        return self.recipe.evaluation.by_modality and self.recipe.model.modalities.mask is None

    def _predict(self, trainer: Trainer, data: LoadedData, split: str, **options: Any) -> Predicted:
        ignored: list[str] | None = [] if self._evaluates_by_modality else None
        return super()._predict(trainer, data, split, ignore_keys=ignored, **options)

    def collator_options(self, *, is_training: bool) -> dict[str, Any]:
        modalities, data = self.recipe.model.modalities, self.recipe.data
        missing = self.missing_modalities()
        masking = ModalityMasking(
            mask=modalities.mask,
            drop_image=modalities.dropout.image if is_training else 0.0,
            drop_text=modalities.dropout.text if is_training else 0.0,
            missing_image="image" in missing and data.on_bad_image in ("blank", "mask"),
            missing_text="text" in missing,
        )
        return {} if masking == ModalityMasking() else {"masking": masking}

    def dropped_parts(self) -> set[str]:
        dropout = self.recipe.model.modalities.dropout
        return {part for part, share in (("vision", dropout.image), ("text", dropout.text)) if share > 0}

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


@torch.no_grad()
def _classify_view(
    model: FusionForImageTextClassification,
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    shown: tuple[bool, bool],
) -> NDArray[np.floating]:
    """Logits (N, C) of embeddings (N, D) where image and text are shown or taken away in all rows."""
    register_fsdp_forward_method(model, "classify_embeds")
    logits = [np.zeros((0, model.head.out_features))]
    for start in range(0, len(image_embeds), _ROWS_AT_ONCE):
        images, texts = (
            torch.from_numpy(embeds[start : start + _ROWS_AT_ONCE]).to(model.device, model.dtype)
            for embeds in (image_embeds, text_embeds)
        )
        modalities = torch.tensor([shown], device=model.device).expand(len(images), 2)
        logits.append(model.classify_embeds(images, texts, modalities).float().cpu().numpy())
    return np.concatenate(logits)
