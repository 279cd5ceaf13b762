"""The task image-classification: a backbone and a head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, BaseImageProcessor

from mmhf.conventions import TEACHER_ANSWERS
from mmhf.data.collators import ImageCollator
from mmhf.data.loading import LoadedData
from mmhf.features.choice import PartChoice
from mmhf.features.parts import VISION, FeaturePart
from mmhf.models.building import check_same_resize, image_processor_of
from mmhf.models.image_classifier import BackboneForImageClassification
from mmhf.models.image_classifier.building import build_image_classifier, load_image_classifier
from mmhf.recipe.image_classifier_recipe import ImageClassificationRecipe
from mmhf.tasks.classification import ClassificationTask
from mmhf.tasks.linear_probe import LinearProbeStart, refuse_probes_without_features
from mmhf.training.stages import StagePlan
from mmhf.training.trainer import MMTrainer


class ImageClassification(ClassificationTask[ImageClassificationRecipe]):
    """Image classifiers."""

    collator_class = ImageCollator
    asked_of_teacher = {"image": FeaturePart("teacher", VISION.inputs, TEACHER_ANSWERS)}

    def build_processor(self, data: LoadedData, *, parent: Path | None = None) -> BaseImageProcessor:
        processor: BaseImageProcessor
        if parent is not None:
            processor = AutoImageProcessor.from_pretrained(parent)
            check_same_resize(processor, self.recipe.data, parent)
        else:
            own = image_processor_of(self.recipe.model.vision, self.recipe.data)
            processor = self.normalised_by_data(own, data)
        return processor

    def check_features(self, plan: StagePlan, choices: Sequence[Sequence[PartChoice]]) -> None:
        refuse_probes_without_features(plan, choices)

    def make_trainer(self, data: LoadedData, **options: Any) -> MMTrainer:
        trainer = super().make_trainer(data, **options)
        if any(stage.section.start is not None for stage in trainer.plan.stages):
            trainer.stages.starts = LinearProbeStart(self.recipe, trainer, data)
        return trainer

    def _fresh_model(self, **options: Any) -> BackboneForImageClassification:
        return build_image_classifier(self.recipe.model, **options)

    def _released_model(self, parent: Path, **options: Any) -> BackboneForImageClassification:
        return load_image_classifier(parent, self.recipe.model, **options)
