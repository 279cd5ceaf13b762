"""The recipe section of a toy family."""

from __future__ import annotations

from typing import Literal

from mmhf.conventions import Modality
from mmhf.recipe.classification import ClassificationRecipe
from mmhf.recipe.sections import EncoderSection, ModelSection, PositiveInt, VisionEncoderSection


class PrototypeModelSection(ModelSection):
    vision: VisionEncoderSection = VisionEncoderSection()
    width: PositiveInt = 8
    """Of the space with the prototypes."""
    reset_head: bool = False

    def encoders(self) -> dict[Modality, EncoderSection]:
        return {"image": self.vision}


class PrototypeRecipe(ClassificationRecipe):
    """A recipe of the task prototype-classification."""

    task: Literal["prototype-classification"]
    model: PrototypeModelSection = PrototypeModelSection()
