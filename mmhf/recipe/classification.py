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
    """Focal loss: each term is multiplied by (1 - p)^gamma, so that easy rows count less. 0 = cross-entropy; Lin et
    al., 2017, use 2."""
    logit_adjustment: NonNegativeFloat = 0.0
    """Menon et al., 2021: inside the loss, tau · log(share of the class in the training split) is added to the logits,
    which gives rare classes a wider margin. 0 = none; 1 optimises balanced accuracy."""


class SamplingSection(Section):
    """Draw training rows with replacement, as many as there are; rows of rare classes more often."""

    by: str = "label"
    """`label`, or a column to use instead of the label, such as the source of a row."""
    power: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Weight of a row = (rows of its class)^-power: 1 = all classes equally often, 0 = unweighted."""


class ClassificationEvaluationSection(EvaluationSection):
    subgroups: list[str] = []
    """Columns of the data, such as `sex` or `source`. The metrics are reported for each of their values, with
    intervals and the gap between the best and the worst."""
    subgroup_min_rows: PositiveInt = 10
    """Smaller subgroups are listed, but do not count as the best or the worst."""
    calibrate: bool = False
    """Fit a temperature on the validation split after training. It is saved with the model and applied in
    evaluation, `pipeline()` and batch prediction."""
    target_accuracy: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Abstain: find the lowest confidence at which predictions on the validation split are this accurate. It is saved
    with the model, and predictions below it are marked."""


class ClassificationRecipe(RecipeBase):
    """What the recipes of all classifiers have in common."""

    data: DataSection
    loss: LossSection = LossSection.model_construct()
    sampling: SamplingSection | None = None
    """Absent = every training row once an epoch."""
    evaluation: ClassificationEvaluationSection = ClassificationEvaluationSection.model_construct()

    def problems(self) -> Iterator[Problem]:
        if self.init_from is None and self.model.changed().get("reset_head"):
            yield Problem(("model", "reset_head"), "a new head replaces that of `init_from`, which is absent", "true")
        if self.loss.label_smoothing > 0 and "label_smoothing_factor" in self.training:
            what = "`loss.label_smoothing` is given too; remove one of the two"
            given = shown(self.training["label_smoothing_factor"])
            yield Problem(("training", "label_smoothing_factor"), what, given)
