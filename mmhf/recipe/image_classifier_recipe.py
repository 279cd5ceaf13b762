"""The recipe of image classifiers, the task image-classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmhf.conventions import Modality
from mmhf.recipe.classification import ClassificationRecipe
from mmhf.recipe.sections import (
    Activation,
    EncoderSection,
    Fraction,
    ModelSection,
    PositiveInt,
    Section,
    VisionEncoderSection,
)
from mmhf.recipe.training_sections import StageSection


class ClassifierHeadSection(Section):
    """Dropout, hidden layer, activation, dropout, classifier."""

    hidden_dim: PositiveInt | None = 512
    """Width of the hidden layer; null = the classifier alone, after the first dropout."""
    dropout: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.3, 0.15]
    activation: Activation = "relu"


class ImageClassifierModelSection(ModelSection):
    vision: VisionEncoderSection = VisionEncoderSection.model_construct()
    head: ClassifierHeadSection = ClassifierHeadSection.model_construct()
    freeze_vision: bool = False
    """Shorthand for one stage that trains the head alone."""
    reset_head: bool = False
    """With `init_from`: start with a new head, because the labels differ from the release's."""

    def encoders(self) -> dict[Modality, EncoderSection]:
        return {"image": self.vision}

    def towers(self) -> list[str]:
        return ["vision"]

    def frozen_encoders(self) -> list[str]:
        return ["vision"] if self.freeze_vision else []


class ImageClassificationRecipe(ClassificationRecipe):
    """A recipe of the task image-classification."""

    task: Literal["image-classification"]
    model: ImageClassifierModelSection = ImageClassifierModelSection.model_construct()

    def why_no_probe(self, stage: StageSection) -> str | None:
        if self.model.head.hidden_dim is not None:
            return "a linear probe is a linear head's start; set `model.head.hidden_dim: null`"
        if self.data.target is not None:
            return "a linear probe is a logistic regression, for one class a row without an order; remove `start`"
        if stage.train not in ("head", ["head"]):
            return "a linear probe fits the head on frozen features; set the stage's `train: [head]`"
        return None
