"""The task of a toy family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from mmhf.conventions import Processor
from mmhf.data.collators import ImageCollator
from mmhf.data.loading import LoadedData
from mmhf.models.backbones import load_encoder
from mmhf.models.building import (
    image_processor_of,
    label_maps,
    load_released,
    released_config,
    shapes_alone,
    vision_values,
)
from mmhf.models.prototypes.configuration_prototypes import PrototypeConfig
from mmhf.models.prototypes.modeling_prototypes import PrototypeModel
from mmhf.recipe.prototype_recipe import PrototypeRecipe
from mmhf.tasks.classification import ClassificationTask


class PrototypeClassification(ClassificationTask[PrototypeRecipe]):
    collator_class = ImageCollator

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> Processor:
        if parent is not None:
            return AutoImageProcessor.from_pretrained(parent)
        return image_processor_of(self.recipe.model.vision, self.recipe.data)

    def _fresh_model(self, *, label_names: Any, loss: Any, image_size: int, device: str | None) -> PrototypeModel:
        section = self.recipe.model
        values = vision_values(section.vision, image_size=image_size)
        values.pop("vision_backbone")
        config = PrototypeConfig(width=section.width, **values, **label_maps(label_names))
        if device == "meta":
            return shapes_alone(PrototypeModel, config)
        return PrototypeModel(
            config, vision=load_encoder(section.vision.backbone, config.vision_config, pretrained=False)
        )

    def _released_model(self, parent: Path, **options: Any) -> PrototypeModel:
        return load_released(PrototypeModel, parent, released_config(PrototypeConfig, parent))
