"""What the recipes of classifiers share: loss, sampling, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from mmhf.recipe.data_sections import DataSection
from mmhf.recipe.node import Problem, shown
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.sections import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from mmhf.recipe.training_sections import EvaluationSection


class LossSection(Section):
    label_smoothing: Fraction = 0.0
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """`balanced` = inversely proportional to the class counts of the training split (scikit-learn's formula)."""
    focal_gamma: NonNegativeFloat = 0.0
    """Focal loss: each term is multiplied with (1 - p)^gamma, so that easy rows count less; 0 = cross-entropy, 2 is
    what Lin et al., 2017, use."""
    logit_adjustment: NonNegativeFloat = 0.0
    """Menon et al., 2021: inside the loss, tau · log(share of the class in the training split) is added to the logits,
    so that rare classes get a wider margin; 0 = none, 1 makes balanced accuracy the aim."""


class SamplingSection(Section):
    """Draw training rows with replacement, as many as there are; rows of rare classes more often."""

    by: str = "label"
    """`label`, or a column whose values take the place of the classes, such as the source of a row."""
    power: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Weight of a row = (rows of its class)^-power: 1 = each class equally often, 0.5 = by the root, 0 = as it is."""


class ClassificationEvaluationSection(EvaluationSection):
    subgroups: list[str] = []
    """Columns of the data, such as `sex` or `source`, for whose values the metrics are reported apart, with intervals
    and the gap between the best and the worst."""
    subgroup_min_rows: PositiveInt = 10
    """Smaller subgroups are listed, but are not the best or the worst."""
    calibrate: bool = False
    """Fit a temperature on the validation split when training is over; it is kept with the model, and the
    probabilities of evaluation, `pipeline()` and batch prediction follow it."""
    target_accuracy: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Abstain: find, on the validation split, the lowest confidence from which on predictions are right this often. It
    is kept with the model, and predictions below it are marked."""


class ClassificationRecipe(RecipeBase):
    """What the recipes of all classifiers have in common."""

    data: DataSection
    loss: LossSection = LossSection()
    sampling: SamplingSection | None = None
    """Absent = every training row once an epoch."""
    evaluation: ClassificationEvaluationSection = ClassificationEvaluationSection()

    def problems(self) -> Iterator[Problem]:
        if self.init_from is None and self.model.changed().get("reset_head"):
            yield Problem(("model", "reset_head"), "a new head replaces that of `init_from`, which is absent", "true")
        if self.loss.label_smoothing > 0 and "label_smoothing_factor" in self.training:
            what = "`loss.label_smoothing` is given too, remove one of the two"
            given = shown(self.training["label_smoothing_factor"])
            yield Problem(("training", "label_smoothing_factor"), what, given)
