"""The recipe of each task: every key a user may write, its type, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mmhf.recipe.augment_sections import (
    AffineSection,
    AugmentSection,
    ColorJitterSection,
    GaussianBlurSection,
    PerspectiveSection,
    RandAugmentSection,
    RandomErasingSection,
    RandomResizedCropSection,
)
from mmhf.recipe.cache_section import CacheChoice, CacheSection
from mmhf.recipe.caption_data_sections import CaptionDataSection
from mmhf.recipe.captioner_sections import CaptionerModelSection, CaptionEvaluationSection, GenerationSection
from mmhf.recipe.contrastive_sections import (
    ContrastiveEvaluationSection,
    ContrastiveSection,
    DualEncoderModelSection,
    ZeroShotSection,
)
from mmhf.recipe.data_sections import (
    ClinicalDataSection,
    ClinicalTableSection,
    ColumnsSection,
    DataSection,
    DataSectionBase,
    FakedditDataSection,
    FilteredDataSection,
    HubDataSection,
    ImageFolderDataSection,
    PairDataSection,
    SampleDataSection,
    SplitSection,
    TableDataSection,
)
from mmhf.recipe.filter_sections import ConditionSection, FiltersSection
from mmhf.recipe.model_sections import (
    ClassifierHeadSection,
    FusionModelSection,
    FusionSection,
    FusionTextSection,
    ImageClassifierModelSection,
    TextEncoderSection,
    VisionEncoderSection,
)
from mmhf.recipe.release_sections import CardSection, ReleaseSection
from mmhf.recipe.sections import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Range, Section, SplitName
from mmhf.recipe.training_sections import (
    CheckpointsSection,
    ClassificationEvaluationSection,
    EmaSection,
    EvaluationSection,
    FusionEvaluationSection,
    FusionLossSection,
    LossSection,
    OptimizerSection,
    PlateauSection,
    SamplingSection,
    ScheduleName,
    StageSection,
    TrackingSection,
)

__all__ = [
    "AffineSection",
    "AugmentSection",
    "CacheSection",
    "CaptionDataSection",
    "CaptionEvaluationSection",
    "CaptionerModelSection",
    "CaptioningRecipe",
    "CardSection",
    "CheckpointsSection",
    "ClassificationEvaluationSection",
    "ClassificationRecipe",
    "ClassifierHeadSection",
    "ClinicalDataSection",
    "ClinicalTableSection",
    "ColorJitterSection",
    "ColumnsSection",
    "ConditionSection",
    "ContrastiveEvaluationSection",
    "ContrastiveRecipe",
    "ContrastiveSection",
    "DataSection",
    "DataSectionBase",
    "DualEncoderModelSection",
    "EmaSection",
    "EvaluationSection",
    "FakedditDataSection",
    "FilteredDataSection",
    "FiltersSection",
    "Fraction",
    "FusionEvaluationSection",
    "FusionLossSection",
    "FusionModelSection",
    "FusionRecipe",
    "FusionSection",
    "FusionTextSection",
    "GaussianBlurSection",
    "GenerationSection",
    "HubDataSection",
    "ImageClassificationRecipe",
    "ImageClassifierModelSection",
    "ImageFolderDataSection",
    "LossSection",
    "NonNegativeFloat",
    "OptimizerSection",
    "PairDataSection",
    "PerspectiveSection",
    "PlateauSection",
    "PositiveFloat",
    "PositiveInt",
    "RECIPE_BY_TASK",
    "RandAugmentSection",
    "RandomErasingSection",
    "RandomResizedCropSection",
    "Range",
    "Recipe",
    "RecipeBase",
    "ReleaseSection",
    "SampleDataSection",
    "SamplingSection",
    "ScheduleName",
    "Section",
    "SplitName",
    "SplitSection",
    "StageSection",
    "TableDataSection",
    "TextEncoderSection",
    "TrackingSection",
    "VisionEncoderSection",
    "ZeroShotSection",
]


class RecipeBase(Section):
    """What the recipes of all tasks have in common."""

    task: str
    init_from: str | None = None
    """A release to start from, `REPO@vX.Y`; absent = start from the backbones."""
    model: Section
    data: DataSectionBase
    training: dict[str, Any] = {}
    """Any field of `transformers.TrainingArguments`, by its own name; null takes an inherited one away."""
    optimizer: OptimizerSection | None = None
    """Absent: `training.optim` and its companions."""
    stages: Annotated[list[StageSection], Field(min_length=1)] | None = None
    """Absent = one stage that trains everything for `training.num_train_epochs`."""
    early_stopping: PlateauSection | None = None
    """End the run when the metric stalls."""
    unfreeze_on_plateau: PlateauSection | None = None
    """Go on to the next stage when the metric stalls; after the last one, end the run."""
    ema: EmaSection | None = None
    """Absent = the weights themselves are evaluated and saved."""
    cache: CacheChoice = "auto"
    """Keep what frozen encoders make of each sample, so that it is computed once."""
    checkpoints: CheckpointsSection = CheckpointsSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    release: ReleaseSection | None = None


class ClassificationRecipe(RecipeBase):
    """What the recipes of all classifiers have in common."""

    data: DataSection
    loss: LossSection = LossSection()
    sampling: SamplingSection | None = None
    """Absent = every training row once an epoch."""
    evaluation: ClassificationEvaluationSection = ClassificationEvaluationSection()


class FusionRecipe(ClassificationRecipe):
    """A recipe of the task image-text-classification."""

    task: Literal["image-text-classification"]
    model: FusionModelSection = FusionModelSection()
    data: PairDataSection
    loss: FusionLossSection = FusionLossSection()
    evaluation: FusionEvaluationSection = FusionEvaluationSection()


class ImageClassificationRecipe(ClassificationRecipe):
    """A recipe of the task image-classification."""

    task: Literal["image-classification"]
    model: ImageClassifierModelSection = ImageClassifierModelSection()


class ContrastiveRecipe(RecipeBase):
    """A recipe of the task contrastive."""

    task: Literal["contrastive"]
    model: DualEncoderModelSection = DualEncoderModelSection()
    data: CaptionDataSection
    contrastive: ContrastiveSection = ContrastiveSection()
    evaluation: ContrastiveEvaluationSection = ContrastiveEvaluationSection()


class CaptioningRecipe(RecipeBase):
    """A recipe of the task image-captioning."""

    task: Literal["image-captioning"]
    model: CaptionerModelSection = CaptionerModelSection()
    data: CaptionDataSection
    generation: GenerationSection = GenerationSection()
    evaluation: CaptionEvaluationSection = CaptionEvaluationSection()


Recipe = FusionRecipe | ImageClassificationRecipe | ContrastiveRecipe | CaptioningRecipe
"""Any recipe: the union of the tasks' recipes."""

RECIPE_BY_TASK: dict[str, type[Recipe]] = {
    "image-text-classification": FusionRecipe,
    "image-classification": ImageClassificationRecipe,
    "image-captioning": CaptioningRecipe,
    "contrastive": ContrastiveRecipe,
}
