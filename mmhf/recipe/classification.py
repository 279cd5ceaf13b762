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


class AsymmetricSection(Section):
    """Asymmetric loss (Ridnik et al., 2021), by its authors' values."""

    gamma_positive: NonNegativeFloat = 1.0
    """Exponent of the focal factor of labels that a row has."""
    gamma_negative: NonNegativeFloat = 4.0
    """Exponent of the focal factor of those that it has not."""
    margin: Fraction = 0.05
    """Probabilities of labels that a row has not are lowered by this, so that those below it have no loss."""


class LossSection(Section):
    label_smoothing: Fraction = 0.0
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    """`balanced` = inversely proportional to the class counts of the training split (scikit-learn's formula). With
    `data.multi_label` a weight is of the label's positives, and `balanced` = rows without it / rows with it."""
    focal_gamma: NonNegativeFloat = 0.0
    """Focal loss: each term is multiplied by (1 - p)^gamma, so that easy rows count less. 0 = cross-entropy; Lin et
    al., 2017, use 2."""
    asymmetric: AsymmetricSection | None = None
    """With `data.multi_label`: focus on hard labels, with an exponent of their own for those that a row has not."""
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
    fit_thresholds: bool | None = None
    """With `data.multi_label`: each label is given from that probability on that has the best F1 on the validation
    split, and that is saved with the model; false: from 0.5 on. Absent: true where there is such a split."""


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
        yield from self._single_label_problems() if self.data.label_sets is None else self._multi_label_problems()

    def _single_label_problems(self) -> Iterator[Problem]:
        for section, name in (("loss", "asymmetric"), ("evaluation", "fit_thresholds")):
            if name in getattr(self, section).changed():
                what = "is for any number of labels a row; set `data.multi_label`, or remove it"
                yield Problem((section, name), what, shown(getattr(self, section).changed()[name]))

    def _multi_label_problems(self) -> Iterator[Problem]:
        one, by_label = "with `data.multi_label` a row has no one class; remove it", SamplingSection().by
        refused = {
            ("loss", "logit_adjustment"): self.loss.logit_adjustment or None,
            ("evaluation", "target_accuracy"): self.evaluation.target_accuracy,
            ("evaluation", "subgroups"): self.evaluation.subgroups or None,
            ("data", "labels"): self.data.changed().get("labels"),
            ("data", "filters", "min_samples_per_label"): self.data.filters.min_samples_per_label,
            ("sampling", "by"): self.sampling.by if self.sampling and self.sampling.by == by_label else None,
            ("data", "streaming"): True if self.data.is_stream() else None,
        }
        ways = {
            "labels": "`data.multi_label.names` names the labels; remove it",
            "min_samples_per_label": "name the labels to keep in `data.multi_label.names`, and remove it",
            "by": "rows with several labels have no one class; name another column",
            "streaming": "a stream is not read beforehand, as labels must be; set it to false",
        }
        for path, value in refused.items():
            if value is not None:
                yield Problem(path, ways.get(path[-1], one), shown(value))
        if self.loss.asymmetric is not None and self.loss.focal_gamma:
            what = "`loss.asymmetric` has exponents of its own; remove one of the two"
            yield Problem(("loss", "focal_gamma"), what, shown(self.loss.focal_gamma))
