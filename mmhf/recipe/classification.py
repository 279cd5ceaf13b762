"""What the recipes of classifiers share: loss, sampling, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmhf.recipe.data_sources import DataSection, JoinedClassesSection
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
    huber_delta: PositiveFloat | None = None
    """With `data.regression`: Huber's loss in place of the squared error. Errors count by their square up to this many
    standard deviations of the training rows, and by their size beyond; 1 is usual."""
    logit_adjustment: NonNegativeFloat = 0.0
    """Menon et al., 2021: inside the loss, tau · log(share of the class in the training split) is added to the logits,
    which gives rare classes a wider margin. 0 = none; 1 optimises balanced accuracy."""


class SamplingSection(Section):
    """Draw training rows with replacement, as many as there are; rows of rare classes more often."""

    by: str = "label"
    """`label`, or a column to use instead of the label, such as the source of a row."""
    power: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Weight of a row = (rows of its class)^-power: 1 = all classes equally often, 0 = unweighted."""


class ViewsSection(Section):
    """Views of each image, over which answers are averaged: with the image as it is, each crop with each flip."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    center_crops: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = []
    """Shares of height and width, such as 0.875: the centre of the image, scaled up again."""

    @model_validator(mode="after")
    def _has_another_view(self) -> ViewsSection:
        if not (self.horizontal_flip or self.vertical_flip or self.center_crops):
            raise ValueError("name a view beside the image as it is, such as horizontal_flip: true, or remove it")
        return self


class ClassificationEvaluationSection(EvaluationSection):
    subgroups: list[str] = []
    """Columns of the data, such as `sex` or `source`. The metrics are reported for each of their values, with
    intervals and the gap between the best and the worst: accuracy and macro-F1, of ordered classes also `mae`; with
    `data.multi_label` micro-F1 and samples-F1; of numbers `mae` and `rmse`."""
    subgroup_min_rows: PositiveInt = 10
    """Smaller subgroups are listed, but do not count as the best or the worst."""
    views: ViewsSection | None = None
    """Test-time augmentation: once training is over, answers are averaged over views of each image, here and wherever
    the saved model is used. Absent: the image as it is."""
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
        by = None if self.sampling is None else self.sampling.by
        if isinstance(self.data, JoinedClassesSection) and self.data.weights is not None and by == self.data.column:
            what = "`data.weights` says how often each data set is drawn; remove one of the two"
            yield Problem(("sampling", "by"), what, shown(by))
        yield from self._target_problems()
        if self.evaluation.views is not None and self.data.resize == "naflex":
            what = "views are of images of one shape; with `data.resize: naflex` remove it"
            yield Problem(("evaluation", "views"), what, shown(self.evaluation.views.changed()))
        if self.loss.asymmetric is not None and self.loss.focal_gamma:
            what = "`loss.asymmetric` has exponents of its own; remove one of the two"
            yield Problem(("loss", "focal_gamma"), what, shown(self.loss.focal_gamma))

    def _target_problems(self) -> Iterator[Problem]:
        """Keys that are for another kind of target than the data's."""
        kind = next((kind for kind in _SECTIONS if getattr(self.data, kind, None) is not None), None)
        for path, kinds in _KINDS_OF.items():
            value = self._given(path)
            if value is not None and kind not in kinds:
                yield Problem(path, _why_not(path, kind, kinds), shown(value))
        for index, stage in enumerate(self.stages or []):
            for name in ("mixup", "cutmix"):
                if kind == _NUMBERS and stage.augment is not None and name in stage.augment.changed():
                    what = _why_not(("data", "augment", name), kind, _KINDS_OF["data", "augment", name])
                    yield Problem(("stages", index, "augment", name), what, shown(stage.augment.changed()[name]))

    def _given(self, path: tuple[str, ...]) -> object:
        """What a key is set to; None where it is left as it is."""
        section: Any = self
        for name in path[:-1]:
            section = getattr(section, name, None)
        if isinstance(section, SamplingSection) and path[-1] == "by":
            return section.by if section.by == SamplingSection().by else None
        if isinstance(section, dict):
            return section.get(path[-1])
        return None if section is None else section.changed().get(path[-1])


_SETS, _NUMBERS, _ORDER = _SECTIONS = ("multi_label", "regression", "ordinal")
_ONE = None
"""One class a row, for which `data` needs no section."""
_KINDS_OF: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("loss", "label_smoothing"): (_ONE, _SETS),
    ("training", "label_smoothing_factor"): (_ONE, _SETS),
    ("loss", "class_weights"): (_ONE, _SETS, _ORDER),
    ("loss", "focal_gamma"): (_ONE, _SETS),
    ("loss", "asymmetric"): (_SETS,),
    ("loss", "logit_adjustment"): (_ONE,),
    ("loss", "huber_delta"): (_NUMBERS,),
    ("evaluation", "calibrate"): (_ONE, _SETS, _ORDER),
    ("evaluation", "target_accuracy"): (_ONE,),
    ("evaluation", "fit_thresholds"): (_SETS,),
    ("data", "labels"): (_ONE, _ORDER),
    ("data", "filters", "min_samples_per_label"): (_ONE, _ORDER),
    ("data", "streaming"): (_ONE,),
    ("data", "augment", "mixup"): (_ONE, _SETS, _ORDER),
    ("data", "augment", "cutmix"): (_ONE, _SETS, _ORDER),
    ("sampling", "by"): (_ONE, _ORDER),
}
"""Key → the kinds of targets that it is for; keys that are not here are for all."""
_WAYS = {
    (_SETS, "labels"): "`data.multi_label.names` names the labels; remove it",
    (_SETS, "min_samples_per_label"): "name the labels to keep in `data.multi_label.names`, and remove it",
    (_SETS, "by"): "rows with several labels have no one class; name another column",
    (_NUMBERS, "by"): "numbers are no classes; name another column",
    (_NUMBERS, "calibrate"): "numbers have no probabilities to calibrate; remove it",
    (_NUMBERS, "target_accuracy"): "numbers have no confidence to abstain by; remove it",
    (_SETS, "target_accuracy"): "rows have few of all labels, so that saying no throughout is nearly always right; "
    "remove it, and take labels from the probability on that you want: `mmhf predict --threshold 0.9`",
    (_ORDER, "target_accuracy"): "the answer is the median class, whose probability does not say how near it is; "
    "remove it",
}


def _why_not(path: tuple[str, ...], kind: str | None, kinds: tuple[str | None, ...]) -> str:
    if path[-1] == "streaming":
        return f"`data.{kind}` needs all rows beforehand, and a stream is not read then; set it to false"
    if kind is None:
        return f"is for {' and '.join(f'`data.{each}`' for each in kinds)}; set `data.{kinds[0]}`, or remove it"
    return _WAYS.get((kind, path[-1]), f"is not for `data.{kind}`; remove it")
